"""OpenVLA: both vision towers, their projector, Llama 2, and actions as it gives them.

Shapes: B batch, V cameras, N tokens, D width, S state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from teamvla.config.bytype import ByType
from teamvla.contract import Contract
from teamvla.files import publish
from teamvla.models.chunking import ChunkSize, ExecutionConfig
from teamvla.models.features import Features, Tokens
from teamvla.models.heads.base import HeadConfig
from teamvla.models.initialization import init_transformer
from teamvla.models.losses import LossConfig
from teamvla.models.normalization import NormalizationConfig
from teamvla.models.observations import texts_of
from teamvla.models.openvla.architecture import LAYOUT, OpenVLAArchitecture
from teamvla.models.openvla.decoder import Decoder
from teamvla.models.openvla.extras import (
    load_finetuned_parts,
    save_finetuned_parts,
    statistics_of,
    take_statistics,
)
from teamvla.models.openvla.heads import OPENVLA_HEADS, Prompt, TokenHeadConfig
from teamvla.models.openvla.inputs import (
    folder_of,
    pictures_of,
    require_pictures,
    state_of_rows,
    stretched,
)
from teamvla.models.openvla.layout import read_weights, write_json, write_weights
from teamvla.models.openvla.tokenizer import PublishedTokenizer
from teamvla.models.openvla.towers import Tower
from teamvla.models.spaces import Spaces
from teamvla.models.temporal.remembering import RememberingConfig, RememberingPolicy

_PROMPT = "In: What action should the robot take to {}?\nOut:"


class OpenVLAConfig(RememberingConfig):
    """Settings of :class:`OpenVLAWrapper`."""

    type: Literal["openvla"] = Field(default="openvla", description="OpenVLA, and OpenVLA-OFT.")
    chunk_size: ChunkSize = 1
    weights: str | None = Field(
        default=None, description="Folder of a published model to start from; null: from scratch."
    )
    architecture: OpenVLAArchitecture = OpenVLAArchitecture()
    head: Annotated[HeadConfig, ByType(OPENVLA_HEADS, "tokens")] = TokenHeadConfig()
    use_state: bool = Field(default=False, description="Whether the state is a token (OFT).")
    freeze_vision: bool = Field(default=False, description="Keep both vision towers as they are.")
    unnorm_key: str | None = Field(
        default=None,
        description="Name of the action ranges in the folder that are used; null: the data's.",
    )
    normalization: NormalizationConfig = NormalizationConfig(actions="quantiles")
    execution: ExecutionConfig = ExecutionConfig(replan_every=1)

    @model_validator(mode="after")
    def _ranges_have_a_folder(self) -> Self:
        if self.unnorm_key is not None and self.weights is None:
            raise ValueError("unnorm_key names ranges in the folder of weights, and there is none")
        return self

    @model_validator(mode="before")
    @classmethod
    def _architecture_of_the_weights(cls, data: Any) -> Any:
        """Written out, so that a checkpoint needs no folder to be built again."""
        if not isinstance(data, dict) or not data.get("weights") or data.get("architecture"):
            return data
        return {**data, "architecture": OpenVLAArchitecture.from_folder(Path(data["weights"]))}


class FusedVision(nn.Module):
    """Patches of both towers side by side, each from its second-to-last block."""

    def __init__(self, architecture: OpenVLAArchitecture) -> None:
        super().__init__()
        self.dino, self.siglip = Tower(architecture.dino), Tower(architecture.siglip)
        self.dim = architecture.dino.hidden_size + architecture.siglip.hidden_size

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures [B,3,H,W] in 0..1 to [B,N,D]."""
        seen = [
            tower.penultimate(stretched(pictures, tower.config.image_size))
            for tower in (self.dino, self.siglip)
        ]
        return torch.cat(seen, dim=-1)


class FusedProjector(nn.Module):
    """Three layers with GELU from patches to the width of a language model."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, 4 * inputs)
        self.fc2, self.fc3 = nn.Linear(4 * inputs, outputs), nn.Linear(outputs, outputs)
        init_transformer(self)

    def forward(self, patches: Tensor) -> Tensor:
        """[B,N,inputs] to [B,N,outputs]."""
        hidden = functional.gelu(self.fc2(functional.gelu(self.fc1(patches))))
        projected: Tensor = self.fc3(hidden)
        return projected


class StateProjector(nn.Module):
    """A normalised state as one token, as OpenVLA-OFT has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)

    def forward(self, state: Tensor) -> Tensor:
        """[B,S] to [B,1,D]."""
        token: Tensor = self.fc2(functional.gelu(self.fc1(state)))
        return token.unsqueeze(1)


