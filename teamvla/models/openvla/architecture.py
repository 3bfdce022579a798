"""Sizes of OpenVLA, from and to the ``config.json`` that is published with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from teamvla.config import Settings
from teamvla.errors import ConfigError
from teamvla.models.openvla.decoder import DecoderSettings
from teamvla.models.openvla.layout import Layout, Rename, read_config
from teamvla.models.openvla.tokenizer import tokenizer_bytes
from teamvla.models.openvla.towers import Colour, TowerSettings

#: token of Llama 2 that stood behind the prompt in training, and that inference has to append
_EMPTY_TOKEN = 29_871
_DINO, _SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"


class DinoSettings(TowerSettings):
    """A tower as DINOv2 with registers is."""

    num_hidden_layers: int = Field(default=3, ge=2, description="Blocks; the last is not run.")
    class_token: bool = Field(default=True, description="Whether a CLS token goes first.")
    registers: int = Field(default=4, ge=0, description="Tokens that belong to no patch.")
    layer_scale: bool = Field(default=True, description="Whether branches have learned scales.")
    mean: Colour = Field(default=(0.485, 0.456, 0.406), description="Of the colours, 0..1.")
    std: Colour = Field(default=(0.229, 0.224, 0.225), description="Of the colours, 0..1.")


class SiglipSettings(TowerSettings):
    """A tower as SigLIP is."""

    num_hidden_layers: int = Field(default=3, ge=2, description="Blocks; the last is not run.")
    pooled: bool = Field(
        default=True, description="Whether the weights have an attention pooling, unused here."
    )


#: towers that a published config names
_TOWERS: dict[str, dict[str, int]] = {
    _DINO: {"patch_size": 14, "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16},
    _SIGLIP: {"patch_size": 14, "hidden_size": 1152, "intermediate_size": 4304,
              "num_hidden_layers": 27, "num_attention_heads": 16},
}  # fmt: skip


class OpenVLAArchitecture(Settings):
    """Sizes of :class:`teamvla.models.openvla.wrapper.OpenVLAWrapper`; small unless told."""

    dino: DinoSettings = DinoSettings()
    siglip: SiglipSettings = SiglipSettings()
    language: DecoderSettings = DecoderSettings()
    pad_to_multiple_of: int = Field(
        default=64, ge=0, description="Tokens at the vocabulary's end that nothing stands for."
    )
    num_bins: int = Field(default=256, ge=3, description="Action tokens: the last before those.")
    empty_token: int | None = Field(
        default=None, ge=0, description="Token that is put behind every prompt; null: none."
    )
    stop_token: int = Field(default=2, ge=0, description="Token behind the actions.")
    tokenizer_bytes: int = Field(
        default=0, ge=0, description="Size of the tokenizer in the weights; 0: bytes are tokens."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.dino.num_patches != self.siglip.num_patches:
            raise ValueError("dino and siglip must cut a picture into as many patches")
        room = 0 if self.tokenizer_bytes else 259
        if self.vocabulary < max(room, self.num_bins):
            raise ValueError("language.vocab_size leaves no room for bytes, bins and padding")
        return self

    @property
    def vocabulary(self) -> int:
        """Tokens that stand for something."""
        return self.language.vocab_size - self.pad_to_multiple_of

    @classmethod
    def from_folder(cls, folder: Path) -> OpenVLAArchitecture:
        """The sizes of the model that a folder holds.

        Raises:
            InputError: a file is missing. ConfigError: it is another model.
        """
        where, config = str(folder / "config.json"), read_config(folder)
        size = len(tokenizer_bytes(folder)) if config.get("tokenizer", True) else 0
        return cls.from_published(config, where, tokenizer_bytes=size)

    @classmethod
    def from_published(
        cls, config: Mapping[str, Any], where: str = "config.json", *, tokenizer_bytes: int = 0
    ) -> OpenVLAArchitecture:
        """The sizes in a published ``config.json``.

        Raises:
            ConfigError: it is another model, or one of parts that are not known here.
        """
        if config.get("model_type") != "openvla" or not config.get("use_fused_vision_backbone"):
            got = f"model_type {config.get('model_type')!r}"
            raise ConfigError(where, "an OpenVLA with both vision towers", got)
        towers = _towers(config, where)
        language = DecoderSettings.from_transformers(config.get("text_config") or {}, where)
        return cls(
            dino=DinoSettings(**towers[0]),
            siglip=SiglipSettings(**towers[1]),
            language=language,
            pad_to_multiple_of=config.get("pad_to_multiple_of", 64),
            num_bins=config.get("n_action_bins", 256),
            empty_token=config.get(
                "empty_token", _EMPTY_TOKEN if language.vocab_size > _EMPTY_TOKEN else None
            ),
            tokenizer_bytes=tokenizer_bytes,
        )

    def to_published(self) -> dict[str, Any]:
        """A ``config.json`` as is published; keys of ours say what that has no words for."""
        towers = [self.dino.model_dump(), self.siglip.model_dump()]
        return {
            "architectures": ["OpenVLAForActionPrediction"],
            "model_type": "openvla",
            "arch_specifier": "no-align+fused-gelu-mlp",
            "use_fused_vision_backbone": True,
            "timm_model_ids": [_DINO, _SIGLIP],
            "timm_override_act_layers": [None, None],
            "image_sizes": [tower["image_size"] for tower in towers],
            "image_resize_strategy": "resize-naive",
            "text_config": self.language.to_transformers(),
            "pad_to_multiple_of": self.pad_to_multiple_of,
            "n_action_bins": self.num_bins,
            "empty_token": self.empty_token,
            "towers": towers,
            "tokenizer": bool(self.tokenizer_bytes),
        }


def _towers(config: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    if isinstance(own := config.get("towers"), list) and len(own) == 2:
        return own
    names, sizes = config.get("timm_model_ids"), config.get("image_sizes")
    if names != [_DINO, _SIGLIP] or not isinstance(sizes, list) or len(sizes) != 2:
        raise ConfigError(where, f"the vision towers {_DINO} and {_SIGLIP}", str(names))
    return [{**_TOWERS[n], "image_size": size} for n, size in zip(names, sizes, strict=True)]


def _tower_table(theirs: str, ours: str) -> list[Rename]:
    """Names of a tower as timm has them."""
    block, pool = "blocks.{n}", "attn_pool"
    mlps = [
        Rename(f"{theirs}.{there}.mlp.fc{number}.{{w}}", (f"{ours}.{here}.mlp.{place}.{{w}}",))
        for there, here in ((block, block), (pool, "pooling"))
        for number, place in ((1, 0), (2, 2))
    ]
    attention = f"{ours}.{block}.attention"
    rows = {
        "patch_embed.proj.{w}": "patches.{w}",
        "pos_embed": "positions",
        "cls_token": "cls",
        "reg_token": "registers",
        "norm.{w}": "norm.{w}",
        f"{block}.norm1.{{w}}": f"{block}.norm_attention.{{w}}",
        f"{block}.norm2.{{w}}": f"{block}.norm_mlp.{{w}}",
        f"{block}.ls1.scale_factor": f"{block}.scale_attention",
        f"{block}.ls2.scale_factor": f"{block}.scale_mlp",
        f"{block}.attn.proj.{{w}}": f"{block}.attention.o_proj.{{w}}",
        f"{pool}.latent": "pooling.latent",
        f"{pool}.norm.{{w}}": "pooling.norm.{w}",
        f"{pool}.q.{{w}}": "pooling.attention.q_proj.{w}",
        f"{pool}.proj.{{w}}": "pooling.attention.o_proj.{w}",
    }
    packed = [
        Rename(f"{theirs}.{block}.attn.qkv.{{w}}",
               tuple(f"{attention}.{name}_proj.{{w}}" for name in "qkv")),
        Rename(f"{theirs}.{pool}.kv.{{w}}",
               tuple(f"{ours}.pooling.attention.{name}_proj.{{w}}" for name in "kv")),
    ]  # fmt: skip
    plain = [Rename(f"{theirs}.{name}", (f"{ours}.{own}",)) for name, own in rows.items()]
    return [*plain, *packed, *mlps]


#: names of the weights published as openvla-7b for those of the policy
LAYOUT = Layout(
    [
        *_tower_table("vision_backbone.featurizer", "vision.dino"),
        *_tower_table("vision_backbone.fused_featurizer", "vision.siglip"),
        *(Rename(f"projector.fc{n}.{{w}}", (f"projector.fc{n}.{{w}}",)) for n in (1, 2, 3)),
        Rename("language_model.lm_head.weight", ("language_model.lm_head.weight",)),
        Rename("language_model.model.{rest}", ("language_model.{rest}",)),
    ]
)
