"""Sizes of SmolVLA, from SmolVLM2 as transformers has it or from a whole SmolVLA of LeRobot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from teamvla.config import Settings
from teamvla.errors import ConfigError
from teamvla.models.openvla.decoder import DecoderSettings
from teamvla.models.openvla.layout import Layout, Rename, read_config
from teamvla.models.openvla.tokenizer import tokenizer_bytes
from teamvla.models.openvla.towers import TowerSettings

#: the published SmolVLA turns its tokens by this, though SmolVLM2 was trained with 100,000
_ROPE_THETA = 10_000.0
#: what transformers takes for SmolVLM's tower of which it is told nothing else
_VISION = {
    "image_size": 224, "patch_size": 32, "hidden_size": 1152, "intermediate_size": 3072,
    "num_hidden_layers": 12, "num_attention_heads": 16,
}  # fmt: skip
#: the model inside the published SmolVLA, whose folder does not say what that is
_SMOLVLM2_500M: dict[str, Any] = {
    "model_type": "smolvlm",
    "scale_factor": 4,
    "vision_config": {
        "hidden_size": 768, "image_size": 512, "num_attention_heads": 12, "patch_size": 16,
    },
    "text_config": {
        "model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "head_dim": 64,
        "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5,
        "rms_norm_eps": 1e-5, "vocab_size": 49_280,
    },
}  # fmt: skip
_FAMILIES = ("smolvlm", "idefics3")


class SmolVisionSettings(TowerSettings):
    """A SigLIP tower as SmolVLM2 has it."""

    activation: Literal["gelu", "gelu_tanh"] = Field(
        default="gelu_tanh", description="Of the MLPs: exact, or by its tanh approximation."
    )


class SmolVLAArchitecture(Settings):
    """Sizes of :class:`teamvla.models.smolvla.wrapper.SmolVLAWrapper`; small unless told."""

    vision: SmolVisionSettings = SmolVisionSettings()
    language: DecoderSettings = DecoderSettings()
    scale_factor: int = Field(
        default=2, ge=1, description="So many patches in a row and in a column become one token."
    )
    expert_width: float = Field(
        default=0.75, gt=0, description="Width of the action expert / that of the language model."
    )
    self_attention_every: int = Field(
        default=2, ge=1, description="Every so many layers of the expert attend to themselves too."
    )
    max_state_dim: int = Field(default=32, ge=1, description="A state is filled up to it by zeros.")
    max_action_dim: int = Field(default=32, ge=1, description="An action is, likewise.")
    min_period: float = Field(default=4e-3, gt=0, description="Shortest wavelength of the time.")
    max_period: float = Field(default=4.0, gt=0, description="Longest wavelength of the time.")
    tokenizer_bytes: int = Field(
        default=0, ge=0, description="Size of the tokenizer in the weights; 0: bytes are tokens."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        side = self.vision.image_size // self.vision.patch_size
        if side % self.scale_factor:
            raise ValueError(f"scale_factor must divide the {side} patches of a row")
        if self.expert_dim % 2:
            raise ValueError("expert_width must give an even width")
        if not self.tokenizer_bytes and self.language.vocab_size < 259:
            raise ValueError("language.vocab_size leaves no room for bytes")
        return self

    @property
    def expert_dim(self) -> int:
        """Width of the action expert."""
        return int(self.language.hidden_size * self.expert_width)

    @property
    def expert_hidden(self) -> int:
        """Hidden width of its MLPs: 8/3 of the width, up to a multiple of 256."""
        return -(-(int(2 * self.expert_dim / 3) * 4) // 256) * 256

    @classmethod
    def from_folder(cls, folder: Path, num_vlm_layers: int) -> SmolVLAArchitecture:
        """The sizes of the model that a folder holds, with so many layers of the VLM at most.

        Raises:
            InputError: a file is missing. ConfigError: it is another model.
        """
        where, config = str(folder / "config.json"), read_config(folder)
        size = len(tokenizer_bytes(folder)) if config.get("tokenizer", True) else 0
        if config.get("type") == "smolvla":
            return cls.from_lerobot(config, where, tokenizer_bytes=size)
        return cls.from_smolvlm(config, num_vlm_layers, where, tokenizer_bytes=size)

    @classmethod
    def from_smolvlm(
        cls,
        config: Mapping[str, Any],
        num_vlm_layers: int = 16,
        where: str = "config.json",
        **more: Any,
    ) -> SmolVLAArchitecture:
        """The sizes in a ``config.json`` of SmolVLM2, with a fresh expert's.

        Raises:
            ConfigError: it is another model.
        """
        if config.get("model_type") not in _FAMILIES:
            got = f"model_type {config.get('model_type')!r}"
            raise ConfigError(where, "a SmolVLM2, or LeRobot's SmolVLA", got)
        language = DecoderSettings.from_transformers(config.get("text_config") or {}, where)
        layers = min(num_vlm_layers, language.num_hidden_layers)
        tower = config.get("vision_config") or {}
        return cls(
            vision=SmolVisionSettings(**{name: tower.get(name, x) for name, x in _VISION.items()}),
            language=language.model_copy(
                update={"rope_theta": _ROPE_THETA, "num_hidden_layers": layers}
            ),
            scale_factor=config.get("scale_factor", 2),
            **more,
        )

    @classmethod
    def from_lerobot(
        cls, config: Mapping[str, Any], where: str = "config.json", **more: Any
    ) -> SmolVLAArchitecture:
        """The sizes in a ``config.json`` of LeRobot's SmolVLA.

        Raises:
            ConfigError: its expert is built in another way than the published one.
        """
        if config.get("attention_mode", "cross_attn") != "cross_attn" or (
            config.get("num_expert_layers", -1) > 0 or config.get("add_image_special_tokens")
        ):
            raise ConfigError(where, "an expert as in the published SmolVLA", "another kind")
        return cls.from_smolvlm(
            config.get("vlm_config") or _SMOLVLM2_500M,
            config.get("num_vlm_layers", 16),
            where,
            expert_width=config.get("expert_width_multiplier", 0.75),
            self_attention_every=config.get("self_attn_every_n_layers", 2),
            max_state_dim=config.get("max_state_dim", 32),
            max_action_dim=config.get("max_action_dim", 32),
            min_period=config.get("min_period", 4e-3),
            max_period=config.get("max_period", 4.0),
            **more,
        )

    def to_lerobot(self) -> dict[str, Any]:
        """A ``config.json`` of LeRobot; keys of ours say what that has no words for."""
        tower = {name: getattr(self.vision, name) for name in _VISION}
        return {
            "type": "smolvla",
            "attention_mode": "cross_attn",
            "num_vlm_layers": self.language.num_hidden_layers,
            "expert_width_multiplier": self.expert_width,
            "self_attn_every_n_layers": self.self_attention_every,
            "max_state_dim": self.max_state_dim,
            "max_action_dim": self.max_action_dim,
            "min_period": self.min_period,
            "max_period": self.max_period,
            "resize_imgs_with_padding": [self.vision.image_size] * 2,
            "vlm_config": {
                "model_type": "smolvlm",
                "scale_factor": self.scale_factor,
                "vision_config": tower,
                "text_config": self.language.to_transformers(),
            },
            "tokenizer": bool(self.tokenizer_bytes),
        }


def _vlm_table(start: str) -> list[Rename]:
    """Names of SmolVLM2 as transformers writes them, behind a prefix."""
    tower, ours = f"{start}model.vision_model", "vision.blocks.{n}"
    block = f"{tower}.encoder.layers.{{n}}"
    pairs = {
        "self_attn.q_proj": "attention.q_proj",
        "self_attn.k_proj": "attention.k_proj",
        "self_attn.v_proj": "attention.v_proj",
        "self_attn.out_proj": "attention.o_proj",
        "layer_norm1": "norm_attention",
        "layer_norm2": "norm_mlp",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.2",
    }
    blocks = [Rename(f"{block}.{a}.{{w}}", (f"{ours}.{b}.{{w}}",)) for a, b in pairs.items()]
    return [
        Rename(f"{tower}.embeddings.patch_embedding.{{w}}", ("vision.patches.{w}",)),
        Rename(f"{tower}.embeddings.position_embedding.weight", ("vision.positions",), True),
        Rename(f"{tower}.post_layernorm.{{w}}", ("vision.norm.{w}",)),
        *blocks,
        Rename(f"{start}model.connector.modality_projection.proj.weight", ("connector.weight",)),
        Rename(f"{start}lm_head.weight", ("language_model.lm_head.weight",)),
        Rename(f"{start}model.text_model.{{rest}}", ("language_model.{rest}",)),
    ]


def smolvlm_layout(layers: int) -> Layout:
    """Names of SmolVLM2, of which only the first layers are used."""
    beyond = "|".join(map(str, range(layers, 256)))
    return Layout(_vlm_table(""), [rf"model\.text_model\.layers\.({beyond})\.", r".*position_ids$"])


_EXPERT = "model.vlm_with_expert.lm_expert"
#: names of LeRobot's SmolVLA; its normalisation is that of other data
LEROBOT_LAYOUT = Layout(
    [
        *_vlm_table("model.vlm_with_expert.vlm."),
        Rename(f"{_EXPERT}.layers.{{rest}}", ("heads.0.layers.{rest}",)),
        Rename(f"{_EXPERT}.norm.weight", ("heads.0.norm.weight",)),
        Rename("model.state_proj.{w}", ("state_projector.{w}",)),
        Rename("model.action_in_proj.{w}", ("heads.0.action_in.{w}",)),
        Rename("model.action_out_proj.{w}", ("heads.0.action_out.{w}",)),
        Rename("model.action_time_mlp_in.{w}", ("heads.0.time_in.{w}",)),
        Rename("model.action_time_mlp_out.{w}", ("heads.0.time_out.{w}",)),
    ],
    [r"(un)?normalize_(inputs|targets|outputs)\.", r".*position_ids$"],
)
