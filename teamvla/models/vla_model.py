"""A policy around pretrained models: they see, read, and put both together.

Shapes: B batch, V cameras, N tokens of a picture, M of them behind the projector, L of an
instruction, D width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from teamvla.config.bytype import ByType
from teamvla.contract import Contract
from teamvla.models.composed import SensingConfig, SensingPolicy
from teamvla.models.encoders.base import EncoderConfig, VisionBackbone
from teamvla.models.encoders.pretrained import PretrainedVisionConfig
from teamvla.models.features import Features, Tokens
from teamvla.models.initialization import embedding
from teamvla.models.losses import LossConfig
from teamvla.models.observations import texts_of
from teamvla.models.pretrained.llm import LLMBackbone, LLMConfig, joined
from teamvla.models.pretrained.settings import completed
from teamvla.models.projectors import MLPProjectorConfig, ProjectorConfig, build_projector
from teamvla.models.registries import ENCODER_REGISTRY, PROJECTOR_REGISTRY
from teamvla.models.spaces import Spaces


class VLAModelConfig(SensingConfig):
    """Settings of :class:`VLAModel`."""

    type: Literal["vla_model"] = Field(
        default="vla_model", description="Pretrained encoder and language model."
    )
    vision: Annotated[
        EncoderConfig | None, ByType(ENCODER_REGISTRY, "pretrained", optional=True)
    ] = Field(
        default=PretrainedVisionConfig(),
        description="Encoder of pictures; null: no look at them.",
    )
    language: None = Field(
        default=None, description="Always null: it is llm that reads the instruction."
    )
    projector: Annotated[ProjectorConfig, ByType(PROJECTOR_REGISTRY, "mlp")] = MLPProjectorConfig()
    llm: LLMConfig = LLMConfig()
    separate_heads: bool = Field(
        default=False,
        description="A head for each arm instead of one for both: heads that sample then choose "
        "for each arm alone.",
    )


class VLAModel(SensingPolicy):
    """Vision-language-action model on a pretrained language model.

        [camera 0: M tokens | camera 1: M | ... | words: L | state | action] -> LLM -> norm

        pictures [B,V,C,H,W] -> vision [B,V,N,.] -> + camera, place -> projector [B,V*M,D]
        instruction          -> the LLM's own tokens [B,L,D]
        state, normalised    -> linear -> one token
        what is recalled     -> linear -> one token, with a memory
        action               -> one learned token, the last: what it has become is the summary

    After OpenVLA (Kim et al. 2024, arXiv 2406.09246), with a head on the states in place of
    tokens for actions, as OpenVLA-OFT has (Kim et al. 2025, arXiv 2502.19645). With
    ``llm.attention: prefix`` all but the action token look at each other, as in PaliGemma
    (Beyer et al. 2024, arXiv 2407.07726). Heads that attend to tokens get all of them.

    Args:
        config, contract, statistics, loss, vision: see
            :class:`teamvla.models.composed.SensingPolicy`.

    Raises:
        MissingDependencyError: transformers is not installed.
        InputError: there is no such model.
        ConfigError: a part does not fit another.
    """

    Config: ClassVar[type[VLAModelConfig]] = VLAModelConfig
    config: VLAModelConfig
    chooses = True

    def __init__(
        self,
        config: VLAModelConfig,
        contract: Contract | Spaces,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
        *,
        vision: VisionBackbone | None = None,
    ) -> None:
        config = completed(config)
        super().__init__(config, contract, statistics, loss, vision=vision)
        self.llm = LLMBackbone(config.llm)
        width = self.llm.dim
        self.action = embedding(1, 1, width)
        if self.vision is not None:
            self.cameras = embedding(len(self.spaces.cameras), 1, self.vision.dim)
            self.places = embedding(self.vision.num_tokens, self.vision.dim)
            self.projector = build_projector(config.projector, self.vision.dim, width)
        if self.feels:
            self.from_state = nn.Linear(self.spaces.state_dim, width)
        self.build_memory_token(width)
        # States of language models have a few numbers that are hundreds of times the others.
        self.norm = nn.LayerNorm(width)
        self.build_heads(width, config.separate_heads)

    def encode(self, batch: Mapping[str, Any]) -> list[Features]:
        """See :meth:`Policy.encode`."""
        tokens = joined(self._parts(batch))
        values = self.norm(self.llm.attend(tokens, prefix=tokens.values.shape[1] - 1))
        features = Features(values[:, -1], Tokens(values, tokens.mask))
        return [features] * len(self.heads)

    def _parts(self, batch: Mapping[str, Any]) -> list[Tokens]:
        """What the language model is given, in order."""
        seen, parts = self.perceive(batch), []
        rows = next(iter(batch["observations"].values())).shape[0]
        if seen.pictures is not None:
            parts.append(self._projected(seen.pictures))
        language = batch.get("language")
        parts.append(self._words(texts_of("" if language is None else language, rows)))
        if seen.state is not None:
            parts.append(Tokens.full(self.from_state(seen.state).unsqueeze(1)))
        parts += map(Tokens.full, self.memory_tokens(seen.sensors))
        return [*parts, Tokens.full(self.action.expand(rows, -1, -1))]

    def _projected(self, pictures: Tensor) -> Tokens:
        """Tokens of pictures [B,V,N,.] to [B,V*M,D]."""
        placed = (pictures + self.cameras + self.places).flatten(0, 1)
        tokens = self.projector.project(Tokens.full(placed)).values
        return Tokens.full(tokens.reshape(pictures.shape[0], -1, tokens.shape[-1]))

    def _words(self, texts: list[str]) -> Tokens:
        """The LLM's tokens of B instructions; each distinct one is looked up once."""
        distinct = list(dict.fromkeys(texts))
        tokens = self.llm.embed(distinct)
        place = {text: row for row, text in enumerate(distinct)}
        rows = torch.tensor([place[text] for text in texts], device=tokens.values.device)
        return Tokens(tokens.values[rows], tokens.mask[rows])
