"""Large language models as the trunk of a policy.

    | family   | beside the others                                     | paper            |
    | -------- | ----------------------------------------------------- | ---------------- |
    | Qwen 2   |                                                       | arXiv 2407.10671 |
    | Qwen 3   |                                                       | arXiv 2505.09388 |
    | Llama 3  | a token that begins every text                        | arXiv 2407.21783 |
    | Phi-3    | attention in a window of 2,047 tokens in all layers   | arXiv 2404.14219 |
    | Gemma 3  | words scaled by sqrt(D); most layers have a window    | arXiv 2503.19786 |

Shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from teamvla.errors import ConfigError
from teamvla.models.encoders.base import state_of
from teamvla.models.features import Tokens
from teamvla.models.pretrained import loading
from teamvla.models.pretrained.settings import PretrainedSettings, are_weights_following

_LOG = logging.getLogger(__name__)
#: ``model_type`` of an architecture -> its class in transformers
FAMILIES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}


class LLMConfig(PretrainedSettings):
    """Settings of :class:`LLMBackbone`."""

    model_name: str = Field(
        default="qwen2-0.5b",
        description="Folder of the model, a short name, or a name on the hub.",
    )
    attention: Literal["causal", "prefix"] = Field(
        default="causal",
        description="causal: a token looks at those before it, as the model was trained; prefix: "
        "all that is given look at each other.",
    )
    max_text_len: int = Field(default=96, ge=1, description="Tokens that are read of a text.")
    tokenizer_bytes: int | None = Field(
        default=None, ge=1, description="Of its tokenizer in a checkpoint; null: not yet known."
    )

    def read_architecture(self) -> dict[str, Any]:
        """See :meth:`PretrainedSettings.read_architecture`."""
        architecture = loading.read_architecture(self.model_name)
        kind = architecture.get("model_type")
        if kind not in FAMILIES:
            expected = f"a language model of the families {', '.join(FAMILIES)}"
            raise ConfigError(f"llm.model_name {self.model_name!r}", expected, f"{kind}")
        return architecture

    def completed(self) -> Self:
        """See :meth:`PretrainedSettings.completed`; the tokenizer's length too."""
        settings = super().completed()
        if settings.tokenizer_bytes is not None:
            return settings
        length = len(_packed_tokenizer(self.model_name))
        return settings.model_copy(update={"tokenizer_bytes": length})


