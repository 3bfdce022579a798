"""Fusion in stages: sensors that measure space make a scene, then the scene meets the rest.

Shapes: B batch, N tokens, D width, Q places of the scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import Tensor, nn

from teamvla.models.attention import Attention, AttentionSettings, TransformerBlock
from teamvla.models.features import Features, Modalities, Tokens
from teamvla.models.fusion.base import FusionConfig, named
from teamvla.models.fusion.tokens import TokenFusion, joined
from teamvla.models.initialization import embedding, init_transformer


class HierarchicalConfig(AttentionSettings, FusionConfig):
    """Settings of :class:`HierarchicalFusion`."""

    type: Literal["hierarchical"] = Field(
        default="hierarchical", description="LiDAR and radar first, then the rest."
    )
    embed_dim: int = Field(default=128, ge=1, description="Width of a token.")
    mlp_ratio: float = Field(default=2.0, gt=0, description="Hidden width of the MLPs / embed_dim.")
    scene: tuple[str, ...] = Field(
        default=("points", "lidar", "radar"), description="Fields that make the scene, if there."
    )
    scene_tokens: int = Field(default=16, ge=1, description="Q, tokens of the scene.")
    scene_layers: int = Field(default=1, ge=1, description="Transformer blocks of the first stage.")
    num_layers: int = Field(default=2, ge=1, description="Transformer blocks of the second stage.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Rate behind each part of a block.")


class SceneTokens(nn.Module):
    """Tokens of several sensors to Q tokens of one scene.

    tokens [B,N,D] -> transformer blocks -> Q learned queries attend to them [B,Q,D]
    """

    def __init__(self, config: HierarchicalConfig) -> None:
        super().__init__()
        self.blocks = _blocks(config, config.scene_layers)
        self.norm = nn.LayerNorm(config.embed_dim)
        self.queries = embedding(1, config.scene_tokens, config.embed_dim)
        self.attention = Attention(config.embed_dim, config.num_heads)

    def forward(self, tokens: Tokens) -> Tokens:
        """Tokens of at least one that counts in each row to Q that all count."""
        values = tokens.values
        for block in self.blocks:
            values = block(values, tokens.mask)
        queries = self.queries.expand(values.shape[0], -1, -1)
        found = self.attention(queries, self.norm(values), tokens.mask[:, None, None])
        return Tokens.full(queries + found)


class HierarchicalFusion(TokenFusion):
    """Sensors to a scene in space, then the scene, pictures, words and state together.

        LiDAR, radar -> blocks -> Q tokens of the scene --+
        pictures, words, state, other sensors ------------+-> [summary | ...] -> blocks -> summary

    Without any of the sensors of the scene it is a transformer over the rest. Features: the
    summary, and the tokens of the second stage.

    Without encoders, as ``HierarchicalFusion(feature_dim=256, num_heads=8)``, it is a module
    for tensors: ``fusion(vision, lidar, radar)`` of tokens [B,N,feature_dim] each, by position
    or by name, gives the summary [B,feature_dim].

    Args: see :class:`TokenFusion`.
    """

    Config = HierarchicalConfig

    def build(self, config: HierarchicalConfig) -> None:
        """See :meth:`TokenFusion.build`."""
        self.of_scene = config.scene
        in_space = self.is_for_tensors or any(name in self.of_scene for name in self.from_sensors)
        self.scene = SceneTokens(config) if in_space else None
        self.blocks = _blocks(config, config.num_layers)
        self.norm = nn.LayerNorm(self.dim)
        init_transformer(self.blocks)
        if self.scene is not None:
            init_transformer(self.scene.blocks)

    def forward(
        self, seen: Modalities | Tensor | None = None, *more: Tensor, **others: Tensor
    ) -> Any:
        """See :meth:`Fusion.forward`; or of tokens, see :func:`named`, the summary.

        Raises:
            ContractError: it cannot be told of what the tokens are.
        """
        if isinstance(seen, Modalities):
            return self._staged(self.parts(seen))
        given = named(() if seen is None else (seen, *more), others)
        rows = next(iter(given.values())).shape[0]
        asking = {"": Tokens.full(self.summary.expand(rows, -1, -1))}
        return self._staged(asking | {k: Tokens.full(v) for k, v in given.items()}).summary

    def _staged(self, parts: Mapping[str, Tokens]) -> Features:
        """Features of tokens of which the first sums up."""
        near = [part for name, part in parts.items() if name in self.of_scene]
        rest = [part for name, part in parts.items() if name not in self.of_scene]
        if self.scene is not None and near:
            rest.append(self.scene(joined(near)))
        tokens = joined(rest)
        values = tokens.values
        for block in self.blocks:
            values = block(values, tokens.mask)
        values = self.norm(values)
        return Features(values[:, 0], Tokens(values, tokens.mask))


def _blocks(config: HierarchicalConfig, count: int) -> nn.ModuleList:
    return nn.ModuleList(
        TransformerBlock(config.embed_dim, config.num_heads, config.mlp_ratio, config.dropout)
        for _ in range(count)
    )
