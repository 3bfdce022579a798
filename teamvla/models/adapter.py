"""A registered module that only has ``forward`` and ``predict``, as a policy.

Shapes: B batch, K chunk, D joined action, V cameras.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from teamvla.contract import Contract
from teamvla.errors import ConfigError, ContractError
from teamvla.models.base import Policy, PolicyConfig
from teamvla.models.chunking import ChunkSize, ExecutionConfig
from teamvla.models.features import Features
from teamvla.models.heads.base import HeadLoss, hold_last
from teamvla.models.losses import LossConfig
from teamvla.models.registries import MODELS
from teamvla.models.spaces import Spaces


class AdaptedConfig(PolicyConfig):
    """Settings of :class:`AdaptedModel`."""

    chunk_size: ChunkSize = 1
    head: None = Field(  # type: ignore[assignment]
        default=None, description="The module has its own."
    )
    execution: ExecutionConfig = ExecutionConfig(replan_every=1)
    arguments: dict[str, Any] = Field(
        default={}, description="What its class is made with, besides the sizes that it asks for."
    )


class AdaptedModel(Policy):
    """Trains and runs any ``nn.Module`` with these two methods:

        forward(batch) -> {"loss": scalar, "predicted_actions": optional}
        predict(observations) or predict(observations, language=...) -> [B,D] or [B,K,D]

    Its class is made with those of ``state_dim``, ``action_dim``, ``chunk_size``, ``image_size``,
    ``image_channels`` and ``num_cameras`` that it takes, and with ``arguments``. It works on
    normalised numbers: ``state`` [B,S], ``image`` in 0..1 [B,V,C,H,W], without V if there is one
    camera, ``actions`` [B,K,D] in [-1, 1], without K if that is 1, rows beyond the end repeating
    the last, ``action_is_pad`` [B,K] and ``language``. Given predicted actions, the losses
    ``sync`` and ``collision`` are added.

    Args:
        config, contract, statistics, loss: see :class:`teamvla.models.base.Policy`.

    Raises:
        ConfigError: the class does not take its arguments.
    """

    Config = AdaptedConfig
    config: AdaptedConfig

    def __init__(
        self,
        config: AdaptedConfig,
        contract: Contract | Spaces,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
    ) -> None:
        super().__init__(config, contract, statistics, loss)
        kind: Callable[..., nn.Module] = MODELS.get(config.type)
        taken = _accepted(kind, _sizes(self.spaces, config.chunk_size)) | config.arguments
        try:
            self.model = kind(**taken)
        except TypeError as error:
            raise ConfigError(
                "model.arguments", f"what {config.type!r} takes", str(error)
            ) from None
        self._reads = bool(_accepted(self._module.predict, {"language": ""}))

    @property
    def _module(self) -> Any:
        return self.model

    def encode(self, batch: Mapping[str, Any]) -> list[Features]:
        """None: what the module makes of a batch stays inside it."""
        return []

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Predicted chunks, and given actions their loss; see :meth:`Policy.forward`."""
        predicted = self._predicted(batch)
        output = {
            "predicted_actions": predicted,
            "actions": torch.split(predicted, list(self.spaces.actions), dim=-1),
        }
        if "actions" in batch:
            output |= self.loss(batch) | {
                "predicted_actions": predicted.reshape(batch["actions"].shape)
            }
        return output

    def loss(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The module's loss and, where it predicts actions, ``sync`` and ``collision``."""
        target, is_pad = self._targets(batch)
        target = hold_last(target, is_pad)
        actions = self._squeezed(self.normalizer.normalize_actions(target))
        given = {**self._presented(batch), "actions": actions, "action_is_pad": is_pad}
        output = self._module(given)
        predicted = output.get("predicted_actions")
        whole = None if predicted is None else self._chunks(predicted).float()
        geometry = self._geometry_parts([HeadLoss(output["loss"], {}, whole)], target, is_pad)
        total = output["loss"]
        if self.geometry is not None:
            total = total + self.geometry.total(geometry)
        return {"loss": total, **geometry}

    def _predicted(self, batch: Mapping[str, Any], generator: Generator | None = None) -> Tensor:
        """See :meth:`Policy._predicted`; the module draws as it likes."""
        seen = self._presented(batch)
        words = {"language": seen["language"]} if self._reads else {}
        raw = self._module.predict(seen["observations"], **words)
        return self.normalizer.denormalize_actions(self._chunks(raw).float())

    def _presented(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Observations as the module gets them, and an instruction for each row."""
        observations = dict(batch["observations"])
        rows = next(iter(observations.values())).shape[0]
        if "state" in observations:
            state = observations["state"].float()
            observations["state"] = self.normalizer.normalize_state(state)
        if "image" in observations:
            image = observations["image"]
            scaled = image.float() / 255 if image.dtype == torch.uint8 else image.float()
            alone = len(self.spaces.cameras) == 1 and image.dim() == 5
            observations["image"] = scaled.squeeze(1) if alone else scaled
        return {"observations": observations, "language": batch.get("language", [""] * rows)}

    def _squeezed(self, chunks: Tensor) -> Tensor:
        return chunks.squeeze(1) if self.config.chunk_size == 1 else chunks

    def _chunks(self, given: Tensor) -> Tensor:
        """What the module gave as [B,K,D]; ContractError if it is something else."""
        chunks = given.unsqueeze(1) if given.dim() == 2 else given
        expected = (self.config.chunk_size, self.spaces.action_dim)
        if chunks.dim() != 3 or chunks.shape[1:] != expected:
            told = f"actions of shape [B,{expected[0]},{expected[1]}]"
            raise ContractError(f"model {self.config.type!r}", told, f"{list(given.shape)}")
        return chunks


def _sizes(spaces: Spaces, chunk_size: int) -> dict[str, int]:
    channels, height, _ = spaces.picture
    return {
        "state_dim": spaces.state_dim, "action_dim": spaces.action_dim, "chunk_size": chunk_size,
        "image_size": height, "image_channels": channels, "num_cameras": len(spaces.cameras),
    }  # fmt: skip


def _accepted(call: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Those arguments that ``call`` takes by name, or all if it takes any."""
    parameters = inspect.signature(call).parameters
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return offered
    return {name: value for name, value in offered.items() if name in parameters}
