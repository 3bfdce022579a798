"""How OpenVLA gives actions: token by token, or all at once.

Shapes: B batch, N tokens of the prompt, K chunk, A numbers of an action, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from torch.nn import functional

from teamvla.errors import ConfigError
from teamvla.models.features import Features
from teamvla.models.heads.base import ActionHead, HeadConfig, HeadLoss, hold_last
from teamvla.models.losses import masked_mean
from teamvla.models.openvla.architecture import OpenVLAArchitecture
from teamvla.models.openvla.decoder import Decoder
from teamvla.registry import Registry


@dataclass(frozen=True)
class Prompt(Features):
    """Embedded tokens [B,N,D] with the language model that reads on; the last of them counts."""

    model: Decoder


class TokenHeadConfig(HeadConfig):
    """Settings of :class:`TokenHead`."""

    type: Literal["tokens"] = Field(default="tokens", description="Token by token, as published.")


class ParallelHeadConfig(HeadConfig):
    """Settings of :class:`ParallelHead`."""

    type: Literal["parallel"] = Field(default="parallel", description="The chunk at once, by L1.")
    hidden_dim: int | None = Field(
        default=None, ge=1, description="Width of the MLP; null: that of the language model."
    )
    num_blocks: int = Field(default=2, ge=0, description="Residual blocks of the MLP.")


class OpenVLAHead(ActionHead):
    """Base of both: it works on a :class:`Prompt`.

    Args:
        input_dim, action_dim, chunk_size, options: see :class:`ActionHead`.
        architecture: which tokens stand for what.
    """

    def __init__(
        self,
        input_dim: int,
        action_dim: int,
        chunk_size: int = 1,
        *,
        architecture: OpenVLAArchitecture,
        grippers: Sequence[int] = (),
        config: Any = None,
    ) -> None:
        super().__init__(input_dim, action_dim, chunk_size, grippers=grippers, config=config)
        self.architecture = architecture

    @property
    def length(self) -> int:
        """Tokens of a chunk."""
        return int(self.chunk_size * self.action_dim)


class ActionBins:
    """Numbers in [-1, 1] as the last tokens of a vocabulary, as OpenVLA does it.

    The 256 edges of the bins stand at equal distances from -1 to 1; the token of a number is the
    vocabulary's size minus how many edges are not above it. There are 255 middles: a number of
    1 has a token of its own and comes back as the highest middle.

    Args:
        architecture: size of the vocabulary, and how many edges.
    """

    def __init__(self, architecture: OpenVLAArchitecture) -> None:
        self.vocabulary, self.count = architecture.vocabulary, architecture.num_bins

    def tokens(self, actions: Tensor) -> Tensor:
        """Actions [...] to tokens int64 [...]; what is outside [-1, 1] gets the ends' tokens."""
        known = actions.nan_to_num().clamp(-1, 1).double().contiguous()
        return self.vocabulary - torch.bucketize(known, self._edges(actions), right=True)

    def actions(self, tokens: Tensor) -> Tensor:
        """Tokens [...] to the middles of their bins, float32 [...]."""
        edges = self._edges(tokens)
        middles = (edges[:-1] + edges[1:]) / 2
        return middles[(self.vocabulary - tokens - 1).clamp(0, self.count - 2)].float()

    def likelihoods(self, logits: Tensor) -> tuple[Tensor, int]:
        """Of logits [...,V] those of the action tokens, and which token the first of them is."""
        first = self.vocabulary - self.count
        return logits[..., first : self.vocabulary], first

    def _edges(self, like: Tensor) -> Tensor:
        return torch.linspace(-1, 1, self.count, dtype=torch.float64, device=like.device)


class TokenHead(OpenVLAHead):
    """Actions as the next tokens of the language model (Kim et al. 2024, arXiv 2406.09246).

        [BOS, patches, prompt] -> token of number 1 -> ... -> token of number K A

    The loss is the cross-entropy over the whole vocabulary; of an answer only action tokens are
    considered. Without a generator the likeliest is taken. The published models were trained to
    say a stop token behind the actions too: as many tokens as are needed are drawn here, and
    nothing is asked of what comes after them.
    """

    Config = TokenHeadConfig
    bounded = True

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        self.bins = ActionBins(self.architecture)

    def loss(self, features: Features, target: Tensor, is_pad: Tensor) -> HeadLoss:
        """Mean surprise at the tokens of the numbers; see :meth:`ActionHead.loss`."""
        prompt, target = _prompt(features), hold_last(target, is_pad)
        tokens = self.bins.tokens(target).flatten(1)
        told = prompt.model.embed_tokens(tokens[:, :-1])
        read, mask = _joined(prompt, told)
        allowed = mask[:, None, None] & _causal(read.shape[1], read.device)
        hidden, _ = prompt.model(read, _positions(mask), allowed)
        logits = prompt.model.lm_head(hidden[:, -self.length :]).float()
        surprise = functional.cross_entropy(
            logits.flatten(0, 1), tokens.flatten(), reduction="none"
        ).view_as(target)
        # No bin stands for what is no number, and it must not pass for one.
        entropy = masked_mean(surprise.where(target.isfinite(), torch.nan), is_pad)
        return HeadLoss(entropy, {"entropy": entropy})

    @torch.no_grad()
    def sample(self, features: Features | Tensor, generator: Generator | None = None) -> Tensor:
        """See :meth:`ActionHead.sample`; the prompt is read once."""
        prompt = _prompt(features)
        mask, model = prompt.tokens.mask, prompt.model
        allowed = mask[:, None, None] & _causal(mask.shape[1], mask.device)
        hidden, seen = model(prompt.tokens.values, _positions(mask), allowed)
        said: list[Tensor] = []
        for _ in range(self.length):
            if said:
                mask = functional.pad(mask, (0, 1), value=True)
                place = mask.sum(1, keepdim=True) - 1
                told = model.embed_tokens(said[-1])
                hidden, seen = model(told, place, mask[:, None, None], seen)
            said.append(self._choose(model.lm_head(hidden[:, -1:]).float(), generator))
        actions = self.bins.actions(torch.cat(said, 1))
        return actions.reshape(-1, self.chunk_size, self.action_dim)

    def _choose(self, logits: Tensor, generator: Generator | None) -> Tensor:
        """A token [B,1] from logits [B,1,V]."""
        likely, first = self.bins.likelihoods(logits)
        if generator is None:
            return likely.argmax(-1) + first
        chances = likely.softmax(-1).flatten(0, 1).to(generator.device)
        return torch.multinomial(chances, 1, generator=generator).to(logits.device) + first


