"""One network for each arm, and messages between them.

Shapes: B batch, V cameras, N tokens, F features, A arms, D width, M words of a message, E their
width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from teamvla.contract import Contract
from teamvla.errors import ConfigError
from teamvla.models.attention import Attention, require_heads
from teamvla.models.blocks import ResidualBlock
from teamvla.models.composed import SensingConfig, SensingPolicy
from teamvla.models.features import Features, Modalities
from teamvla.models.initialization import init_identity
from teamvla.models.losses import LossConfig
from teamvla.models.spaces import Spaces


class MsgPassingConfig(SensingConfig):
    """Settings of :class:`MsgPassingVLA`."""

    type: Literal["msg_passing"] = Field(
        default="msg_passing", description="One network for each arm, and messages between them."
    )
    hidden_dim: int = Field(default=352, ge=1, description="Width of each arm's stream.")
    rounds: int = Field(default=2, ge=0, description="How often messages are passed.")
    messages: bool = Field(
        default=True,
        description="Whether arms hear each other; false: with the same parameters and at the "
        "same cost each only hears itself.",
    )
    message_tokens: int = Field(default=4, ge=1, description="Words of a message.")
    message_dim: int = Field(default=32, ge=1, description="Width of a word.")
    num_heads: int = Field(default=4, ge=1, description="Attention heads; divides hidden_dim.")
    num_blocks: int = Field(default=1, ge=0, description="Residual blocks behind the last round.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Rate inside each residual block.")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> MsgPassingConfig:
        require_heads(self.num_heads, "hidden_dim", self.hidden_dim)
        return self


class MessageRound(nn.Module):
    """Every arm speaks, every arm listens, and thinks about it.

        streams [B,A,D] -> words [B,A*M,E]
        stream i attends to the words it may hear -> * sigmoid(gate of stream i) -> + -> block

    A message is several words, so that there is something to choose from with two arms too.
    """

    def __init__(self, config: MsgPassingConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(width, width)
        self.speak = nn.Linear(width, config.message_tokens * config.message_dim)
        self.listen = Attention(width, config.num_heads, config.message_dim)
        self.block = ResidualBlock(width, config.dropout)
        self.message_dim = config.message_dim
        init_identity(self.listen.o_proj)

    def forward(self, streams: Tensor, hears: Tensor) -> Tensor:
        """Streams [B,A,D] to [B,A,D].

        Args:
            hears: bool [A,A*M], True where an arm may look at a word.
        """
        normed = self.norm(streams)
        words = self.speak(normed).reshape(streams.shape[0], -1, self.message_dim)
        heard = self.listen(normed, words, hears)
        thought: Tensor = self.block(streams + self.gate(normed).sigmoid() * heard)
        return thought


class MsgPassingVLA(SensingPolicy):
    """Vision-language-action policy with a stream for each arm.

        own pictures -> shared encoder -> own vectors --+
        instruction --> shared encoder -> mean ---------+-> own linear -> silu -> stream [B,D]
        own joints and gripper -------------------------+
        streams [B,A,D] -> rounds of messages -> blocks -> norm -> a head for each arm

    An arm sees by its own cameras and by those that belong to nobody in particular; what
    another arm sees and feels reaches it through messages alone. Encoders, rounds and blocks
    have one set of weights for all arms; the first layer and the head are each arm's own.

    Args:
        config, contract, statistics, loss, encoders: see
            :class:`teamvla.models.composed.SensingPolicy`.
    """

    Config: ClassVar[type[MsgPassingConfig]] = MsgPassingConfig
    config: MsgPassingConfig
    chooses = True

    def __init__(
        self,
        config: MsgPassingConfig,
        contract: Contract | Spaces,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
        **encoders: Any,
    ) -> None:
        super().__init__(config, contract, statistics, loss, **encoders)
        arms, width = range(len(self.spaces.states)), config.hidden_dim
        self.cameras = [[v for v, of in enumerate(self.spaces.cameras) if i in of] for i in arms]
        self.pool = None if self.vision is None else self.vision.pooling()
        sizes = [self._input_dim(arm) for arm in arms]
        if not all(sizes):
            expected = "a state, pictures or words for every arm to act on"
            raise ConfigError("model", expected, f"none for arm {sizes.index(0)}")
        self.inputs = nn.ModuleList(nn.Linear(size, width) for size in sizes)
        self.rounds = nn.ModuleList(MessageRound(config) for _ in range(config.rounds))
        blocks = [ResidualBlock(width, config.dropout) for _ in range(config.num_blocks)]
        self.trunk = nn.Sequential(*blocks, nn.LayerNorm(width))
        self.hears: Tensor
        self.register_buffer("hears", self._hearing(), persistent=False)
        self.build_heads(width, separate=True)

    def encode(self, batch: Mapping[str, Any]) -> list[Features]:
        """See :meth:`Policy.encode`; one of each arm."""
        streams = self.trunk(self._exchange_messages(self._streams(self.perceive(batch))))
        return [Features.of(stream) for stream in streams.unbind(1)]

    def _exchange_messages(self, streams: Tensor) -> Tensor:
        """[B,A,D] to [B,A,D]: all rounds."""
        for passing in self.rounds:
            streams = passing(streams, self.hears)
        return streams

    def _streams(self, perceived: Modalities) -> Tensor:
        """[B,A,D]: what each arm makes of its own pictures, the text and its own state."""
        seen = None if perceived.pictures is None else self._pooled(perceived.pictures)
        text = [] if perceived.text is None else [perceived.text.mean()]
        text += [sensed.vector for sensed in perceived.sensors.values()]
        felt: list[Any] = [None] * len(self.inputs)
        if perceived.state is not None:
            sizes = [*self.spaces.states, self.spaces.shared]
            *own, shared = torch.split(perceived.state, sizes, dim=-1)
            felt = [torch.cat([part, shared], dim=-1) for part in own]
        streams = []
        for layer, cameras, state in zip(self.inputs, self.cameras, felt, strict=True):
            parts = [] if seen is None else [seen[:, cameras].flatten(1)]
            parts += text if state is None else [*text, state]
            streams.append(functional.silu(layer(torch.cat(parts, dim=1))))
        return torch.stack(streams, dim=1)

    def _pooled(self, pictures: Tensor) -> Tensor:
        """Tokens [B,V,N,D] to [B,V,F]."""
        assert self.pool is not None
        pooled: Tensor = self.pool(pictures)
        return pooled

    def _input_dim(self, arm: int) -> int:
        """Length of what an arm sees, reads and feels."""
        seen = 0 if self.vision is None else len(self.cameras[arm]) * self.vision.features
        read = 0 if self.language is None else self.language.dim
        felt = self.spaces.states[arm] + self.spaces.shared
        recalled = 0 if self.recollection is None else self.recollection.output_dim
        return seen + read + recalled + (felt if self.feels else 0)

    def _hearing(self) -> Tensor:
        """bool [A,A*M]: the words that each arm may look at; its own if there are no others."""
        own = torch.eye(len(self.spaces.states), dtype=torch.bool)
        to_others = self.config.messages and own.shape[0] > 1
        return (~own if to_others else own).repeat_interleave(self.config.message_tokens, dim=1)