class OpenVLAWrapper(RememberingPolicy):
    """OpenVLA (Kim et al. 2024, arXiv 2406.09246) and OpenVLA-OFT (Kim et al. 2025, 2502.19645).

        picture -> DINOv2 and SigLIP -> patches side by side -> projector --+
        "In: What action should the robot take to {instruction}?\\nOut:" ----+-> Llama 2 -> head
                                                state -> token (use_state) --+
                                    what is recalled -> token (temporal) ----+

    The tokens are [BOS, patches of every camera, state, recalled, prompt]; of several cameras the
    patches follow each other, as in OFT. Instructions are read in lower case, as they were in
    training. Without ``weights`` it is a small model with fresh ones.

    Args:
        config, contract, statistics, loss: see :class:`teamvla.models.base.Policy`.

    Raises:
        ConfigError: there is no camera, or ``weights`` hold another model.
    """

    Config = OpenVLAConfig
    config: OpenVLAConfig
    SIZES = {"image_size": 64, "action_dim": 7}  # noqa: RUF012

    def __init__(
        self,
        config: OpenVLAConfig,
        contract: Contract | Spaces,
        statistics: Mapping[str, Any] | None = None,
        loss: LossConfig | None = None,
    ) -> None:
        super().__init__(config, contract, statistics, loss)
        require_pictures(self.spaces, config.type)
        folder = folder_of(config.weights)
        # What is loaded anyway is not made up first: of 7.5 billion numbers that takes minutes.
        with nullcontext() if folder is None else torch.device("meta"):
            self._build(config.architecture)
        self.tokenizer = PublishedTokenizer(config.architecture.tokenizer_bytes)
        self.tokenizer.load_from(config.weights)
        width = config.architecture.language.hidden_size
        self.state_projector = None
        if config.use_state:
            self.state_projector = StateProjector(self.spaces.state_dim, width)
        self._build_head(width)
        if folder is not None:
            self._load(folder)
        self.build_recollection(True, config.use_state and self.spaces.state_dim > 0)
        self.build_memory_token(width)
        self._freeze()

    def _build(self, architecture: OpenVLAArchitecture) -> None:
        width = architecture.language.hidden_size
        self.vision = FusedVision(architecture)
        self.projector = FusedProjector(self.vision.dim, width)
        self.language_model = Decoder(architecture.language)

    def _build_head(self, width: int) -> None:
        config, spaces = self.config, self.spaces
        head = OPENVLA_HEADS.get(config.head.type)(
            width, spaces.action_dim, config.chunk_size,
            architecture=config.architecture, grippers=spaces.grippers, config=config.head,
        )  # fmt: skip
        self.heads = nn.ModuleList([head])

    def _load(self, folder: Path) -> None:
        for part in (self.vision, self.projector, self.language_model):
            part.to_empty(device="cpu")
        LAYOUT.fill(self, read_weights(folder), str(folder))
        load_finetuned_parts(self.heads[0], self.state_projector, folder)
        if self.config.unnorm_key is not None:
            take_statistics(self.normalizer, self.spaces, folder, self.config.unnorm_key)

    def _freeze(self) -> None:
        for tower in (self.vision.dino, self.vision.siglip):
            tower.freeze_unused()
        if self.config.freeze_vision:
            self.vision.requires_grad_(False)
        if self.config.head.type == "parallel":
            self.language_model.lm_head.requires_grad_(False)  # it is not asked for tokens

    def encode(self, batch: Mapping[str, Any]) -> list[Features]:
        """See :meth:`Policy.encode`; the features are a :class:`Prompt`."""
        observations = batch["observations"]
        pictures = pictures_of(observations, self.spaces)
        rows = pictures.shape[0]
        patches: Tensor = self.projector(self.vision(pictures.flatten(0, 1)))
        seen = [patches.reshape(rows, -1, patches.shape[-1])]
        if self.state_projector is not None:
            state = self.normalizer.normalize_state(state_of_rows(observations))
            seen.append(self.state_projector(state))
        seen += self.memory_tokens(self.recalled(batch))
        language = batch.get("language")
        ids, counts = self._read(texts_of("" if language is None else language, rows))
        words = self.language_model.embed_tokens(ids)
        values = torch.cat(
            [words[:, :1], *(part.to(words.dtype) for part in seen), words[:, 1:]], 1
        )
        between = values.shape[1] - ids.shape[1]
        mask = torch.cat([counts[:, :1], counts.new_ones(rows, between), counts[:, 1:]], 1)
        tokens = Tokens(values, mask)
        return [Prompt(tokens.mean(), tokens, self.language_model)]

    def _read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tokens of the prompts, int64 [B,L], and which count.

        Padding stands behind the first, so that the last always counts.
        """
        read = [self.tokenizer.encode(_PROMPT.format(text.lower())) for text in texts]
        ids, counts = self.tokenizer.batch([self._ended(row)[1:] for row in read], "left")
        first = torch.tensor([row[:1] for row in read], device=ids.device)
        return torch.cat([first, ids], 1), functional.pad(counts, (1, 0), value=True)

    def _ended(self, tokens: list[int]) -> list[int]:
        """Tokens that end in the empty one."""
        empty = self.config.architecture.empty_token
        return tokens if empty is None or tokens[-1] == empty else [*tokens, empty]

    def save_published(self, folder: str | Path) -> Path:
        """Write it as OpenVLA is published: configuration, weights, tokenizer and ranges.

        Raises:
            FileExistsError: there is one. ConfigError: it has a memory.
        """
        folder = Path(folder)
        self.require_no_memory()
        write_weights(folder, LAYOUT.outward(self.state_dict()))
        if self.config.architecture.tokenizer_bytes:
            data = bytes(self.tokenizer.file.cpu().numpy())
            publish(folder / "tokenizer.json", lambda file: file.write(data))
        save_finetuned_parts(self.heads[0], self.state_projector, folder)
        write_json(folder / "dataset_statistics.json", statistics_of(self.normalizer))
        write_json(folder / "config.json", self.config.architecture.to_published())
        return folder
