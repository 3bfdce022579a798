"""From the tokens of an encoder to those of a language model.

Shapes: B batch, N tokens, M tokens that are kept, V width of the encoder's, D of the model's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from teamvla.config import Settings
from teamvla.errors import ConfigError
from teamvla.models.attention import Attention, TransformerBlock, require_heads
from teamvla.models.features import Tokens
from teamvla.models.initialization import embedding, init_transformer
from teamvla.models.registries import PROJECTOR_REGISTRY


class ProjectorConfig(Settings):
    """Settings that all projectors share; ``type`` decides whose are the others."""

    type: str = Field(description="Name of the projector.")


class Projector(nn.Module, ABC):
    """Tokens of width V to tokens of width D.

    Args:
        vision_dim: V.
        llm_dim: D.
        config: settings; or give them one by one as ``settings``.
    """

    Config: ClassVar[type[ProjectorConfig]]
    #: whether M is its own number, and all of its tokens count
    resamples: ClassVar[bool] = True

    def __init__(self, vision_dim: int, llm_dim: int, config: Any = None, **settings: Any) -> None:
        super().__init__()
        self.config: Any = self.Config(**settings) if config is None else config

    @abstractmethod
    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Tokens [B,N,V], of which bool [B,N] count (None: all), to tokens [B,M,D]."""

    def project(self, tokens: Tokens) -> Tokens:
        """The same for tokens that bring their mask."""
        values = self(tokens.values, tokens.mask)
        return Tokens.full(values) if self.resamples else Tokens(values, tokens.mask)


class MLPProjectorConfig(ProjectorConfig):
    """Settings of :class:`MLPProjector`."""

    type: Literal["mlp"] = Field(default="mlp", description="Each token by itself.")


class MLPProjector(Projector):
    """Two layers on each token by itself, as in LLaVA 1.5 (Liu et al. 2023, arXiv 2310.03744).

    [B,N,V] -> linear -> GELU -> linear -> [B,N,D]
    """

    Config = MLPProjectorConfig
    resamples: ClassVar[bool] = False

    def __init__(self, vision_dim: int, llm_dim: int, config: Any = None, **settings: Any) -> None:
        super().__init__(vision_dim, llm_dim, config, **settings)
        first, last = nn.Linear(vision_dim, llm_dim), nn.Linear(llm_dim, llm_dim)
        self.layers = nn.Sequential(first, nn.GELU(), last)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """See :meth:`Projector.forward`; M is N, and padding stays where it is."""
        projected: Tensor = self.layers(values)
        return projected


class AttentionPoolingConfig(ProjectorConfig):
    """Settings of :class:`AttentionPoolingProjector`."""

    type: Literal["attention_pooling"] = Field(
        default="attention_pooling", description="Learned queries look at the tokens once."
    )
    num_queries: int = Field(default=64, ge=1, description="Tokens that are kept of a picture.")
    num_heads: int = Field(
        default=8, ge=1, description="Attention heads; divides the language model's width."
    )


class AttentionPoolingProjector(Projector):
    """Learned queries that look at the tokens once (Lee et al. 2018, arXiv 1810.00825).

    [B,N,V] -> linear, norm [B,N,D] <- attention of M queries -> [B,M,D]

    Raises:
        ConfigError: the heads do not divide D.
    """

    Config = AttentionPoolingConfig

    def __init__(self, vision_dim: int, llm_dim: int, config: Any = None, **settings: Any) -> None:
        super().__init__(vision_dim, llm_dim, config, **settings)
        _check_heads(self.config.num_heads, llm_dim)
        self.queries = embedding(1, self.config.num_queries, llm_dim)
        self.input, self.norm = nn.Linear(vision_dim, llm_dim), nn.LayerNorm(llm_dim)
        self.attention = Attention(llm_dim, self.config.num_heads)
        init_transformer(self)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """See :meth:`Projector.forward`."""
        context = self.norm(self.input(values))
        queries = self.queries.expand(values.shape[0], -1, -1)
        seen = None if mask is None else mask[:, None, None]
        pooled: Tensor = self.attention(queries, context, seen)
        return pooled


class PerceiverConfig(ProjectorConfig):
    """Settings of :class:`PerceiverProjector`."""

    type: Literal["perceiver"] = Field(
        default="perceiver", description="Latents look at the tokens again and again."
    )
    num_latents: int = Field(default=64, ge=1, description="Tokens that are kept of a picture.")
    num_layers: int = Field(default=2, ge=1, description="Looks at the tokens.")
    hidden_dim: int = Field(default=512, ge=1, description="Width of the latents.")
    num_heads: int = Field(default=8, ge=1, description="Attention heads; divides hidden_dim.")
    mlp_ratio: float = Field(
        default=4.0, gt=0, description="Hidden width of the MLPs / hidden_dim."
    )

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        require_heads(self.num_heads, "hidden_dim", self.hidden_dim)
        return self


class PerceiverProjector(Projector):
    """Latents that look at the tokens in each of several layers.

        latents [B,M,H] -> (attention among them -> to [B,N,V] -> MLP) x num_layers
            -> norm -> linear -> [B,M,D]

    Perceiver (Jaegle et al. 2021, arXiv 2103.03206) and its resampler in Flamingo (Alayrac et
    al. 2022, arXiv 2204.14198). It takes any number of tokens, and does not see padding. H is a
    width of its own: a model's would make this as large as the model's layers.
    """

    Config = PerceiverConfig

    def __init__(self, vision_dim: int, llm_dim: int, config: Any = None, **settings: Any) -> None:
        super().__init__(vision_dim, llm_dim, config, **settings)
        width, heads = self.config.hidden_dim, self.config.num_heads
        self.latents = embedding(1, self.config.num_latents, width)
        self.norm_input = nn.LayerNorm(vision_dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(width, heads, self.config.mlp_ratio, context_width=vision_dim)
            for _ in range(self.config.num_layers)
        )
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, llm_dim)
        init_transformer(self)

    def forward(self, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """See :meth:`Projector.forward`."""
        normed = self.norm_input(values)
        context = Tokens.full(normed) if mask is None else Tokens(normed, mask)
        latents = self.latents.expand(values.shape[0], -1, -1)
        for block in self.blocks:
            latents = block(latents, context=context)
        projected: Tensor = self.output(self.norm(latents))
        return projected


def build_projector(config: ProjectorConfig, vision_dim: int, llm_dim: int) -> Projector:
    """A projector with fresh weights, of the kind that ``config.type`` names.

    Raises:
        RegistryError: there is no such projector.
        ConfigError: it cannot have such widths.
    """
    return PROJECTOR_REGISTRY.get(config.type)(vision_dim, llm_dim, config)


def _check_heads(num_heads: int, width: int) -> None:
    if width % num_heads:
        fitting = [n for n in range(1, 65) if width % n == 0]
        nearest = min(fitting, key=lambda n: abs(n - num_heads))
        expected = f"a divisor of the language model's width {width}"
        mend = f"The nearest is {nearest}."
        raise ConfigError("projector.num_heads", expected, str(num_heads), mend)
