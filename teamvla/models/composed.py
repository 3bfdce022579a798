"""Policies of encoders, a fusion and a head, each chosen by configuration.

Shapes: B batch, V cameras, N tokens, D width, S state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from teamvla.config.bytype import ByType
from teamvla.contract import Contract
from teamvla.errors import ConfigError, ContractError
from teamvla.models.base import Policy, PolicyConfig
from teamvla.models.encoders.base import EncoderConfig, TextEncoder, VisionBackbone
from teamvla.models.encoders.language import CharacterConfig, build_text_encoder
from teamvla.models.encoders.vision import ConvConfig, build_vision_encoder, forward_vision
from teamvla.models.features import Features, Modalities, Tokens
from teamvla.models.fusion.base import FusionConfig
from teamvla.models.fusion.concat import ConcatConfig
from teamvla.models.losses import LossConfig
from teamvla.models.observations import texts_of
from teamvla.models.registries import ENCODER_REGISTRY, FUSION_REGISTRY, TEXT_ENCODER_REGISTRY
from teamvla.models.spaces import Spaces


class SensingConfig(PolicyConfig):
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


class SensingPolicy(Policy):
    """Base of policies that see, read and feel through encoders chosen by configuration.

        image [B,V,C,H,W] -> vision ---> tokens [B,V,N,D]
        language [B] ------> language -> tokens and mask
        state [B,S] -------> mean and deviation

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
        if self.vision is None and self.language is None and not self.feels:
            raise ConfigError("model", "a state, pictures or words to act on", "none of them")

    def perceive(self, batch: Mapping[str, Any]) -> Modalities:
        """What the encoders make of a batch; None where the policy has no such input.

        Raises:
            ContractError: the batch lacks an input that the policy has, or has it for other rows.
        """
        observations = batch["observations"]
        rows = next(iter(observations.values())).shape[0]
        return Modalities(
            self._seen(observations), self._read(batch, rows), self._felt(observations)
        )

    def _seen(self, observations: Mapping[str, Tensor]) -> Tensor | None:
        if self.vision is None:
            return None
        images = _given(observations, "image")
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
        return self.normalizer.normalize_state(_given(observations, "state").float())


class ComposedConfig(SensingConfig):
    """Settings of :class:`ComposedPolicy`."""

    fusion: Annotated[FusionConfig, ByType(FUSION_REGISTRY, "concat")] = ConcatConfig()
    separate_heads: bool = Field(
        default=False,
        description="A head for each arm instead of one for both: heads that sample then choose "
        "for each arm alone.",
    )


class ComposedPolicy(SensingPolicy):
    """Encoders, a fusion and a head.

        pictures, text, state of SensingPolicy -> fusion -> features -> head

    Args:
        config, contract, statistics, loss, encoders: see :class:`SensingPolicy`.
    """

    Config: ClassVar[type[ComposedConfig]] = ComposedConfig
    config: ComposedConfig

    def __init__(
        self,
        config: ComposedConfig,
        contract: Contract | Spaces,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
        **encoders: Any,
    ) -> None:
        super().__init__(config, contract, statistics, loss, **encoders)
        kind = FUSION_REGISTRY.get(config.fusion.type)
        state_dim = self.spaces.state_dim if self.feels else 0
        cameras = len(self.spaces.cameras)
        self.fusion = kind(config.fusion, self.vision, cameras, self.language, state_dim)
        self.build_heads(self.fusion.dim, config.separate_heads)

    def encode(self, batch: Mapping[str, Any]) -> list[Features]:
        """See :meth:`Policy.encode`."""
        features: Features = self.fusion(self.perceive(batch))
        return [features] * len(self.heads)


def _given(observations: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in observations:
        expected = f"{name!r}, which the model was made to use"
        raise ContractError("batch['observations']", expected, ", ".join(sorted(observations)))
    return observations[name]
