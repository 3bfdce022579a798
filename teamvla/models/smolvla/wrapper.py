"""SmolVLA: SmolVLM2, of which the first layers are used, and an action expert.

Shapes: B batch, V cameras, N tokens, D width, S state.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from teamvla.contract import Contract
from teamvla.errors import ConfigError
from teamvla.files import publish
from teamvla.models.features import Features, Tokens
from teamvla.models.initialization import init_transformer
from teamvla.models.losses import LossConfig
from teamvla.models.observations import texts_of
from teamvla.models.openvla.decoder import Decoder, DecoderLayer
from teamvla.models.openvla.inputs import (
    folder_of,
    letterboxed,
    pictures_of,
    require_pictures,
    state_of_rows,
)
from teamvla.models.openvla.layout import read_config, read_weights, write_json, write_weights
from teamvla.models.openvla.tokenizer import PublishedTokenizer
from teamvla.models.openvla.towers import Tower
from teamvla.models.smolvla.architecture import (
    LEROBOT_LAYOUT,
    SmolVLAArchitecture,
    smolvlm_layout,
)
from teamvla.models.smolvla.expert import ActionExpert, ExpertHeadConfig, Prefix
from teamvla.models.spaces import Spaces
from teamvla.models.temporal.remembering import RememberingConfig, RememberingPolicy

_LOG = logging.getLogger(__name__)


class SmolVLAConfig(RememberingConfig):
    """Settings of :class:`SmolVLAWrapper`."""

    type: Literal["smolvla"] = Field(default="smolvla", description="SmolVLA.")
    weights: str | None = Field(
        default=None,
        description="Folder of a SmolVLM2 or SmolVLA to start from; null: from scratch.",
    )
    num_vlm_layers: int = Field(
        default=16, ge=1, description="Layers of a SmolVLM2's language model that are used."
    )
    architecture: SmolVLAArchitecture = SmolVLAArchitecture()
    head: ExpertHeadConfig = ExpertHeadConfig()
    freeze_vision: bool = Field(default=False, description="Keep the vision tower as it is.")
    train_expert_only: bool = Field(
        default=False,
        description="Keep all but the expert, the state's projector and the memory as it is.",
    )
    max_text_len: int = Field(default=48, ge=1, description="Tokens read of an instruction.")

    @model_validator(mode="before")
    @classmethod
    def _architecture_of_the_weights(cls, data: Any) -> Any:
        """Written out, so that a checkpoint needs no folder to be built again."""
        if not isinstance(data, dict) or not data.get("weights") or data.get("architecture"):
            return data
        layers = int(data.get("num_vlm_layers", cls.model_fields["num_vlm_layers"].default))
        found = SmolVLAArchitecture.from_folder(Path(data["weights"]), layers)
        return {**data, "architecture": found}


class Connector(nn.Linear):
    """Squares of patches side by side (pixel shuffle, Shi et al. 2016), and a linear layer."""

    def __init__(self, architecture: SmolVLAArchitecture) -> None:
        self.scale_factor = architecture.scale_factor
        width = architecture.vision.hidden_size * self.scale_factor**2
        super().__init__(width, architecture.language.hidden_size, bias=False)
        init_transformer(self)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [B,N,...] of a square picture to tokens [B, N / scale_factor^2, D]."""
        side, scale = round(patches.shape[1] ** 0.5), self.scale_factor
        grid = (side // scale, scale, side // scale, scale)
        squares = patches.reshape(len(patches), *grid, -1)
        return super().forward(squares.transpose(2, 3).flatten(3).flatten(1, 2))


class SmolVLAWrapper(RememberingPolicy):
    """SmolVLA (Shukor et al. 2025, arXiv 2506.01844) on SmolVLM2 (arXiv 2504.05299).

        picture -> SigLIP -> pixel shuffle, linear --+
        "{instruction}\\n" -> tokens ----------------+-> SmolLM2, first layers -> keys and values
        state -> one token -------------------------+                                  |
        what is recalled -> one token (temporal) ---+                                  |
                                                       noise -> action expert -> actions

    Pictures and words see each other; the state and what is recalled see them and each other, and
    they see neither. Without
    ``weights`` it is a small model with fresh ones.

    Args:
        config, contract, statistics, loss: see :class:`teamvla.models.base.Policy`.

    Raises:
        ConfigError: there is no camera, the state is too long, or ``weights`` hold another model.
    """

    Config = SmolVLAConfig
    config: SmolVLAConfig
    SIZES = {"image_size": 64, "state_dim": 6, "action_dim": 6}  # noqa: RUF012
    _warned = False

    def __init__(
        self,
        config: SmolVLAConfig,
        contract: Contract | Spaces,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
    ) -> None:
        super().__init__(config, contract, statistics, loss)
        require_pictures(self.spaces, config.type)
        filled, state = config.architecture.max_state_dim, self.spaces.state_dim
        if state > filled:
            where = "model.architecture.max_state_dim"
            raise ConfigError(where, f"at least {state}, the state", str(filled))
        folder = folder_of(config.weights)
        # What is loaded anyway is not made up first.
        with nullcontext() if folder is None else torch.device("meta"):
            self._build(config.architecture)
        self.tokenizer = PublishedTokenizer(config.architecture.tokenizer_bytes, begins=False)
        self.tokenizer.load_from(config.weights)
        width = config.architecture.language.hidden_size
        self.state_projector = nn.Linear(filled, width)
        expert = ActionExpert(
            width, self.spaces.action_dim, config.chunk_size,
            architecture=config.architecture, grippers=self.spaces.grippers, config=config.head,
        )  # fmt: skip
        self.heads = nn.ModuleList([expert])
        if folder is not None:
            self._load(folder)
        self.build_recollection(True, self.spaces.state_dim > 0)
        self.build_memory_token(width)
        self._freeze()

    def _build(self, architecture: SmolVLAArchitecture) -> None:
        self.vision, self.connector = Tower(architecture.vision), Connector(architecture)
        self.language_model = Decoder(architecture.language)

    def _load(self, folder: Path) -> None:
        for part in (self.vision, self.connector, self.language_model):
            part.to_empty(device="cpu")
        if read_config(folder).get("type") == "smolvla":
            # Compiled models were saved with one more step in their names.
            theirs = ((n.replace("._orig_mod.", "."), t) for n, t in read_weights(folder))
            LEROBOT_LAYOUT.fill(self, theirs, str(folder))
        else:
            layers = self.config.architecture.language.num_hidden_layers
            smolvlm_layout(layers).fill(self, read_weights(folder), str(folder))

    def _freeze(self) -> None:
        model, last = self.language_model, cast(DecoderLayer, self.language_model.layers[-1])
        unused = (last.self_attn.q_proj, last.self_attn.o_proj, last.post_attention_layernorm)
        frozen: list[nn.Module] = [*unused, last.mlp, model.norm, model.lm_head]
        if self.config.freeze_vision:
            frozen.append(self.vision)
        if self.config.train_expert_only:
            frozen += [self.vision, self.connector, self.language_model]
        for part in frozen:
            part.requires_grad_(False)

    def encode(self, batch: Mapping[str, Any]) -> list[Features]:
        """See :meth:`Policy.encode`; the features are a :class:`Prefix`."""
        observations, language = batch["observations"], batch.get("language")
        pictures = pictures_of(observations, self.spaces)
        rows = pictures.shape[0]
        seen = self._see(pictures)
        ids, counts = self._read(texts_of("" if language is None else language, rows))
        words = self.language_model.embed_tokens(ids)
        words = words * math.sqrt(words.shape[-1])
        remembered = self.memory_tokens(self.recalled(batch))
        inner = torch.cat([self._feel(observations, rows), *remembered], 1)
        values = torch.cat([seen.to(words.dtype), words, inner.to(words.dtype)], 1)
        there = counts.new_ones(rows, seen.shape[1])
        mask = torch.cat([there, counts, there[:, : inner.shape[1]]], 1)
        places = torch.arange(mask.shape[1], device=mask.device)
        # The state and what is recalled, which are last, are seen by themselves alone.
        first = len(places) - inner.shape[1]
        allowed = (places < first) | (places[:, None] >= first)
        positions = (mask.long().cumsum(1) - 1).clamp_min(0)
        tokens, caches = self.language_model.keys_values(
            values, positions, allowed & mask[:, None, None]
        )
        return [Prefix(tokens[:, -1], Tokens(tokens, mask), tuple(caches))]

    def _see(self, pictures: Tensor) -> Tensor:
        """Pictures [B,V,3,H,W] to tokens of all cameras [B,N,D], scaled as the words are."""
        side = self.config.architecture.vision.image_size
        tokens = self.connector(self.vision(letterboxed(pictures.flatten(0, 1), side)))
        width: int = tokens.shape[-1]
        joined: Tensor = tokens.reshape(pictures.shape[0], -1, width)
        return joined * math.sqrt(width)

    def _feel(self, observations: Mapping[str, Any], rows: int) -> Tensor:
        """The state as one token [B,1,D]."""
        filled, size = self.config.architecture.max_state_dim, self.spaces.state_dim
        state = torch.zeros(rows, 0, device=self.device)
        if size:
            state = self.normalizer.normalize_state(state_of_rows(observations))
        token: Tensor = self.state_projector(functional.pad(state, (0, filled - size)))
        return token.unsqueeze(1)

    def _read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of instructions, int64 [B,L], and which count; too long ones are cut."""
        most, read = self.config.max_text_len, []
        for text in texts:
            ids = self.tokenizer.encode(text if text.endswith("\n") else f"{text}\n")
            if len(ids) > most and not self._warned:
                self._warned = True
                _LOG.warning(
                    "of instructions only the first %d tokens are read (max_text_len); "
                    "one of %d that begins with %r is cut", most, len(ids), text[:40],
                )  # fmt: skip
            read.append(ids[:most])
        return self.tokenizer.batch(read, "right")

    def save_published(self, folder: str | Path) -> Path:
        """Write it as LeRobot's SmolVLA is published, in one file, with its tokenizer.

        The normalisation is not in it.

        Raises:
            FileExistsError: there is one. ConfigError: it has a memory.
        """
        self.require_no_memory()
        folder, whole = Path(folder), LEROBOT_LAYOUT.outward(self.state_dict())
        write_weights(folder, whole, shard_bytes=2**62)
        if self.config.architecture.tokenizer_bytes:
            data = bytes(self.tokenizer.file.cpu().numpy())
            publish(folder / "tokenizer.json", lambda file: file.write(data))
        chunk = {"chunk_size": self.config.chunk_size, "num_steps": self._steps}
        write_json(folder / "config.json", self.config.architecture.to_lerobot() | chunk)
        return folder

    @property
    def _steps(self) -> int:
        return self.config.head.num_inference_steps
