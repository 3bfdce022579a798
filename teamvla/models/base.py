"""What every policy is: settings, the interface, and how one is built.

Shapes: B batch, K chunk, V cameras, A arms, D joined vector (each arm's joints, its gripper).
"""

from __future__ import annotations

import builtins
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AliasChoices, Field
from torch import Tensor, nn

from teamvla.config import Settings
from teamvla.contract import Contract
from teamvla.errors import ConfigError, ContractError
from teamvla.models.chunking import ActionChunker, ExecutionConfig
from teamvla.models.losses import ImitationLoss, LossConfig
from teamvla.models.normalization import NormalizationConfig, Normalizer
from teamvla.registry import Registry
from teamvla.seeds import Domain, integer

Array = NDArray[Any]

MODELS: Registry[type[nn.Module]] = Registry(
    "model",
    {"single_brain": "teamvla.models.vla_singlebrain:SingleBrainVLA"},
    "teamvla.models",
)


class PolicyConfig(Settings):
    """Settings that all policies share; ``type`` decides whose are the others."""

    type: str = Field(default="single_brain", description="Name of the model.")
    chunk_size: int = Field(
        default=16,
        ge=1,
        validation_alias=AliasChoices("chunk_size", "action_horizon", "horizon"),
        description="K: how many actions are predicted at once.",
    )
    normalization: NormalizationConfig = NormalizationConfig()
    execution: ExecutionConfig = ExecutionConfig()

    @classmethod
    def choose(cls, data: dict[str, Any]) -> builtins.type[Settings]:
        """The settings class of the model that ``type`` names."""
        name = data.get("type", cls.model_fields["type"].default)
        kind = MODELS.get(str(name))
        return cast(builtins.type[Settings], getattr(kind, "Config", cls))

    @classmethod
    def variants(cls) -> list[builtins.type[Settings]]:
        kinds = [getattr(MODELS.get(name), "Config", cls) for name in MODELS]
        return cast(list[builtins.type[Settings]], list(dict.fromkeys(kinds)))


