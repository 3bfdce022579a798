"""One network that sees both arms and moves both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from teamvla.contract import Contract
from teamvla.models.base import Policy, PolicyConfig
from teamvla.models.encoders.language import (
    LanguageConfig,
    SimpleLanguageEncoder,
    build_text_encoder,
)
from teamvla.models.encoders.vision import VisionConfig, build_vision_encoder, forward_vision
from teamvla.models.heads.mlp import MLPActionHead
from teamvla.models.initialization import init_identity
from teamvla.models.losses import LossConfig


class SingleBrainConfig(PolicyConfig):
    """Settings of :class:`SingleBrainVLA`."""

    type: str = Field(default="single_brain", description="Name of the model.")
    hidden_dim: int = Field(default=512, ge=1, description="Width of the trunk.")
    num_blocks: int = Field(default=3, ge=0, description="Residual blocks of the trunk.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Rate inside each residual block.")
    head_layers: int = Field(default=0, ge=0, description="Hidden layers of an arm's action head.")
    vision: VisionConfig = VisionConfig()
    language: LanguageConfig = LanguageConfig()


class ResidualBlock(nn.Module):
    """Pre-norm residual MLP: x + W2 silu(W1 norm(x)), the identity at first."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        init_identity(self.outer)

    def forward(self, features: Tensor) -> Tensor:
        """[B,width] to [B,width]."""
        hidden: Tensor = self.outer(self.dropout(functional.silu(self.inner(self.norm(features)))))
        return features + hidden


class SingleBrainVLA(Policy):
    """Vision-language-action policy with one trunk and one action head per arm.

        image [B,V,C,H,W] -> shared encoder ----- [B,V*128] --+
        language [B]      -> text encoder ------- [B,64] -----+-> linear 512 -> blocks -> norm
        state [B,D]       -> mean and deviation - [B,D] ------+             |
                                         head of arm a: [B,K,N+1] <--------+--------> of arm b

    Heads predict normalised joint targets and the logit of the gripper command.

    Args:
        config, contract, statistics, loss: see :class:`teamvla.models.base.Policy`.
        vision, language: encoders to use in place of new ones; each tells its output's length
            as ``features``. ``language`` encodes a list of texts by ``encode``.
    """

    Config = SingleBrainConfig

    def __init__(
        self,
        config: SingleBrainConfig,
        contract: Contract,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
        *,
        vision: nn.Module | None = None,
        language: SimpleLanguageEncoder | None = None,
    ) -> None:
        super().__init__(config, contract, statistics, loss)
        self.vision = vision or build_vision_encoder(config.vision)
        self.language = language or build_text_encoder(config.language)
        seen = len(contract.cameras) * cast(int, self.vision.features)
        inputs = seen + self.language.features + contract.action_dim
        width = config.hidden_dim
        self.inputs = nn.Linear(inputs, width)
        blocks = [ResidualBlock(width, config.dropout) for _ in range(config.num_blocks)]
        self.trunk = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.heads = nn.ModuleList(
            MLPActionHead(
                width, size, width, config.head_layers, config.dropout, False, config.chunk_size
            )
            for size in self.arm_sizes
        )
        is_gripper = torch.zeros(contract.action_dim, dtype=torch.bool)
        is_gripper[contract.grippers] = True
        self.is_gripper: Tensor
        self.register_buffer("is_gripper", is_gripper, persistent=False)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`teamvla.models.base.Policy.forward`."""
        return self._action_head(self._fuse_modalities(batch))

    def _fuse_modalities(self, batch: Mapping[str, Any]) -> Tensor:
        """Pictures, instruction and state to one feature vector [B,hidden_dim]."""
        observations = batch["observations"]
        state = self.normalizer.normalize_state(observations["state"].float())
        texts = batch.get("language") or [""] * state.shape[0]
        parts = [self.language.encode(texts), state]
        if self.contract.cameras:
            parts.insert(0, forward_vision(self.vision, observations["image"]).flatten(1))
        fused: Tensor = self.trunk(functional.silu(self.inputs(torch.cat(parts, dim=1))))
        return fused

    def _action_head(self, features: Tensor) -> dict[str, Any]:
        """Features [B,hidden_dim] to the dict of :meth:`forward`."""
        rows = (features.shape[0], self.config.chunk_size, -1)
        raw = torch.cat([head(features).reshape(rows) for head in self.heads], dim=-1).float()
        scaler = self.normalizer
        opening = scaler.normalize_actions(raw.sigmoid())
        normalized = torch.where(self.is_gripper, opening, raw)
        predicted = scaler.denormalize_actions(normalized)
        return {
            "predicted_actions": predicted,
            "actions": torch.split(predicted, self.arm_sizes, dim=-1),
            "logits": raw[..., self.is_gripper],
            "aux": {"normalized_actions": normalized},
        }