class Vocabulary(nn.Module):
    """A tokenizer that travels with the weights: its file is a buffer.

    Args:
        config: complete settings of the model that it belongs to.
    """

    file: Tensor

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        content = torch.zeros(config.tokenizer_bytes or 0, dtype=torch.uint8)
        if not are_weights_following():
            packed = bytearray(_packed_tokenizer(config.model_name))
            content = torch.frombuffer(packed, dtype=torch.uint8).clone()
        self.register_buffer("file", content)
        self.max_text_len = config.max_text_len
        self._said = False
        self._read: Any = None
        self._read_for: tuple[object, ...] | None = None

    def __len__(self) -> int:
        return int(self._tokenizer().get_vocab_size())

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Token numbers of each text, with what the model is used to having around them."""
        rows = [encoding.ids for encoding in self._tokenizer().encode_batch(list(texts))]
        for row, text in zip(rows, texts, strict=True):
            self._warn_if_cut(len(row), text)
        return [row[: self.max_text_len] for row in rows]

    def _warn_if_cut(self, length: int, text: str) -> None:
        if length > self.max_text_len and not self._said:
            self._said = True
            _LOG.warning(
                "of instructions only the first %d tokens are read (max_text_len); "
                "one of %d that begins with %r is cut", self.max_text_len, length, text[:40],
            )  # fmt: skip

    def _tokenizer(self) -> Any:
        # Read again when the buffer has been written or moved, as loading does.
        state = state_of([self.file])
        if state is None or state != self._read_for:
            content = zlib.decompress(self.file.cpu().numpy().tobytes())
            self._read, self._read_for = loading.parse_tokenizer(content), state
        return self._read


class LLMBackbone(nn.Module):
    """A pretrained language model that other tokens than words can be put into.

        [pictures | words | ...] [B,N,D] -> embeddings of the model -> [B,N,D], float32

    What comes out is the last layer's states; of the model the layer that guesses words is
    left out. Padding is looked at by nobody, and positions count only what is there, so that a
    row has the same states alone as beside a longer one. Words have the scale that the family
    gives them (Gemma: sqrt(D)).

    Attributes:
        dim: D.

    Args:
        config: settings; or give them one by one as ``settings``.

    Raises:
        MissingDependencyError: transformers is not installed.
        InputError: there is no such model.
        ConfigError: it is of no family that is supported, or its tokenizer is missing or another's.
    """

    Config = LLMConfig

    def __init__(self, config: LLMConfig | None = None, **settings: Any) -> None:
        super().__init__()
        self.config = (config or LLMConfig(**settings)).completed()
        architecture = self.config.architecture or {}
        self.dim: int = architecture["hidden_size"]
        self.window: int | None = architecture.get("sliding_window")
        self.layer_types = set(architecture.get("layer_types") or ())
        whole: Any = loading.build_model(FAMILIES[architecture["model_type"]], self.config)
        self.model: Any = whole.model
        self.vocabulary = Vocabulary(self.config)
        self.keep_frozen()
        if not are_weights_following():
            self._require_own_vocabulary(architecture["vocab_size"])

    def tokenize(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """``input_ids`` int64 [B,N] and ``attention_mask`` bool [B,N], on the model's device.

        A text of more than ``max_text_len`` tokens is cut, with one warning.
        """
        rows, device = self.vocabulary.rows(texts), self.vocabulary.file.device
        lengths = torch.tensor([len(row) for row in rows], device=device)
        ids = pad_sequence([torch.tensor(row, dtype=torch.int64) for row in rows], True).to(device)
        mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
        return {"input_ids": ids, "attention_mask": mask}

    def embed(self, texts: Sequence[str]) -> Tokens:
        """B texts to the model's own tokens [B,N,D] for their words."""
        tokens = self.tokenize(texts)
        return Tokens(self._words(tokens["input_ids"]), tokens["attention_mask"])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        vision_features: Tensor | None = None,
    ) -> Tensor:
        """The specification's call: pictures' tokens, then words; [B,M+N,D], float32.

        Args:
            input_ids: int64 [B,N].
            attention_mask: [B,N], False or 0 on padding.
            vision_features: [B,M,D], already of the model's width.
        """
        words = Tokens(self._words(input_ids), attention_mask.bool())
        if vision_features is None:
            return self.attend(words)
        return self.attend(joined([Tokens.full(vision_features), words]))

    def attend(self, tokens: Tokens, prefix: int | None = None) -> Tensor:
        """States [B,N,D], float32, of tokens [B,N,D] put in where words would be.

        Args:
            prefix: with ``attention: prefix`` so many of them look at each other, those behind
                at all before them; None: all.
        """
        prefix = tokens.values.shape[1] if prefix is None else prefix
        positions = (tokens.mask.long().cumsum(1) - 1).clamp_min(0)
        seen = self.model(
            inputs_embeds=tokens.values.to(self.model.embed_tokens.weight.dtype),
            attention_mask=self._masks(tokens.mask, positions, prefix),
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        states: Tensor = seen.float()
        return states

    def keep_frozen(self) -> None:
        """Freeze its weights if the settings say so."""
        if self.config.freeze:
            self.model.requires_grad_(False)

    def train(self, mode: bool = True) -> LLMBackbone:
        """Switch the mode; a frozen model keeps to evaluation."""
        super().train(mode)
        if self.config.freeze:
            self.model.eval()
        return self

    def _words(self, input_ids: Tensor) -> Tensor:
        # The layer, not its weights: Gemma's scales what it looks up.
        words: Tensor = self.model.get_input_embeddings()(input_ids)
        return words

    def _masks(self, mask: Tensor, positions: Tensor, prefix: int) -> Tensor | dict[str, Tensor]:
        """Who looks at whom, bool [B,1,N,N]; of each kind of layer where there are several."""
        length, device = mask.shape[1], mask.device
        order = torch.arange(length, device=device)
        seen = order <= order[:, None]
        if self.config.attention == "prefix":
            seen = seen | (order < prefix)
        # A row of padding looks at itself: the softmax of nothing is no number.
        own = torch.eye(length, dtype=torch.bool, device=device)
        full = (seen & mask[:, None, :]) | own
        near = full
        if self.window is not None:
            apart = positions[:, :, None] - positions[:, None, :]
            near = full & (apart.abs() < self.window)
        if not self.layer_types:
            return near[:, None]
        return {"full_attention": full[:, None], "sliding_attention": near[:, None]}

    def _require_own_vocabulary(self, size: int) -> None:
        if not 1 < len(self.vocabulary) <= size:
            raise ConfigError(
                f"tokenizer of {self.config.model_name!r}", f"2 to {size} tokens, as the model has",
                f"{len(self.vocabulary)}", "Put the model's own tokenizer into its folder.",
            )  # fmt: skip


def joined(parts: Sequence[Tokens]) -> Tokens:
    """Tokens one behind the other."""
    # Of the widest dtype among them: a model in bf16 casts them all.
    values = torch.cat([part.values.float() for part in parts], dim=1)
    return Tokens(values, torch.cat([part.mask for part in parts], dim=1))


def _packed_tokenizer(model_name: str) -> bytes:
    return zlib.compress(loading.read_tokenizer(model_name), 9)