class Policy(nn.Module, ABC):
    """Observations to actions, with everything before and after the network.

    Normalisation, the gripper's sigmoid and the execution of chunks are part of the
    policy and travel with it. A subclass sets :attr:`Config` and writes :meth:`forward`.
    All actions that come out are in the units of the contract.

    Args:
        config: settings of the subclass.
        contract: what the numbers mean; decides arms, joints and cameras.
        statistics: of the training split, or None for no normalisation.
        loss: weights of the loss.
    """

    Config: ClassVar[type[PolicyConfig]]

    def __init__(
        self,
        config: PolicyConfig,
        contract: Contract,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
    ) -> None:
        super().__init__()
        self.config, self.contract = config, contract
        self.normalizer = Normalizer(config.normalization, contract, statistics)
        self.criterion = ImitationLoss(loss or LossConfig(), contract)
        self._last_action: NDArray[np.float32] | None = None
        self.arm_sizes = [arm.num_joints + 1 for arm in contract.arms]
        self.set_execution(config.execution)

    @abstractmethod
    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Predict chunks for a batch.

        Args:
            batch: ``observations`` {``image`` [B,V,C,H,W] uint8 or float 0..1, ``state``
                [B,D]} and ``language`` list of B instructions.

        Returns:
            ``predicted_actions`` [B,K,D] and ``actions`` (the same split by arm, [B,K,N+1]
            each) in contract units, ``logits`` [B,K,A] of the grippers, ``aux`` with
            ``normalized_actions`` [B,K,D].
        """

    def loss(
        self, batch: Mapping[str, Any], output: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """``loss`` and its parts, scalars.

        Args:
            batch: as for :meth:`forward`, with ``actions`` [B,K,D] in contract units and
                ``action_is_pad`` bool [B,K] (nothing is padding if it is left out).
            output: what ``forward(batch)`` gave, if it has been called already.
        """
        output = self(batch) if output is None else output
        target = batch["actions"]
        if target.shape != output["predicted_actions"].shape:
            raise _other_chunk(output["predicted_actions"].shape, target.shape)
        is_pad = batch.get("action_is_pad")
        if is_pad is None:
            is_pad = torch.zeros(target.shape[:2], dtype=torch.bool, device=target.device)
        losses: dict[str, Tensor] = self.criterion(
            output["predicted_actions"],
            output["aux"]["normalized_actions"],
            output["logits"],
            target,
            self.normalizer.normalize_actions(target),
            is_pad,
        )
        return losses

    @torch.no_grad()
    def predict_action_chunk(
        self, obs: Mapping[str, Any], language: str | Sequence[str] | None = None
    ) -> Tensor:
        """The next K actions [B,K,D].

        Args:
            obs: one observation of an environment (NumPy arrays by field name), or batched
                tensors ``image`` and ``state``.
            language: instruction(s); left out, the observation's own ``instruction``.
        """
        predicted: Tensor = self(self._prepare_batch(obs, language))["predicted_actions"]
        return predicted

    def predict(
        self, obs: Mapping[str, Any], language: str | Sequence[str] | None = None
    ) -> Tensor:
        """:meth:`predict_action_chunk`, without the chunk dimension if K is 1."""
        chunk = self.predict_action_chunk(obs, language)
        return chunk.squeeze(1) if self.config.chunk_size == 1 else chunk

    def select_action(self, obs: Mapping[str, Any]) -> NDArray[np.float32]:
        """The joined action [D] of this tick, by the mode of execution."""
        state = self._state_of(obs)
        self.chunker.observe(state)
        if self.chunker.wants_chunk:
            self.chunker.add(self.predict_action_chunk(obs)[0].cpu().numpy())
        action = self.chunker.next_action()
        self._last_action = action
        return action

    def act(self, obs: Mapping[str, Any]) -> list[NDArray[np.float32]]:
        """The action of this tick, one array [N+1] for each arm, gripper last.

        Args:
            obs: an environment's observation with its ``instruction``.
        """
        ends = np.cumsum(self.arm_sizes)[:-1]
        return [np.ascontiguousarray(part) for part in np.split(self.select_action(obs), ends)]

    def reset(self) -> None:
        """Begin a new episode."""
        self.chunker.reset()
        self._last_action = None

    def set_execution(self, execution: ExecutionConfig) -> None:
        """Execute chunks differently from now on, and begin a new episode."""
        self.chunker = ActionChunker(execution, self.config.chunk_size)
        self.reset()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.normalizer.action_center.device

    def _prepare_batch(
        self, obs: Mapping[str, Any], language: str | Sequence[str] | None = None
    ) -> dict[str, Any]:
        """A batch for :meth:`forward` from an environment's observation or from tensors."""
        if "state" in obs or "image" in obs:
            observations = {
                key: value.to(self.device) for key, value in obs.items() if torch.is_tensor(value)
            }
        else:
            observations = self._tensors_of(obs)
        language = obs.get("instruction", "") if language is None else language
        rows = next(iter(observations.values())).shape[0]
        texts = [language] * rows if isinstance(language, str) else list(language)
        return {"observations": observations, "language": texts}

    def _tensors_of(self, obs: Mapping[str, Any]) -> dict[str, Tensor]:
        tensors = {"state": torch.from_numpy(self._state_of(obs))[None].to(self.device)}
        if self.contract.cameras:
            pictures = np.stack([_field(obs, camera.field) for camera in self.contract.cameras])
            tensors["image"] = torch.from_numpy(pictures).permute(0, 3, 1, 2)[None].to(self.device)
        return tensors

    def _state_of(self, obs: Mapping[str, Any]) -> NDArray[np.float32]:
        """Measured state [D]; where the opening is not measured, the last commanded one."""
        parts, end = [], 0
        for arm in self.contract.arms:
            end += arm.num_joints + 1
            last = 0.0 if self._last_action is None else self._last_action[end - 1]
            parts += [_field(obs, f"q_{arm.name}"), [obs.get(f"grip_q_{arm.name}", last)]]
        state = np.concatenate([np.asarray(part, np.float32).reshape(-1) for part in parts])
        if state.shape != (end,):
            raise ContractError("observation", f"{end} joints and grippers", f"{len(state)}")
        return state


def build_policy(
    config: PolicyConfig,
    contract: Contract,
    statistics: Mapping[str, Any] | None = None,
    loss: LossConfig | None = None,
    *,
    seed: int = 0,
) -> Policy:
    """A policy with fresh weights, which depend on ``seed`` and nothing else.

    Args:
        config: settings; their ``type`` names the model.
        contract: what the numbers of data and environment mean.
        statistics: normalisation statistics of the training split.
        loss: weights of the loss.

    Raises:
        RegistryError: there is no such model.
        ContractError: the statistics do not fit the contract.
    """
    kind = cast(type[Policy], MODELS.get(config.type))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer(seed, Domain.INITIALISE))
        return kind(config, contract, statistics, loss)


def _other_chunk(predicted: torch.Size, given: torch.Size) -> ConfigError:
    return ConfigError(
        "batch['actions']",
        f"chunks of shape {tuple(predicted[1:])}",
        f"{tuple(given[1:])}",
        "Set model.chunk_size and dataset.chunk_size alike, and take data of the same contract.",
    )


def _field(obs: Mapping[str, Any], name: str) -> Array:
    if name not in obs:
        raise ContractError("observation", f"field {name!r}", f"{', '.join(sorted(obs))}")
    return np.asarray(obs[name])
