"""A model of the world as a policy: it learns what commands lead to, and plans in it.

Shapes: B batch, S steps of a sequence, T of them that the model takes (every ``action_repeat``),
N candidates, H steps ahead, A action, V cameras.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AliasChoices, Field, model_validator
from torch import Generator, Tensor

from teamvla.contract import Contract
from teamvla.errors import ConfigError, ContractError
from teamvla.models.base import Policy, PolicyConfig
from teamvla.models.chunking import ExecutionConfig
from teamvla.models.features import Features
from teamvla.models.losses import LossConfig
from teamvla.models.observations import batch_of
from teamvla.models.spaces import Spaces
from teamvla.models.world.decoder import (
    ObservationDecoder,
    ObservationEncoder,
    SensesConfig,
    shrunk,
)
from teamvla.models.world.objective import WorldLossConfig, world_loss
from teamvla.models.world.planning import Planner, PlannerConfig, total_return
from teamvla.models.world.predictors import (
    ContinuationPredictor,
    PredictorConfig,
    RewardPredictor,
    symlog,
)
from teamvla.models.world.rssm import RSSM, LatentState, RSSMConfig
from teamvla.models.world.sequences import Windows

#: Seed of the planner's candidates: the same observations give the same commands anywhere.
_SEED = 0


class WorldModelConfig(PolicyConfig):
    """Settings of :class:`WorldModel`."""

    type: Literal["world_model"] = Field(default="world_model", description="Learns, and plans.")
    chunk_size: Literal[1] = Field(
        default=1,
        validation_alias=AliasChoices("chunk_size", "action_horizon", "horizon"),
        description="It gives one command at a time.",
    )
    head: None = Field(default=None, description="It plans.")  # type: ignore[assignment]
    execution: ExecutionConfig = ExecutionConfig(replan_every=1)
    action_repeat: int = Field(
        default=1, ge=1, description="Control steps that make one step of the model and the plan."
    )
    senses: SensesConfig = SensesConfig()
    rssm: RSSMConfig = RSSMConfig()
    predictors: PredictorConfig = PredictorConfig()
    loss: WorldLossConfig = WorldLossConfig()
    planner: PlannerConfig = PlannerConfig()

    ADJUSTABLE: ClassVar[tuple[str, ...]] = ("planner",)
    NEEDED_FIELDS: ClassVar[tuple[str, ...]] = ("reward",)

    @property
    def learns_from_sequences(self) -> str:
        """A model of the world learns what comes of commands."""
        return "a world model learns what comes next"

    @model_validator(mode="after")
    def _has_no_chunks(self) -> Self:
        if self.execution != ExecutionConfig(replan_every=1):
            raise ValueError("execution: there are no chunks; action_repeat tells when it plans")
        return self


@dataclass(frozen=True)
class Imagined:
    """What the model says of states; in contract units.

    Attributes:
        state: [...,S] or None.
        image: [...,v,C,P,P] in 0..1 or None, shrunk to ``senses.picture_size``.
        reward: [...], of the command that led there.
        goes_on: [...], the probability that the episode does.
    """

    state: Tensor | None
    image: Tensor | None
    reward: Tensor
    goes_on: Tensor


class WorldModel(Policy):
    """Learns from recorded sequences what commands lead to, and acts by planning in that.

        observation -> encoder -> RSSM -> decoder: the observation again
          command ------------------+---> reward, continuation

    It is trained on sequences with their rewards (``dataset.sequence_length``), from experts
    and from explorers that make mistakes: a planner goes where the model promises most, and
    would find the places of which nothing was seen.

    Args:
        config, contract, statistics, loss: see :class:`teamvla.models.base.Policy`. Geometric
            losses are for policies that imitate, and are not computed.
    """

    Config = WorldModelConfig
    config: WorldModelConfig
    action_mean: Tensor
    action_std: Tensor

    def __init__(
        self,
        config: WorldModelConfig,
        contract: Contract | Spaces,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
    ) -> None:
        super().__init__(config, contract, statistics, loss)
        self.geometry = None
        senses = config.senses
        state_dim = self.spaces.state_dim if senses.use_state else 0
        channels = self.spaces.picture[0] * self._cameras()
        self.encoder = ObservationEncoder(senses, state_dim, channels)
        self.rssm = RSSM(config.rssm, self.spaces.action_dim, self.encoder.dim)
        width = self.rssm.features
        targets = self._target_size()
        self.decoder = ObservationDecoder(width, senses, state_dim, channels, targets)
        self.reward = RewardPredictor(width, config.predictors)
        self.continuation = ContinuationPredictor(width, config.predictors)
        mean, std = self._action_statistics(statistics)
        self.register_buffer("action_mean", mean)
        self.register_buffer("action_std", std)
        self.set_planner(config.planner)

    def _cameras(self) -> int:
        """How many cameras are looked at; ConfigError for one that is not there."""
        there, chosen = len(self.spaces.cameras), self.config.senses.cameras
        if chosen is None:
            return there
        if wrong := [place for place in chosen if not 0 <= place < there]:
            raise ConfigError("model.senses.cameras", f"places below {there}", f"{wrong}")
        return len(chosen)

    def _target_size(self) -> int:
        """Length of the joined targets; ConfigError for one that the contract does not have."""
        signals = () if self._contract is None else self._contract.signals
        sizes = {s.field: s.size for s in signals if s.role == "target" and not s.varies}
        if wrong := [name for name in self.config.senses.targets if name not in sizes]:
            known = ", ".join(sizes) or "none, as there are no target signals"
            raise ConfigError("model.senses.targets", known, ", ".join(wrong))
        return sum(sizes[name] for name in self.config.senses.targets)

    def _action_statistics(self, statistics: Mapping[str, Any] | None) -> tuple[Tensor, Tensor]:
        """Mean and deviation [A] of the commands in the data, normalised."""
        size = self.spaces.action_dim
        told = (statistics or {}).get("actions", {})
        if not {"mean", "std"} <= {*told}:
            return torch.zeros(size), torch.full((size,), 0.5)
        mean = self.normalizer.normalize_actions(torch.as_tensor(told["mean"]).float())
        return mean, torch.as_tensor(told["std"]).float() / self.normalizer.action_scale

    # ---- learning ----

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``loss`` and its parts, scalars.

        Args:
            batch: sequences: ``observations`` {``state`` [B,S,·], ``image`` [B,S,V,C,H,W]},
                ``targets`` {field: [B,S,...]}, ``actions`` [B,S,1,A], ``reward`` [B,S] and
                ``observation_is_pad`` [B,S].

        Raises:
            ConfigError: they are no sequences, or without rewards.
        """
        seen = self._windows(batch)
        observed = self._observed(seen.observations)
        if self.config.senses.targets:
            observed["targets"] = symlog(seen.observations["targets"])
        believed, expected = self.rssm.observe(self.encoder(observed), seen.actions)
        return world_loss(self, believed, expected, observed, seen)

    # ---- looking and imagining ----

    def observe(self, batch: Mapping[str, Any]) -> LatentState:
        """What is believed [B,T,...] along sequences; see :meth:`loss` for the batch."""
        return self._along(self._windows(batch, rewards=False))

    def _along(self, seen: Windows) -> LatentState:
        observed = self._observed(seen.observations)
        return self.rssm.observe(self.encoder(observed), seen.actions)[0]

    def imagine(
        self, state: LatentState, actions: Tensor, generator: Generator | None = None
    ) -> LatentState:
        """The states [B,H,...] after each of ``actions`` [B,H,A] in contract units, unseen.

        Args:
            state: where it begins, [B,...].
            actions: one for each step of the model, carried out ``action_repeat`` times.
            generator: draws the stochastic states; without one they are the most likely.
        """
        return self.rssm.imagine(state, self.normalizer.normalize_actions(actions), generator)

    def decode(self, states: LatentState) -> Imagined:
        """What is seen and earned in states, in contract units."""
        features = states.features
        seen = self.decoder(features)
        state, image = seen.get("state"), seen.get("image")
        if state is not None:
            state = state * self.normalizer.state_std + self.normalizer.state_mean
        if image is not None:
            image = image.unflatten(-3, (-1, self.spaces.picture[0])) + 0.5
        return Imagined(state, image, self.reward(features), self.continuation(features))

    def _windows(self, batch: Mapping[str, Any], rewards: bool = True) -> Windows:
        if rewards and "reward" not in batch:
            raise ConfigError(
                "batch['reward']", "the rewards [B,S]", "none",
                "Put reward into dataset.fields.",
            )  # fmt: skip
        repeat, skipped = self.config.action_repeat, 0
        if rewards:
            batch = self._with_targets(batch)
        if rewards and self.training and repeat > 1:  # so that every observation is learned from
            spare = batch["actions"].shape[1] - repeat
            skipped = int(torch.randint(min(repeat, max(0, spare) + 1), ()))
        windows = Windows.of(batch, repeat, skipped)
        return windows.with_actions(self.normalizer.normalize_actions(windows.actions))

    def _with_targets(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch with its targets, joined, among what is observed."""
        names, given = self.config.senses.targets, batch.get("targets", {})
        if missing := [name for name in names if name not in given]:
            raise ContractError("batch['targets']", f"{missing[0]!r}", ", ".join(given) or "none")
        if not names:
            return batch
        joined = torch.cat([given[name].float().flatten(2) for name in names], -1)
        return {**batch, "observations": {**batch["observations"], "targets": joined}}

    def _observed(self, observations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` normalised and ``image`` shrunk, as the encoder takes them."""
        observed = {}
        parts = {"state": self.encoder.state, "image": self.encoder.pictures}
        for name in (name for name, part in parts.items() if part is not None):
            if name not in observations:
                got = ", ".join(sorted(observations))
                raise ContractError("batch['observations']", f"{name!r}", got)
            observed[name] = observations[name]
        if "state" in observed:
            observed["state"] = self.normalizer.normalize_state(observed["state"].float())
        if "image" in observed:
            observed["image"] = shrunk(observed["image"], self.config.senses)
        return observed

    # ---- acting ----

    def adjust(self, config: PolicyConfig) -> None:
        """Act by the settings of ``config`` that may differ between training and evaluation."""
        assert isinstance(config, WorldModelConfig)
        self.set_planner(config.planner)

    def set_planner(self, planner: PlannerConfig) -> None:
        """Plan differently from now on, and begin a new episode."""
        self._settings = planner
        self.reset()

    def reset(self) -> None:
        """Begin a new episode."""
        super().reset()
        self._belief: LatentState | None = None
        self._planner: Planner | None = None
        self._random: Generator | None = None
        self._ticks = 0

    def select_action(self, obs: Mapping[str, Any]) -> NDArray[np.float32]:
        """The joined command [A] of this tick; planned anew every ``action_repeat`` ticks."""
        if self._ticks % self.config.action_repeat == 0:
            self._last_action = self._replan(obs)
        self._ticks += 1
        assert self._last_action is not None
        return self._last_action

    @torch.no_grad()
    def _replan(self, obs: Mapping[str, Any]) -> NDArray[np.float32]:
        batch = batch_of(obs, None, self._contract, self.device, self._last_action)
        seen = self.encoder(self._observed(batch["observations"]))
        if self._belief is None or self._last_action is None:
            expected = self.rssm.initial(1)
        else:
            done = torch.from_numpy(self._last_action).to(self.device)[None]
            normal = self.normalizer.normalize_actions(done)
            expected = self.rssm.imagine_step(self._belief, normal)
        self._belief = self.rssm.observe_step(expected, seen)
        if self._planner is None or self._random is None:
            self._planner, self._random = self._fresh_planner()
        return self._command(self._belief, self._planner, self._random)[0].cpu().numpy()

    def _fresh_planner(self) -> tuple[Planner, Generator]:
        random = Generator(self.device).manual_seed(_SEED)
        return Planner(self._settings, self.action_mean, self.action_std), random

    def _command(self, belief: LatentState, planner: Planner, random: Generator) -> Tensor:
        """The first command [1,A] of the best plan from ``belief`` [1,...], contract units."""
        plan = planner.plan(lambda candidates: self.returns(belief, candidates), random)
        return self.normalizer.denormalize_actions(plan[:1])

    def returns(self, belief: LatentState, candidates: Tensor) -> Tensor:
        """What candidates [N,H,A], normalised, are expected to bring from ``belief`` [1,...]."""
        rows = candidates.shape[0]
        state = belief.map(lambda part: part.expand(rows, -1))
        features = self.rssm.imagine(state, candidates).features
        return total_return(self.reward(features), self.continuation(features), self._settings)

    def encode(self, batch: Mapping[str, Any]) -> list[Features]:
        """What is believed at the end of each sequence, or of a single observation."""
        return [Features.of(self._belief_of(batch).features)]

    def _belief_of(self, batch: Mapping[str, Any]) -> LatentState:
        """The belief [B,...] behind all that a batch shows."""
        if "observation_is_pad" in batch and "actions" in batch:
            seen = self._windows(batch, rewards=False)
            last = seen.there.sum(1).sub(1).clamp_min(0)
            rows = torch.arange(len(last), device=last.device)
            return self._along(seen).map(lambda part: part[rows, last])
        observations = batch["observations"]
        if self._is_sequence(observations):  # without its actions: the last step alone
            observations = {name: value[:, -1] for name, value in observations.items()}
        seen = self.encoder(self._observed(observations))
        return self.rssm.observe_step(self.rssm.initial(seen.shape[0]), seen)

    def _is_sequence(self, observations: Mapping[str, Tensor]) -> bool:
        dimensions = {"state": 3, "image": 6}
        return any(observations[k].dim() == n for k, n in dimensions.items() if k in observations)

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The commands that are planned from a batch of observations or sequences.

        Returns:
            ``predicted_actions`` [B,1,A] and ``actions`` (the same by parts) in contract units.
            Given sequences with rewards also ``loss`` and its parts, without gradients.
        """
        belief = self._belief_of(batch)
        rows = belief.deterministic.shape[0]
        planned = []
        for row in range(rows):
            start = belief.map(partial(_row, row))
            planned.append(self._command(start, *self._fresh_planner()))
        predicted = torch.stack(planned)
        output = {
            "predicted_actions": predicted,
            "actions": torch.split(predicted, list(self.spaces.actions), dim=-1),
        }
        return output | (self.loss(batch) if "reward" in batch else {})

    def probe(self, batch: Mapping[str, Any]) -> Tensor:
        """What loading a checkpoint runs again: states after steady commands, [B,F].

        A plan is no good for that: rounding can make another candidate the best.
        """
        belief = self._belief_of(batch)
        shape = (belief.deterministic.shape[0], self._settings.horizon, self.spaces.action_dim)
        states = self.rssm.imagine(belief, torch.zeros(shape, device=self.device))
        told: Mapping[str, Tensor] = self.decoder(states.features[:, -1])
        return told.get("state", self.reward(states.features))

    def _predicted(self, batch: Mapping[str, Any], generator: Generator | None = None) -> Tensor:
        """See :meth:`Policy._predicted`: nothing before the batch is known."""
        predicted: Tensor = self.forward(batch)["predicted_actions"]
        return predicted


def _row(place: int, values: Tensor) -> Tensor:
    return values[place : place + 1]
