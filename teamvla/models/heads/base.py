"""What every action head is: it owns its loss and its sampling.

Heads work on normalised actions: what was seen of a joint spans [-1, 1], an open gripper is -1,
a closed one 1. Shapes: B batch, K chunk, D action.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from teamvla.config import Settings
from teamvla.errors import ConfigError
from teamvla.models.features import Features
from teamvla.models.losses import gripper_bce, huber_loss, masked_mean


class HeadConfig(Settings):
    """Settings that all heads share; ``type`` decides whose are the others."""

    type: str = Field(description="Name of the head.")

    #: what may differ between training and evaluation; see :meth:`ActionHead.adjust`
    ADJUSTABLE: ClassVar[tuple[str, ...]] = ()

    @property
    def takes_any_chunk(self) -> bool:
        """Whether chunks may be longer than every episode: it has learned what comes then."""
        return False


@dataclass(frozen=True)
class HeadLoss:
    """What a head lost on a batch.

    Attributes:
        total: scalar that is minimised in training; in evaluation what ranks checkpoints.
        parts: scalars for the log, unweighted, by name. Heads that predict actions weigh and
            add them up to the total; others need not.
        predicted: normalised actions [B,K,D] that gradients flow through, or None if the
            head predicts none while it is trained.
    """

    total: Tensor
    parts: dict[str, Tensor]
    predicted: Tensor | None = None

    @staticmethod
    def joined(lost: Sequence[HeadLoss], sizes: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Total and parts of several heads, each weighted by how many numbers it gives."""
        weighted = [(size / sum(sizes), one) for size, one in zip(sizes, lost, strict=True)]
        parts: dict[str, Tensor] = {}
        for share, one in weighted:
            for name, part in one.parts.items():
                parts[name] = parts.get(name, torch.zeros(())) + share * part
        total = sum((share * one.total for share, one in weighted), torch.zeros(()))
        return total, parts


