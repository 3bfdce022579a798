"""Policies of encoders, a fusion and a head, each chosen by configuration.

Shapes: B batch, V cameras, N tokens, D width, S state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.config.bytype import ByType
from teamvla.contract import Contract
from teamvla.errors import ConfigError, ContractError
from teamvla.models.encoders.base import EncoderConfig, TextEncoder, VisionBackbone
from teamvla.models.encoders.language import CharacterConfig, build_text_encoder
from teamvla.models.encoders.sensors import SensorConfig, as_sensor
from teamvla.models.encoders.suite import SensorSuite, StandIn, build_encoders, kept
from teamvla.models.encoders.vision import ConvConfig, build_vision_encoder, forward_vision
from teamvla.models.features import Features, Modalities, Tokens
from teamvla.models.fusion.base import FusionConfig, Pictured
from teamvla.models.fusion.concat import ConcatConfig
from teamvla.models.losses import LossConfig
from teamvla.models.observations import observed, texts_of
from teamvla.models.registries import (
    ENCODER_REGISTRY,
    FUSION_REGISTRY,
    SENSOR_ENCODER_REGISTRY,
    TEXT_ENCODER_REGISTRY,
)
from teamvla.models.spaces import Spaces
from teamvla.models.temporal.recollection import RECALLED
from teamvla.models.temporal.remembering import RememberingConfig, RememberingPolicy


class SensingConfig(RememberingConfig):
    """Settings of :class:`SensingPolicy`."""

    vision: Annotated[EncoderConfig | None, ByType(ENCODER_REGISTRY, "cnn", optional=True)] = Field(
        default=ConvConfig(), description="Encoder of pictures; null: no look at them."
    )
    language: Annotated[
        EncoderConfig | None, ByType(TEXT_ENCODER_REGISTRY, "characters", optional=True)
    ] = Field(
        default=CharacterConfig(), description="Encoder of instructions; null: they are not read."
    )
    use_state: bool = Field(default=True, description="Whether joints and grippers are felt.")


class SensingPolicy(RememberingPolicy):
    """Base of policies that see, read and feel through encoders chosen by configuration.

        image [B,V,C,H,W] -> vision ---> tokens [B,V,N,D]
        language [B] ------> language -> tokens and mask
        state [B,S] -------> mean and deviation
        these, of earlier steps -> temporal -> recalled [B,E]

    Args:
        config, contract, statistics, loss: see :class:`teamvla.models.base.Policy`.
        vision, language: encoders to use in place of new ones.

    Raises:
        ConfigError: nothing is left that it could act on.
    """

    Config: ClassVar[type[SensingConfig]] = SensingConfig
    config: SensingConfig

    def __init__(
        self,
        config: SensingConfig,
        contract: Contract | Spaces,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
        *,
        vision: VisionBackbone | None = None,
        language: TextEncoder | None = None,
    ) -> None:
        super().__init__(config, contract, statistics, loss)
        self.vision = vision
        if vision is None and config.vision is not None and self.spaces.cameras:
            self.vision = build_vision_encoder(config.vision, self.spaces.picture)
        self.language = language
        if language is None and config.language is not None:
            self.language = build_text_encoder(config.language, statistics)
        self.feels = config.use_state and self.spaces.state_dim > 0
        parts = (self.vision, self.language, *self.wanted_sensors().values())
        if not self.feels and all(part is None for part in parts):
            expected = "a state, pictures, words or sensors to act on"
            raise ConfigError("model", expected, "none of them")
        self.build_recollection(self.vision is not None, self.feels)

    def wanted_sensors(self) -> dict[str, SensorConfig | None]:
        """Field -> settings of the encoder of a sensor; None where it is not looked at."""
        return {}

    def perceive(self, batch: Mapping[str, Any]) -> Modalities:
        """What the encoders make of a batch; None where the policy has no such input.

        Raises:
            ContractError: the batch lacks an input that the policy has, or has it for other rows.
        """
        observations = batch["observations"]
        rows = next(iter(observations.values())).shape[0]
        seen = Modalities(
            self._seen(observations), self._read(batch, rows), self._felt(observations)
        )
        return replace(seen, sensors=self.recalled(batch))

    def _seen(self, observations: Mapping[str, Tensor]) -> Tensor | None:
        if self.vision is None:
            return None
        images = observed(observations, "image", ", ".join(self.spaces.fields))
        images = images if images.dim() > 4 else images.unsqueeze(1)
        cameras, colours = len(self.spaces.cameras), self.spaces.picture[0]
        if images.dim() != 5 or images.shape[1:3] != (cameras, colours):
            expected = f"pictures of {cameras} cameras, {colours} channels: [B,V,C,H,W]"
            raise ContractError("observations['image']", expected, f"{tuple(images.shape)}")
        return forward_vision(self.vision, images)

    def _read(self, batch: Mapping[str, Any], rows: int) -> Tokens | None:
        if self.language is None:
            return None
        language = batch.get("language")
        return self.language.encode(texts_of("" if language is None else language, rows))

    def _felt(self, observations: Mapping[str, Tensor]) -> Tensor | None:
        if not self.feels:
            return None
        return self.normalizer.normalize_state(observed(observations, "state").float())


#: settings of a sensor's encoder, or none where it is not looked at
OfSensor = Annotated[SensorConfig | None, ByType(SENSOR_ENCODER_REGISTRY, "vector", optional=True)]


class ComposedConfig(SensingConfig):
    """Settings of :class:`ComposedPolicy`."""

    sensors: dict[str, OfSensor] | None = Field(
        default={}, description="Field -> encoder of a sensor; null: it is not looked at."
    )
    sensor_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Rate at which training goes without a sensor of a sample; all pictures "
        "count as one.",
    )
    missing_sensors: bool = Field(
        default=False, description="Whether a batch may lack sensors, or all pictures."
    )
    fusion: Annotated[FusionConfig, ByType(FUSION_REGISTRY, "concat")] = ConcatConfig()
    separate_heads: bool = Field(
        default=False,
        description="A head for each arm instead of one for both: heads that sample then choose "
        "for each arm alone.",
    )


class ComposedPolicy(SensingPolicy):
    """Encoders, a fusion and a head.

        pictures, text, state of SensingPolicy --+-> fusion -> features -> head
        sensors, by their fields ----------------+

    An input that a batch lacks or training dropped is a learned vector, which tells it from
    one that shows nothing.

    Args:
        config, contract, statistics, loss, vision, language: see :class:`SensingPolicy`.
        sensor_encoders: by field, in place of those of ``config.sensors`` or besides them.
    """

    Config: ClassVar[type[ComposedConfig]] = ComposedConfig
    config: ComposedConfig
    chooses = True

    def __init__(
        self,
        config: ComposedConfig,
        contract: Contract | Spaces,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
        *,
        sensor_encoders: Mapping[str, nn.Module] | None = None,
        **encoders: Any,
    ) -> None:
        super().__init__(config, contract, statistics, loss, **encoders)
        own = {name: as_sensor(module) for name, module in (sensor_encoders or {}).items()}
        wanted = self.wanted_sensors()
        built = {name: of for name, of in wanted.items() if name not in own}
        # By name: a checkpoint does not keep the order in which they stand in the settings.
        sensors = dict(sorted({**build_encoders(built, self.spaces.sensors), **own}.items()))
        if self.language is not None:
            for encoder in sensors.values():
                encoder.listen_to(self.language)
        missing, dropout = config.missing_sensors, config.sensor_dropout
        self.sensors = SensorSuite(sensors, dropout, missing)
        view, cameras = self.build_view()
        self.absent_pictures = None
        if view is not None:
            self._view = (cameras, view.num_tokens, view.dim)
            self.absent_pictures = StandIn(view.dim) if missing or dropout else None
        kind = FUSION_REGISTRY.get(config.fusion.type)
        state_dim = self.spaces.state_dim if self.feels else 0
        sized: dict[str, Any] = dict(sensors)
        if self.recollection is not None:
            sized[RECALLED] = self.recollection
        besides = {"sensors": sized} if sized else {}  # fusions of others may know none
        self.fusion = kind(config.fusion, view, cameras, self.language, state_dim, **besides)
        self.build_heads(self.fusion.dim, config.separate_heads)

    def wanted_sensors(self) -> dict[str, SensorConfig | None]:
        """See :meth:`SensingPolicy.wanted_sensors`."""
        return dict(self.config.sensors or {})

    def build_view(self) -> tuple[Pictured | None, int]:
        """Who makes the tokens of pictures that the fusion gets, and V of them."""
        return self.vision, len(self.spaces.cameras)

    def encode(self, batch: Mapping[str, Any]) -> list[Features]:
        """See :meth:`Policy.encode`."""
        features: Features = self.fusion(self.perceive(batch))
        return [features] * len(self.heads)

    def perceive(self, batch: Mapping[str, Any]) -> Modalities:
        """See :meth:`SensingPolicy.perceive`."""
        seen, observations = super().perceive(batch), batch["observations"]
        rows = next(iter(observations.values())).shape[0]
        pictures, mask = self.viewed(seen.pictures, rows)
        if self.absent_pictures is not None:
            pictures = self._with_absent(self.absent_pictures, pictures, rows)
        sensors = {**seen.sensors, **self.sensors(observations, rows, seen.text)}
        return replace(seen, pictures=pictures, pictures_mask=mask, sensors=sensors)

    def viewed(self, pictures: Tensor | None, rows: int) -> tuple[Tensor | None, Tensor | None]:
        """Tokens of pictures of B rows as the fusion gets them, if there are pictures.

        And their mask (see :class:`Modalities`), which is the same where there are none: what
        stands in for pictures that are missing is what stood in for those that were dropped.
        """
        return pictures, None

    def _with_absent(self, absent: StandIn, pictures: Tensor | None, rows: int) -> Tensor:
        """Tokens of pictures [B,V,N,D], replaced where there are none or they are dropped."""
        if pictures is None:
            pictures = absent.value.new_zeros(rows, *self._view)
            there = torch.zeros(rows, dtype=torch.bool, device=self.device)
        else:
            rate = self.config.sensor_dropout if self.training else 0.0
            there = kept(rows, rate, self.device)
        replaced: Tensor = absent(pictures, there)
        return replaced

    def _seen(self, observations: Mapping[str, Tensor]) -> Tensor | None:
        if self.config.missing_sensors and "image" not in observations:
            return None
        return super()._seen(observations)