class ResidualMLP(nn.Module):
    """The MLP of OpenVLA-OFT: norm, linear, ReLU, (x + relu(linear(norm x))) x n, norm, linear."""

    def __init__(self, inputs: int, hidden: int, outputs: int, num_blocks: int) -> None:
        super().__init__()
        self.layer_norm1, self.fc1 = nn.LayerNorm(inputs), nn.Linear(inputs, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.ReLU())
            for _ in range(num_blocks)
        )
        self.layer_norm2, self.fc2 = nn.LayerNorm(hidden), nn.Linear(hidden, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """[...,inputs] to [...,outputs]."""
        hidden = functional.relu(self.fc1(self.layer_norm1(tokens)))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        outputs: Tensor = self.fc2(self.layer_norm2(hidden))
        return outputs


class ParallelHead(OpenVLAHead):
    """Parallel decoding with L1, OpenVLA-OFT (Kim et al. 2025, arXiv 2502.19645).

        [BOS, patches, state, prompt, K A empty embeddings, stop] -> language model that looks
        both ways -> K A tokens -> those of one action side by side -> MLP -> [B,K,A]

    As published the tokens are those that stand one place before the empty ones. The mean
    distance to what was demonstrated is the loss.
    """

    Config = ParallelHeadConfig

    def __init__(self, *sizes: int, **options: Any) -> None:
        super().__init__(*sizes, **options)
        hidden = self.config.hidden_dim or self.input_dim
        width = self.input_dim * self.action_dim
        self.model = ResidualMLP(width, hidden, self.action_dim, self.config.num_blocks)

    def loss(self, features: Features, target: Tensor, is_pad: Tensor) -> HeadLoss:
        """See :meth:`ActionHead.loss`."""
        target, predicted = hold_last(target, is_pad), self.sample(features)
        distance = masked_mean((predicted - target).abs(), is_pad)
        return HeadLoss(distance, {"action": distance}, predicted)

    def sample(self, features: Features | Tensor, generator: Generator | None = None) -> Tensor:
        """See :meth:`ActionHead.sample`; it draws nothing."""
        prompt = _prompt(features)
        values = prompt.tokens.values
        rows, length = values.shape[0], self.length
        stop = torch.full((rows, 1), self.architecture.stop_token, device=values.device)
        ending = prompt.model.embed_tokens(stop)
        empty = ending.new_zeros(rows, length, ending.shape[-1])
        read, mask = _joined(prompt, torch.cat([empty, ending], 1))
        hidden, _ = prompt.model(read, _positions(mask), mask[:, None, None])
        tokens = hidden[:, -length - 2 : -2].reshape(rows, self.chunk_size, -1)
        predicted: Tensor = self.model(tokens).float()
        return predicted


OPENVLA_HEADS: Registry[type[OpenVLAHead]] = Registry(
    "OpenVLA head",
    {
        "tokens": "teamvla.models.openvla.heads:TokenHead",
        "parallel": "teamvla.models.openvla.heads:ParallelHead",
    },
)


def _prompt(features: Features | Tensor) -> Prompt:
    if isinstance(features, Prompt):
        return features
    raise ConfigError("OpenVLA head", "what OpenVLAWrapper.encode gives", type(features).__name__)


def _joined(prompt: Prompt, more: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens of the prompt and more [B,M,D] behind it, and which of them count."""
    values, mask = prompt.tokens.values, prompt.tokens.mask
    read = torch.cat([values, more.to(values.dtype)], 1)
    return read, functional.pad(mask, (0, more.shape[1]), value=True)


def _positions(mask: Tensor) -> Tensor:
    """How many tokens that count stand before each, of a mask [B,N]."""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def _causal(length: int, device: torch.device) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