class ActionHead(nn.Module, ABC):
    """Features to a chunk of normalised actions.

    Args:
        input_dim: width of the features.
        action_dim: D.
        chunk_size: K. ``horizon`` is accepted too.
        grippers: places in an action that are grippers, which are open or closed.
        choices: place -> how many choices there are, where a number is one of several moves
            0..C-1, which lie evenly in [-1, 1].
        config: settings; or give them one by one as ``settings``.

    Raises:
        ConfigError: both spellings of ``chunk_size`` are given, or there are choices and it gives
            real numbers.
    """

    Config: ClassVar[type[HeadConfig]]
    #: whether it can only give actions in [-1, 1]
    bounded: bool = False

    def __init__(
        self,
        input_dim: int,
        action_dim: int,
        chunk_size: int = 1,
        *,
        grippers: Sequence[int] = (),
        choices: Mapping[int, int] | None = None,
        config: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.input_dim, self.action_dim = input_dim, action_dim
        # Subclasses pass on their default, 1: it may be no one's wish.
        if "horizon" in settings and chunk_size != 1:
            raise ConfigError("horizon: another spelling of chunk_size: give one of them")
        self.chunk_size = settings.pop("horizon", chunk_size)
        self.config: Any = self.Config(**settings) if config is None else config
        self.choices = dict(choices or {})
        if self.choices and not self.chooses:
            got = f"{self.config.type!r}, which gives real numbers"
            mend = "Take masked, or transformer with output: binned."
            raise ConfigError("model.head", "one that chooses among several moves", got, mend)
        self.grippers: Tensor
        is_gripper = torch.zeros(action_dim, dtype=torch.bool)
        is_gripper[list(grippers)] = True
        self.register_buffer("grippers", is_gripper, persistent=False)
        #: their places in ascending order, for who would otherwise ask the device for them
        self.gripper_places = tuple(sorted({place % action_dim for place in grippers}))

    def require_length(self, max_seq_len: int) -> None:
        """ConfigError unless a chunk has at most so many rows."""
        if self.chunk_size > max_seq_len:
            raise ConfigError(
                "model.head.max_seq_len", f"at least chunk_size {self.chunk_size}",
                f"{max_seq_len}", "Raise it, or predict shorter chunks.",
            )  # fmt: skip

    @property
    def chooses(self) -> bool:
        """Whether it can give one of several moves."""
        return False

    @abstractmethod
    def loss(self, features: Features, target: Tensor, is_pad: Tensor) -> HeadLoss:
        """Loss on demonstrated chunks.

        Args:
            features: of B observations.
            target: normalised actions [B,K,D]; what stands in padding changes nothing.
            is_pad: bool [B,K], True beyond the end of an episode; a chunk's first is never.
        """

    @abstractmethod
    def sample(self, features: Features | Tensor, generator: Generator | None = None) -> Tensor:
        """Normalised actions [B,K,D], float32.

        Args:
            features: of B observations; a tensor [B,input_dim] is taken for the summary.
            generator: draws the noise of heads that sample. Without one they use the same
                noise every time: a policy is then a function of what it sees, and a batch
                gets what its rows would get alone.
        """

    def adjust(self, config: HeadConfig) -> None:
        """Sample by those settings of ``config`` that are ``ADJUSTABLE``."""
        changed = {name: getattr(config, name) for name in config.ADJUSTABLE}
        self.config = self.config.model_copy(update=changed)

    def forward(
        self, features: Features | Tensor, target_actions: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``predicted_actions`` [B,K,D] (no K if it is 1), and given targets also ``loss``."""
        features = as_features(features)
        output = {"predicted_actions": self.squeezed(self.sample(features))}
        if target_actions is not None:
            target = target_actions.reshape(-1, self.chunk_size, self.action_dim)
            is_pad = torch.zeros(target.shape[:2], dtype=torch.bool, device=target.device)
            lost = self.loss(features, target, is_pad)
            output |= {**lost.parts, "loss": lost.total}
        return output

    def squeezed(self, actions: Tensor) -> Tensor:
        """[B,K,D], or [B,D] if K is 1."""
        return actions.squeeze(1) if self.chunk_size == 1 else actions

    def dice(self, target: Tensor) -> Generator | None:
        """What a loss draws from: in training the session's generator, else one by the target.

        A validation loss is then a function of weights and data alone, in which each batch has
        draws of its own, so that more of them tell it better.

        Args:
            target: of which nothing is padding, [B,K,D].
        """
        if self.training:
            return None
        seed = zlib.crc32(target.float().cpu().numpy().tobytes())
        return torch.Generator(self.grippers.device).manual_seed(seed)

    @staticmethod
    def steady(device: torch.device) -> Generator:
        """A generator that draws the same every time."""
        return torch.Generator(device).manual_seed(0)

    def random_times(self, rows: int, parts: int, dice: Generator | None) -> Tensor:
        """Random times [rows * parts] to train at, uniform in [0, 1).

        Those of one observation lie one in each of as many equal parts: each is uniform, and
        their mean loss scatters less than that of independent ones.
        """
        device = self.grippers.device
        start = torch.arange(parts, dtype=torch.float32, device=device)
        drawn = (start + torch.rand(rows, parts, generator=dice, device=device)) / parts
        # Rounding may reach 1.
        return drawn.flatten().clamp_max(1 - 2**-24)

    def noise(self, features: Features, generator: Generator | None, draws: int = 1) -> Tensor:
        """Standard normal [draws,B,K,D]: fresh, or without a generator the same for each row."""
        rows, device = features.summary.shape[0], features.summary.device
        if generator is not None:
            shape = (draws, rows, self.chunk_size, self.action_dim)
            return torch.randn(shape, generator=generator, device=generator.device).to(device)
        fixed = torch.Generator().manual_seed(0)
        one = torch.randn((draws, 1, self.chunk_size, self.action_dim), generator=fixed)
        return one.to(device).expand(-1, rows, -1, -1)


class HiddenSettings(Settings):
    """Settings of :func:`hidden_layers`."""

    hidden_dim: int = Field(default=256, ge=1, description="Width of the hidden layers.")
    n_layers: int = Field(default=0, ge=0, description="Hidden layers; 0 is one linear layer.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Rate behind each hidden layer.")


def hidden_layers(width: int, config: HiddenSettings) -> tuple[list[nn.Module], int]:
    """(linear -> GELU -> dropout) x n_layers for a vector of a width, and the width of the last."""
    layers: list[nn.Module] = []
    for _ in range(config.n_layers):
        layers += [nn.Linear(width, config.hidden_dim), nn.GELU(), nn.Dropout(config.dropout)]
        width = config.hidden_dim
    return layers, width


class RegressionConfig(HeadConfig):
    """Settings of heads that predict the actions themselves."""

    loss_type: Literal["huber", "l1", "mse"] = Field(
        default="huber", description="What is minimised: huber, l1 or mse."
    )
    huber_delta: float = Field(
        default=0.02,
        gt=0,
        description="huber: where square turns straight, in normalised units.",
    )
    gripper_weight: float = Field(
        default=0.05, ge=0, description="Weight of the cross-entropy of the grippers."
    )


class RegressionHead(ActionHead):
    """Base of heads that predict the actions themselves.

    Joints come as they are; a gripper's number is the logit of its being closed.
    """

    def finish(self, raw: Tensor) -> Tensor:
        """The network's output [...,D] to normalised actions."""
        return torch.where(self.grippers, raw.sigmoid() * 2 - 1, raw)

    def regression(self, raw: Tensor, target: Tensor, is_pad: Tensor) -> HeadLoss:
        """Loss of the network's output [B,K,D].

        loss_type(action) + gripper_weight * BCE(logits of the grippers)
        """
        # Slopes of 0 times what stands in padding are no 0 if it is NaN.
        target = hold_last(target, is_pad)
        predicted, config = self.finish(raw), self.config
        parts = {"action": self._distance(predicted, target, is_pad)}
        if config.gripper_weight and self.gripper_places:
            closed = (self._of_grippers(target) + 1) / 2
            parts["gripper"] = gripper_bce(self._of_grippers(raw), closed, is_pad)
        total = parts["action"] + config.gripper_weight * parts.get("gripper", 0.0)
        return HeadLoss(total, parts, predicted)

    def _of_grippers(self, actions: Tensor) -> Tensor:
        # One by one: a boolean mask would make the host wait for the device at each step.
        return torch.stack([actions[..., place] for place in self.gripper_places], dim=-1)

    def _distance(self, predicted: Tensor, target: Tensor, is_pad: Tensor) -> Tensor:
        if self.config.loss_type == "huber":
            return huber_loss(predicted, target, is_pad, self.config.huber_delta)
        kind = functional.l1_loss if self.config.loss_type == "l1" else functional.mse_loss
        return masked_mean(kind(predicted, target, reduction="none"), is_pad)


def as_features(features: Features | Tensor) -> Features:
    """Features; a tensor [B,D] becomes the summary and the only token."""
    return Features.of(features) if isinstance(features, Tensor) else features


def hold_last(target: Tensor, is_pad: Tensor) -> Tensor:
    """Chunks [B,K,D] with the last valid action in place of whatever stands in padding.

    What a network is shown of a target must not depend on what stands there.
    """
    last = (~is_pad).sum(1, keepdim=True).sub(1).clamp_min(0)
    rows = torch.arange(target.shape[1], device=target.device).minimum(last)
    return target.gather(1, rows.unsqueeze(-1).expand_as(target))
