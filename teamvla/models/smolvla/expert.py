"""The action expert of SmolVLA: flow matching that looks into a language model's layers.

Shapes: B batch, K chunk, A numbers of an action, M what they are filled up to, P tokens before,
D width, G heads of keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from teamvla.errors import ConfigError
from teamvla.models.attention import KeysValues
from teamvla.models.features import Features
from teamvla.models.heads.base import ActionHead, HeadConfig, HeadLoss, hold_last
from teamvla.models.initialization import init_transformer
from teamvla.models.losses import masked_mean
from teamvla.models.openvla.decoder import DecoderLayer, RMSNorm
from teamvla.models.smolvla.architecture import SmolVLAArchitecture

#: no time before it is trained at: nothing is left there to be done
_EARLIEST = 0.001


@dataclass(frozen=True)
class Prefix(Features):
    """Features with the keys and values [B,G,P,...] of every layer of the language model."""

    layers: tuple[KeysValues, ...]


class ExpertHeadConfig(HeadConfig):
    """Settings of :class:`ActionExpert`."""

    type: Literal["action_expert"] = Field(
        default="action_expert", description="Flow matching into the language model's layers."
    )
    num_inference_steps: int = Field(default=10, ge=1, description="Steps from noise to actions.")
    beta_alpha: float = Field(
        default=1.5, ge=1, description="Times in training are Beta(beta_alpha, 1); 1 is noise."
    )


class ActionExpert(ActionHead):
    """The action expert of SmolVLA (Shukor et al. 2025, arXiv 2506.01844).

        noisy [B,K,M] -> linear, with sines of the time -> MLP -> a token for each action
                      -> layers, as many as the language model has -> norm -> linear -> velocity

        even layers: an action attends to the keys and values that the language model's layer of
                     the same depth has of the prefix, and to itself and the actions before it
        odd layers:  it attends to that layer's keys and values of the prefix alone, which are
                     projected once more

    Time runs from 1, noise, to 0, actions; the network estimates noise minus actions. What the
    prefix gives is computed once for all steps. As published an action is filled up by zeros, and
    the zeros are learned like the others.

    Args:
        input_dim, action_dim, chunk_size: see :class:`ActionHead`.
        architecture: sizes.

    Raises:
        ConfigError: an action is longer than what it is filled up to.
    """

    Config = ExpertHeadConfig
    config: ExpertHeadConfig

    def __init__(
        self,
        input_dim: int,
        action_dim: int,
        chunk_size: int = 1,
        *,
        architecture: SmolVLAArchitecture,
        grippers: Sequence[int] = (),
        config: Any = None,
    ) -> None:
        super().__init__(input_dim, action_dim, chunk_size, grippers=grippers, config=config)
        filled, width = architecture.max_action_dim, architecture.expert_dim
        if action_dim > filled:
            where = "model.architecture.max_action_dim"
            raise ConfigError(where, f"at least {action_dim}, an action", str(filled))
        self.architecture = architecture
        self.action_in, self.action_out = nn.Linear(filled, width), nn.Linear(width, filled)
        self.time_in, self.time_out = nn.Linear(2 * width, width), nn.Linear(width, width)
        language = architecture.language
        seen = language.num_key_value_heads * language.head_dim
        self.layers = nn.ModuleList(
            DecoderLayer(
                language, width, architecture.expert_hidden,
                context_width=None if self._joins(depth) else seen,
            )
            for depth in range(language.num_hidden_layers)
        )  # fmt: skip
        self.norm = RMSNorm(width, language.rms_norm_eps)
        init_transformer(self.layers)

    def loss(self, features: Features, target: Tensor, is_pad: Tensor) -> HeadLoss:
        """Mean square of the velocity's error at a random time for each row."""
        prefix, target = _prefix(features), hold_last(target, is_pad)
        dice = self.dice(target)
        clean = functional.pad(target, (0, self.architecture.max_action_dim - self.action_dim))
        noise = torch.randn(clean.shape, generator=dice, device=clean.device)
        times = self.times(len(clean), dice)
        noisy = torch.lerp(clean, noise, times[:, None, None])
        estimate = self.velocity(noisy, times, prefix, self.contexts(prefix))
        error = masked_mean((estimate - (noise - clean)).square(), is_pad)
        return HeadLoss(error, {"denoising": error})

    def times(self, rows: int, dice: Generator | None) -> Tensor:
        """Random times [rows] to train at."""
        drawn = torch.rand(rows, generator=dice, device=self.grippers.device)
        # The inverse of the distribution function of Beta(alpha, 1), u^alpha.
        return drawn.pow(1 / self.config.beta_alpha) * (1 - _EARLIEST) + _EARLIEST

    @torch.no_grad()
    def sample(self, features: Features | Tensor, generator: Generator | None = None) -> Tensor:
        """See :meth:`ActionHead.sample`; steps of Euler."""
        prefix, steps = _prefix(features), self.config.num_inference_steps
        actions, contexts = self._noise(prefix, generator), self.contexts(prefix)
        for left in range(steps, 0, -1):
            times = actions.new_full((len(actions),), left / steps)
            actions = actions - self.velocity(actions, times, prefix, contexts) / steps
        return actions[..., : self.action_dim]

    def contexts(self, prefix: Prefix) -> list[KeysValues]:
        """What the layers look at of the prefix, which is the same for all times."""
        return [
            seen if self._joins(depth) else _projected(layer, seen)
            for depth, (layer, seen) in enumerate(zip(self._layers, prefix.layers, strict=True))
        ]

    def velocity(
        self, noisy: Tensor, times: Tensor, prefix: Prefix, contexts: Sequence[KeysValues]
    ) -> Tensor:
        """The network's estimate [B,K,M] for noisy actions [B,K,M] at times [B]."""
        hidden = self._embed(noisy, times)
        rows, chunk = noisy.shape[:2]
        steps, mask = torch.arange(chunk, device=noisy.device), prefix.tokens.mask
        behind = mask.sum(1, keepdim=True) + steps
        alone = steps.expand(rows, -1)
        before = mask[:, None, None].expand(-1, -1, chunk, -1)
        causal = (steps[:, None] >= steps).expand(rows, 1, -1, -1)
        joined = torch.cat([before, causal], -1)
        for depth, (layer, seen) in enumerate(zip(self._layers, contexts, strict=True)):
            if self._joins(depth):
                hidden, _ = layer(hidden, behind, joined, seen)
            else:
                normed = layer.input_layernorm(hidden)
                attended = layer.self_attn.attend(normed, alone, seen, before)
                hidden = layer.rest(hidden, attended)
        velocity: Tensor = self.action_out(self.norm(hidden)).float()
        return velocity

    def _embed(self, noisy: Tensor, times: Tensor) -> Tensor:
        actions = self.action_in(noisy)
        told = self._sines(times).to(actions.dtype)[:, None].expand(-1, noisy.shape[1], -1)
        hidden = functional.silu(self.time_in(torch.cat([actions, told], -1)))
        embedded: Tensor = self.time_out(hidden)
        return embedded

    def _sines(self, times: Tensor) -> Tensor:
        """Sines and cosines of times [B] at geometric wavelengths, [B,D]."""
        sizes = self.architecture
        shares = torch.linspace(
            0, 1, sizes.expert_dim // 2, dtype=torch.float64, device=times.device
        )
        periods = sizes.min_period * (sizes.max_period / sizes.min_period) ** shares
        angles = times.double()[:, None] * (2 * math.pi / periods)
        return torch.cat([angles.sin(), angles.cos()], -1)

    def _noise(self, prefix: Prefix, generator: Generator | None) -> Tensor:
        """Where sampling begins [B,K,M]: fresh, or without a generator the same for each row."""
        mask = prefix.tokens.mask
        shape = (self.chunk_size, self.architecture.max_action_dim)
        if generator is not None:
            drawn = torch.randn(len(mask), *shape, generator=generator, device=generator.device)
            return drawn.to(mask.device)
        one = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
        return one.to(mask.device).expand(len(mask), -1, -1)

    def _joins(self, depth: int) -> bool:
        """Whether the actions attend to themselves too in this layer."""
        return depth % self.architecture.self_attention_every == 0

    @property
    def _layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.layers))


def _projected(layer: DecoderLayer, seen: KeysValues) -> KeysValues:
    """Keys and values [B,G,P,...] of the language model as the layer's own."""
    keys, values = (part.transpose(1, 2).flatten(2) for part in seen)
    attention = layer.self_attn
    return attention.split(attention.k_proj(keys)), attention.split(attention.v_proj(values))


def _prefix(features: Features | Tensor) -> Prefix:
    if isinstance(features, Prefix):
        return features
    got = type(features).__name__
    raise ConfigError("action expert", "what SmolVLAWrapper.encode gives", got)
