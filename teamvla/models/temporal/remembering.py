"""Policies that may recall earlier steps, by configuration.

Shapes: B batch, N steps, V cameras, S state, C width of what is noticed of a step, E of what is
recalled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.config.bytype import ByType
from teamvla.errors import ConfigError
from teamvla.models.base import Policy, PolicyConfig
from teamvla.models.encoders.vision import THUMBNAIL, thumbnails
from teamvla.models.features import Sensed
from teamvla.models.observations import observed
from teamvla.models.registries import TEMPORAL_REGISTRY
from teamvla.models.temporal.base import TemporalConfig
from teamvla.models.temporal.recollection import EARLIER, RECALLED, Recollection


class RememberingConfig(PolicyConfig):
    """Settings of :class:`RememberingPolicy`."""

    temporal: Annotated[
        TemporalConfig | None, ByType(TEMPORAL_REGISTRY, "memory", optional=True)
    ] = Field(default=None, description="What is known of earlier steps; null: nothing.")

    @property
    def learns_from_sequences(self) -> str | None:
        """A policy that remembers needs what comes before."""
        return None if self.temporal is None else "model.temporal looks back"


class RememberingPolicy(Policy):
    """Base of policies that recall earlier steps where ``config.temporal`` says by what.

        pictures [N,V,C,H,W], state [N,S], of earlier steps -> temporal -> recalled [N,E]

    What is noticed of a step for later are thumbnails of the pictures, and if wanted the state.
    Not what the encoder makes of them: colours lie far apart in pixels, and in features that
    nothing has yet taught to tell them apart they do not.
    """

    config: RememberingConfig

    def build_recollection(self, sees: bool, feels: bool) -> None:
        """Make :attr:`recollection`, if the settings have one.

        Args:
            sees: whether there are pictures to be noticed.
            feels: whether there is a state.

        Raises:
            ConfigError: there is neither.
        """
        config = self.config.temporal
        if config is None:
            return
        self.notices_pictures = sees
        self.notices_state = feels and (config.state or not sees)
        size = self._thumbnails_size if sees else 0
        size += self.spaces.state_dim if self.notices_state else 0
        if not size:
            expected = "pictures or a state to remember"
            raise ConfigError("model.temporal", expected, "a policy that has neither")
        self.recollection = Recollection(config, size, self.spaces.action_dim)
        self.steps_learned = config.steps

    def build_memory_token(self, width: int) -> None:
        """Make :attr:`from_memory`, if there is a memory: for :meth:`memory_tokens` of a width."""
        if self.recollection is not None:
            self.from_memory = nn.Linear(self.recollection.output_dim, width)

    def memory_tokens(self, recalled: Mapping[str, Sensed]) -> list[Tensor]:
        """What is recalled as one more token [N,1,width] for a language model; none without it."""
        return [self.from_memory(part.vector).unsqueeze(1) for part in recalled.values()]

    def recalled(self, batch: Mapping[str, Any]) -> dict[str, Sensed]:
        """What is recalled at the steps of a batch, under its name; empty without a memory."""
        if self.recollection is None:
            return {}
        after = batch.get(EARLIER)
        return {RECALLED: self.recollection(self._noticed, batch["observations"], after)}

    def require_no_memory(self) -> None:
        """ConfigError if there is one, for which a published layout has no names."""
        if self.config.temporal is not None:
            expected = "null, as published models have no memory"
            raise ConfigError("model.temporal", expected, repr(self.config.temporal.type))

    def _noticed(self, observations: Mapping[str, Tensor]) -> Tensor:
        """What is noticed of steps for later [N,C]."""
        parts = []
        if self.notices_state:
            state = observed(observations, "state").float()
            parts.append(self.normalizer.normalize_state(state))
        if self.notices_pictures:
            parts.append(self._glanced(observations))
        return torch.cat(parts, dim=1)

    def _glanced(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Thumbnails of the pictures in a row; 0 where they are missing."""
        if "image" in observations:
            return thumbnails(observations["image"]).flatten(1)
        rows = next(iter(observations.values())).shape[0]
        return torch.zeros(rows, self._thumbnails_size, device=self.device)

    @property
    def _thumbnails_size(self) -> int:
        return len(self.spaces.cameras) * self.spaces.picture[0] * THUMBNAIL**2
