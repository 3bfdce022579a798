"""What every policy is: settings and the interface.

Shapes: B batch, K chunk, V cameras, A arms, D joined vector (each arm's joints, its gripper).
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeGuard, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Generator, Tensor, nn

from teamvla.config import Settings
from teamvla.config.bytype import ByType, over_defaults
from teamvla.contract import Contract
from teamvla.errors import ConfigError, RegistryError
from teamvla.models.adaptation import Adaptable, AdaptationConfig
from teamvla.models.chunking import ActionChunker, ChunkSize, ExecutionConfig
from teamvla.models.features import Features
from teamvla.models.heads.base import ActionHead, HeadConfig, HeadLoss, hold_last
from teamvla.models.heads.building import make_heads, require_reach
from teamvla.models.heads.mlp import MLPHeadConfig
from teamvla.models.losses import GeometryLoss, LossConfig
from teamvla.models.normalization import NormalizationConfig, Normalizer
from teamvla.models.observations import batch_of, required
from teamvla.models.registries import ACTION_HEAD_REGISTRY, MODELS
from teamvla.models.sequences import Sequences, unfolded
from teamvla.models.spaces import Spaces
from teamvla.models.targets import errors_of, targets_of
from teamvla.models.temporal.recollection import EARLIER, Earlier, NextTick, Recollection

#: of what is drawn in an episode: the same observations give the same actions anywhere
_SEED = 0


class PolicyConfig(Settings):
    """Settings that all policies share; ``type`` decides whose are the others."""

    type: str = Field(default="single_brain", description="Name of the model.")
    chunk_size: ChunkSize = 16
    head: Annotated[HeadConfig, ByType(ACTION_HEAD_REGISTRY, "mlp")] = MLPHeadConfig()
    normalization: NormalizationConfig = NormalizationConfig()
    execution: ExecutionConfig = ExecutionConfig()
    adaptation: AdaptationConfig = AdaptationConfig()

    #: what may differ between training and evaluation; see :meth:`Policy.adjust`
    ADJUSTABLE: ClassVar[tuple[str, ...]] = ("execution",)
    #: what ``dataset.fields`` must have for it to be trained
    NEEDED_FIELDS: ClassVar[tuple[str, ...]] = ()

    @property
    def adjustable(self) -> list[str]:
        """What may differ between training and evaluation, the head's settings as ``head.x``."""
        head: HeadConfig | None = self.head
        of_head = () if head is None else head.ADJUSTABLE
        return [*self.ADJUSTABLE, *(f"head.{name}" for name in of_head)]

    def fixed(self) -> dict[str, Any]:
        """All other settings, as plain data."""
        settings = self.model_dump(mode="json")
        for name in self.adjustable:
            section, _, key = name.rpartition(".")
            del (settings[section] if section else settings)[key]
        return settings

    @property
    def learns_from_sequences(self) -> str | None:
        """Why samples must be sequences of steps, or None where single steps will do."""
        return None

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, data: Any) -> Any:
        return over_defaults(data, cls)

    @classmethod
    def choose(cls, data: dict[str, Any]) -> builtins.type[Settings]:
        """The settings class of the model that ``type`` names."""
        name = data.get("type", cls.model_fields["type"].default)
        return policy_kind(str(name)).Config

    @classmethod
    def variants(cls) -> list[builtins.type[Settings]]:
        kinds = [kind.Config for kind in MODELS.loadable() if is_policy(kind)]
        return cast(list[builtins.type[Settings]], list(dict.fromkeys(kinds)))


class Policy(Adaptable, ABC):
    """Observations to actions, with everything before and after the network.

        batch -> encode -> features -> head -> normalised chunk -> contract units

    Normalisation, the head's loss and sampling and the execution of chunks are part of the
    policy and travel with it. A subclass sets :attr:`Config`, writes :meth:`encode` and calls
    :meth:`build_heads`. All actions that come out are in the units of the contract.

    Args:
        config: settings of the subclass.
        contract: what the numbers mean; decides arms, joints and cameras. Plain
            :class:`Spaces` make a policy for tensors, which cannot act in an environment.
        statistics: of the training split, or None for no normalisation.
        loss: weights of sync and collision.
    """

    Config: ClassVar[type[PolicyConfig]]
    #: whether its actions can be one of several moves, given a head for them
    chooses: ClassVar[bool] = False
    #: steps of each sequence that training learns from at a time; None: all
    steps_learned: int | None = None
    _last_action: NDArray[np.float32] | None
    #: sizes that it is made for when neither a contract nor they are given
    SIZES: ClassVar[Mapping[str, int]] = {}

    def __init__(
        self,
        config: PolicyConfig,
        contract: Contract | Spaces,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self._contract = contract if isinstance(contract, Contract) else None
        self.spaces = Spaces.of(contract) if isinstance(contract, Contract) else contract
        self.normalizer = Normalizer(config.normalization, self.spaces, statistics)
        self.geometry = None
        if self._contract is not None:
            self.geometry = GeometryLoss(loss or LossConfig(), self._contract)
        self._require_choosing()
        self.recollection: Recollection | None = None
        self.set_execution(config.execution)

    def _require_choosing(self) -> None:
        if self.spaces.choices and not self.chooses:
            got = f"{self.config.type!r}, which gives real numbers"
            raise ConfigError("model.type", "one that chooses among moves", got, "Take mdlm.")

    def build_heads(self, input_dim: int, separate: bool = False) -> None:
        """Make :attr:`heads`: one for the joined action, or one for each arm.

        Raises:
            ConfigError: the head cannot reach all actions.
        """
        config = self.config
        heads = make_heads(config.head, self.spaces, input_dim, config.chunk_size, separate)
        require_reach(heads, config.normalization, self.normalizer.fitted)
        self.heads = nn.ModuleList(heads)

    @abstractmethod
    def encode(self, batch: Mapping[str, Any]) -> list[Features]:
        """The features of a batch for each of :attr:`heads`.

        Args:
            batch: ``observations`` {``image`` [B,V,C,H,W] uint8 or float 0..1, ``state``
                [B,S]} and ``language``, B instructions; for a policy that remembers ``earlier``,
                what these steps come after (:mod:`teamvla.models.temporal.recollection`).
        """

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Predict chunks for a batch, and given its actions also their loss.

        Args:
            batch: as for :meth:`encode`; ``image`` without V and ``language`` left out are
                fine. With ``actions`` as for :meth:`loss`.

        Returns:
            ``predicted_actions`` [B,K,D] (as ``actions`` without K if they are given so) and
            ``actions`` (the same split by arm) in contract units, ``logits`` [B,K,A] of the
            grippers, ``aux`` with ``normalized_actions`` [B,K,D]. Given actions also ``loss``
            and its parts, ``action_mse`` and ``action_mae``.
        """
        sequences, steps = unfolded(batch)
        features = self._features(steps, sequences, batch)
        output = self._outputs(features)
        predicted = output["predicted_actions"]
        if sequences is not None:
            output = sequences.place_all(output)
        if "actions" in batch:
            shaped = output["predicted_actions"].reshape(batch["actions"].shape)
            errors = errors_of(predicted, *self._targets(steps))
            output |= {**self._loss(features, steps), **errors, "predicted_actions": shaped}
        return output

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``loss`` and its parts, scalars.

        Args:
            batch: as for :meth:`encode`, with ``actions`` [B,K,D] in contract units and
                ``action_is_pad`` bool [B,K] (nothing is padding if it is left out). Or
                sequences, as ``dataset.sequence_length`` makes the loader give them: S steps
                behind B everywhere but in ``language``, and ``observation_is_pad`` [B,S].
        """
        sequences, steps = unfolded(batch, self.steps_learned if self.training else None)
        features = self._features(steps, sequences, batch)
        return self._loss(features, steps)

    def _outputs(self, features: Sequence[Features]) -> dict[str, Any]:
        """What :meth:`forward` gives without actions, of steps."""
        normalized = self._sample(features)
        predicted = self.normalizer.denormalize_actions(normalized)
        opening = normalized[..., list(self.spaces.grippers)]
        return {
            "predicted_actions": predicted,
            "actions": torch.split(predicted, list(self.spaces.actions), dim=-1),
            "logits": torch.logit((opening + 1) / 2, eps=1e-6),
            "aux": {"normalized_actions": normalized},
        }

    def _features(
        self, steps: Mapping[str, Any], sequences: Sequences | None, batch: Mapping[str, Any]
    ) -> list[Features]:
        """Features of steps, which a policy that remembers knows to come one behind another.

        Without ``actions`` [B,S,K,D] in a batch of sequences, it is as if all had been 0.
        """
        if sequences is not None:
            size = (*sequences.there.shape, self.spaces.action_dim)
            commands = torch.zeros(size, device=self.device)
            if "actions" in batch:
                commands = self.normalizer.normalize_actions(batch["actions"][:, :, 0].float())
            is_pad = batch["observation_is_pad"]
            earlier = Earlier(sequences, commands, batch["observations"], is_pad)
            steps = {**steps, EARLIER: earlier}
        return self.encode(steps)

    def _loss(self, features: Sequence[Features], steps: Mapping[str, Any]) -> dict[str, Tensor]:
        """``loss`` and its parts, of steps with their actions."""
        target, is_pad = self._targets(steps)
        # A slope of 0 times NaN in padding is no 0: it goes before anything looks at it.
        target = hold_last(target, is_pad)
        normalized = self.normalizer.normalize_actions(target)
        sizes = [head.action_dim for head in self._heads]
        pieces = zip(self._heads, features, torch.split(normalized, sizes, dim=-1), strict=True)
        lost = [head.loss(seen, piece, is_pad) for head, seen, piece in pieces]
        total, parts = HeadLoss.joined(lost, sizes)
        geometry = self._geometry_parts(lost, target, is_pad)
        if self.geometry is not None:
            total = total + self.geometry.total(geometry)
        return {"loss": total, **parts, **geometry}

    def _geometry_parts(
        self, lost: Sequence[HeadLoss], target: Tensor, is_pad: Tensor
    ) -> dict[str, Tensor]:
        predicted = [one.predicted for one in lost if one.predicted is not None]
        if self.geometry is None or len(predicted) < len(lost):
            return {}
        joined = self.normalizer.denormalize_actions(torch.cat(predicted, dim=-1))
        parts: dict[str, Tensor] = self.geometry(joined, target, is_pad)
        return parts

    def _targets(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        return targets_of(batch, self.config.chunk_size, self.spaces.action_dim)

    def _sample(self, features: Sequence[Features], generator: Generator | None = None) -> Tensor:
        pairs = zip(self._heads, features, strict=True)
        return torch.cat([head.sample(seen, generator) for head, seen in pairs], dim=-1).float()

    @property
    def _heads(self) -> list[ActionHead]:
        return cast(list[ActionHead], list(self.heads))

    @property
    def contract(self) -> Contract:
        """What the numbers mean; ContractError if the policy was made for plain tensors."""
        return required(self._contract)

    @torch.no_grad()
    def predict_action_chunk(
        self,
        obs: Mapping[str, Any],
        language: str | Sequence[str] | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        """The next K actions [B,K,D]; of earlier steps nothing is known, see :meth:`act`.

        Args:
            obs: one observation of an environment (NumPy arrays by field name), or ``image``
                [B,V,C,H,W] or [B,C,H,W] and ``state`` [B,S] as tensors, arrays or lists.
            language: instruction(s); left out, the observation's own ``instruction``.
            generator: fresh noise for heads that sample; see :meth:`ActionHead.sample`.

        Raises:
            ContractError: the observation is not what the policy was made for.
        """
        batch = batch_of(obs, language, self._contract, self.device, self._last_action)
        return self._predicted(batch, generator)

    def _predicted(self, batch: Mapping[str, Any], generator: Generator | None) -> Tensor:
        """The chunks [B,K,D] of single steps, in contract units."""
        features = self._features(batch, None, batch)
        return self.normalizer.denormalize_actions(self._sample(features, generator))

    def predict(
        self, obs: Mapping[str, Any], language: str | Sequence[str] | None = None
    ) -> Tensor:
        """:meth:`predict_action_chunk`, without the chunk dimension if K is 1."""
        chunk = self.predict_action_chunk(obs, language)
        return chunk.squeeze(1) if self.config.chunk_size == 1 else chunk

    def select_action(self, obs: Mapping[str, Any]) -> NDArray[np.float32]:
        """The joined action [D] of this tick, by the mode of execution."""
        state = self.contract.measured_state(obs, self._last_action)
        self.chunker.observe(state)
        if self.recollection is not None:
            self._remember(obs)
        elif self.chunker.wants_chunk:
            chunk = self.predict_action_chunk(obs, generator=self._dice)
            self.chunker.add(chunk[0].cpu().numpy())
        action = self.chunker.next_action()
        self._last_action = action
        return action

    @torch.no_grad()
    def _remember(self, obs: Mapping[str, Any]) -> None:
        """Notice what is seen at this tick, and plan if it is time to."""
        batch = batch_of(obs, None, self._contract, self.device, self._last_action)
        command = torch.zeros(1, self.spaces.action_dim, device=self.device)
        if self._last_action is not None:
            last = torch.from_numpy(self._last_action).to(self.device)
            command = self.normalizer.normalize_actions(last[None])
        features = self.encode({**batch, EARLIER: NextTick(command)})
        if self.chunker.wants_chunk:
            chunk = self.normalizer.denormalize_actions(self._sample(features, self._dice))
            self.chunker.add(chunk[0].cpu().numpy())

    def act(self, obs: Mapping[str, Any]) -> list[NDArray[Any]]:
        """The action of this tick, one array [N+1] for each arm, gripper last.

        Behind them comes one for each action signal, with its dtype and shape.

        Args:
            obs: an environment's observation with its ``instruction``.
        """
        joined = self.select_action(obs)
        if self._contract is None:
            return np.split(joined, np.cumsum(self.spaces.actions)[:-1])
        return self._contract.split_command(joined)

    def reset(self) -> None:
        """Begin a new episode."""
        self.chunker.reset()
        if self.recollection is not None:
            self.recollection.reset()
        self._last_action = None
        self._dice = Generator().manual_seed(_SEED) if self._draws_anew else None

    def probe(self, batch: Mapping[str, Any]) -> Tensor:
        """What loading a checkpoint computes again, to prove that it is the policy saved."""
        predicted: Tensor = self.forward(batch)["predicted_actions"]
        return predicted

    def adjust(self, config: PolicyConfig) -> None:
        """Go by those settings of ``config`` that are ``adjustable``, and begin a new episode."""
        for head in self._heads:
            head.adjust(config.head)
        self.set_execution(config.execution)

    def set_execution(self, execution: ExecutionConfig) -> None:
        """Execute chunks differently from now on, and begin a new episode."""
        choices = tuple(self.spaces.choices)
        self.chunker = ActionChunker(execution, self.config.chunk_size, choices)
        self._draws_anew = execution.fresh_noise
        self.reset()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.normalizer.action_center.device


def is_policy(kind: Any) -> TypeGuard[type[Policy]]:
    """Whether a registered model is a :class:`Policy`; it may be any class or function."""
    return isinstance(kind, type) and issubclass(kind, Policy)


def policy_kind(name: str) -> type[Policy]:
    """The policy behind a name; of any other module the one that adapts it.

    Raises:
        RegistryError: there is no such model, or it can be no policy.
    """
    kind: Any = MODELS.get(name)
    if is_policy(kind):
        return kind
    if isinstance(kind, type) and issubclass(kind, nn.Module) and hasattr(kind, "predict"):
        from teamvla.models.adapter import AdaptedModel  # it is a Policy itself

        return AdaptedModel
    raise RegistryError(
        f"model {name!r}",
        "a Policy, or an nn.Module with forward and predict",
        f"{getattr(kind, '__name__', kind)}, which is neither",
        "docs/models.md tells how to write one.",
    )
