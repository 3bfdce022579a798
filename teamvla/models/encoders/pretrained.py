"""Pictures to tokens by pretrained vision transformers.

    | model                   | tokens before the patches | positions | pixels        |
    | ----------------------- | ------------------------- | --------- | ------------- |
    | SigLIP, SigLIP 2        | none                      | learned   | [-1, 1]       |
    | SigLIP 2 NaFlex         | none                      | learned   | [-1, 1]       |
    | CLIP                    | CLS                       | learned   | OpenAI's mean |
    | DINOv2                  | CLS                       | learned   | ImageNet mean |
    | DINOv2 with registers   | CLS, registers            | learned   | ImageNet mean |
    | DINOv3                  | CLS, registers            | rotary    | ImageNet mean |

SigLIP: Zhai et al. 2023, arXiv 2303.15343. SigLIP 2: Tschannen et al. 2025, arXiv 2502.14786.
CLIP: Radford et al. 2021, arXiv 2103.00020. DINOv2: Oquab et al. 2023, arXiv 2304.07193, and
with registers Darcet et al. 2023, arXiv 2309.16588. DINOv3: Simeoni et al. 2025, arXiv 2508.10104.

Shapes: B batch, C colours, H W pixels, P side of a patch, N patches, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from teamvla.errors import ConfigError
from teamvla.models.encoders.base import EncoderConfig, VisionBackbone
from teamvla.models.encoders.vision import FlattenPooling
from teamvla.models.pretrained import loading
from teamvla.models.pretrained.settings import PretrainedSettings, are_weights_following

_HALF = (0.5, 0.5, 0.5)
_OPENAI = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class VisionFamily:
    """What must be known of a kind of model beside its architecture.

    Attributes:
        model: its class in transformers.
        has_cls: whether a CLS token comes first; registers follow it.
        pixels: mean and deviation of the colours it was trained with, of 0..1.
        unused: weights that say nothing of the patches' tokens.
        interpolates: whether it must be told to fit its positions to the picture.
    """

    model: str
    has_cls: bool
    pixels: tuple[tuple[float, ...], tuple[float, ...]]
    unused: tuple[str, ...] = ()
    interpolates: bool = False


#: ``model_type`` of an architecture -> its family
FAMILIES = {
    "siglip_vision_model": VisionFamily(
        "SiglipVisionModel", False, (_HALF, _HALF), interpolates=True
    ),
    "siglip2_vision_model": VisionFamily("Siglip2VisionModel", False, (_HALF, _HALF)),
    "clip_vision_model": VisionFamily(
        "CLIPVisionModel", True, _OPENAI, ("post_layernorm",), interpolates=True
    ),
    "dinov2": VisionFamily("Dinov2Model", True, _IMAGENET, ("embeddings.mask_token",)),
    "dinov2_with_registers": VisionFamily(
        "Dinov2WithRegistersModel", True, _IMAGENET, ("embeddings.mask_token",)
    ),
    "dinov3_vit": VisionFamily("DINOv3ViTModel", True, _IMAGENET, ("embeddings.mask_token",)),
}


class PretrainedVisionConfig(PretrainedSettings, EncoderConfig):
    """Settings of :class:`PretrainedVisionEncoder`."""

    type: Literal["pretrained"] = Field(default="pretrained", description="A pretrained ViT.")
    model_name: str = Field(
        default="siglip-base",
        description="Folder of the model, a short name, or a name on the hub.",
    )
    freeze: bool = Field(default=True, description="Whether its weights stay as they are.")
    image_size: int | None = Field(
        default=None,
        ge=1,
        description="Side that pictures are scaled to, pixels, a multiple of the patch; null: "
        "as the model was trained. Fewer pixels are fewer tokens.",
    )
    output_dim: int | None = Field(
        default=None, ge=1, description="Width of a token behind a linear layer; null: the model's."
    )
    reduced: int = Field(default=32, ge=1, description="Pooling: width that a token is reduced to.")
    grid: int = Field(default=8, ge=1, description="Pooling: largest side of the map that is kept.")
    features: int = Field(default=128, ge=1, description="Length of a picture's feature vector.")

    def read_architecture(self) -> dict[str, Any]:
        """See :meth:`PretrainedSettings.read_architecture`."""
        architecture = loading.read_architecture(self.model_name, "vision_config")
        _family(architecture, self.model_name)
        # Its pooling says nothing of the patches.
        unpooled = {"vision_use_head": False} if "vision_use_head" in architecture else {}
        return architecture | unpooled

    def completed(self) -> Self:
        """See :meth:`PretrainedSettings.completed`; the side of the pictures too."""
        settings = super().completed()
        if settings.image_size is not None:
            return settings
        side = _trained_side(settings.architecture or {}, self.model_name)
        return settings.model_copy(update={"image_size": side})


class PretrainedVisionEncoder(VisionBackbone):
    """The tokens of the patches that a pretrained model makes of a picture.

        [B,C,H,W] in [-1, 1] -> S x S pixels -> the model's mean and deviation -> model
            -> [CLS, registers, patches] -> patches, row by row [B,N,D]

    A picture is scaled to S = ``image_size`` on both sides, bicubic, inside the network: the
    recorded ones are smaller than what these models were trained with. With another S than
    theirs positions are interpolated, as transformers does it for the family, and N is (S/P)^2.
    A frozen model stays in evaluation mode whatever the policy is put in, and gets no gradient.
    The specification calls it ``VisionEncoder``; here that is the ViT trained from scratch.

    Args:
        config: settings; or give them one by one as ``settings``.
        picture: channels, height and width of the pictures; their size is free.

    Raises:
        MissingDependencyError: transformers is not installed.
        InputError: there is no such model.
        ConfigError: it is of no family that is supported, or does not take such pictures.
    """

    Config = PretrainedVisionConfig
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: PretrainedVisionConfig | None = None,
        picture: tuple[int, int, int] = (3, 224, 224),
        **settings: Any,
    ) -> None:
        config = (config or PretrainedVisionConfig(**settings)).completed()
        super().__init__(config, picture)
        architecture = config.architecture or {}
        family = _family(architecture, config.model_name)
        channels = architecture.get("num_channels", 3)
        if picture[0] != channels:
            expected = f"pictures of {channels} channels"
            raise ConfigError(f"vision.model_name {config.model_name!r}", expected, f"{picture[0]}")
        self.config, self.family = config, family
        self.image_size = config.image_size or 0
        self.patch_size = _patch(architecture)
        self.side = _patches(self.image_size, self.patch_size)
        self.num_tokens, self.features = self.side**2, config.features
        registers = architecture.get("num_register_tokens", 0)
        self.num_before = (1 + registers) if family.has_cls else 0
        self.model = loading.build_model(family.model, config)
        self.keep_frozen()
        for name, colours in zip(("mean", "std"), _pixels(config, family), strict=True):
            self.register_buffer(name, torch.tensor(colours).view(1, -1, 1, 1))
        width = architecture["hidden_size"]
        self.dim = config.output_dim or width
        self.output = nn.Linear(width, self.dim) if config.output_dim else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B,C,H,W] in [-1, 1], of any size, to the tokens of their patches [B,N,D]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze):
            seen = self._seen(self._fitted(images)).last_hidden_state
            patches = seen[:, self.num_before :].float()
        tokens: Tensor = self.output(patches)
        return tokens

    def train(self, mode: bool = True) -> PretrainedVisionEncoder:
        """Switch the mode; a frozen model keeps to evaluation."""
        super().train(mode)
        if self.config.freeze:
            self.model.eval()
        return self

    def pooling(self) -> nn.Module:
        """Tokens reduced, the map averaged onto the grid, one linear layer over its places."""
        return GridPooling(self.side, self.dim, self.config)

    def keep_frozen(self) -> None:
        """Freeze what is not used, and all of it if the settings say so."""
        if self.config.freeze:
            self.model.requires_grad_(False)
        for name in self.family.unused:
            for path, parameter in self.model.named_parameters():
                if path == name or path.startswith(f"{name}."):
                    parameter.requires_grad_(False)

    def _fitted(self, images: Tensor) -> Tensor:
        """Pictures as the model was trained on."""
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            # Bicubic overshoots at edges; no colour is brighter than white.
            images = functional.interpolate(
                images.float(), size, mode="bicubic", antialias=True
            ).clamp(-1, 1)
        return ((images + 1) / 2 - self.mean) / self.std

    def _seen(self, pixels: Tensor) -> Any:
        if self.family.model == "Siglip2VisionModel":
            return self.model(**self._cut(pixels))
        told = {"interpolate_pos_encoding": True} if self.family.interpolates else {}
        return self.model(pixels, **told)

    def _cut(self, pixels: Tensor) -> dict[str, Tensor]:
        """NaFlex takes patches [B,N,P*P*C] and how many there are on each side."""
        rows, patch = pixels.shape[0], self.patch_size
        grid = pixels.reshape(rows, -1, self.side, patch, self.side, patch)
        patches = grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        whole = torch.ones(patches.shape[:2], dtype=torch.int64, device=pixels.device)
        shapes = torch.full((rows, 2), self.side, dtype=torch.int64, device=pixels.device)
        return {"pixel_values": patches, "pixel_attention_mask": whole, "spatial_shapes": shapes}


class GridPooling(nn.Module):
    """Tokens of side x side patches to one vector that keeps where things are.

    [...,N,D] -> linear [...,N,reduced] -> mean onto grid x grid -> linear [...,features]
    """

    def __init__(self, side: int, dim: int, config: PretrainedVisionConfig) -> None:
        super().__init__()
        self.side, self.grid = side, min(side, config.grid)
        self.reduce = nn.Linear(dim, config.reduced)
        self.flatten = FlattenPooling(self.grid**2, config.reduced, config.features)

    def forward(self, tokens: Tensor) -> Tensor:
        """[...,N,D] to [...,features]."""
        reduced: Tensor = self.reduce(tokens)
        maps = reduced.reshape(-1, self.side, self.side, reduced.shape[-1]).permute(0, 3, 1, 2)
        places = functional.adaptive_avg_pool2d(maps, self.grid).flatten(2).transpose(1, 2)
        vectors: Tensor = self.flatten(places)
        return vectors.reshape(*tokens.shape[:-2], -1)


def _family(architecture: dict[str, Any], model_name: str) -> VisionFamily:
    kind = architecture.get("model_type")
    if kind not in FAMILIES:
        expected = f"a vision model of the families {', '.join(FAMILIES)}"
        raise ConfigError(f"vision.model_name {model_name!r}", expected, f"{kind}")
    return FAMILIES[kind]


def _patch(architecture: dict[str, Any]) -> int:
    return int(architecture["patch_size"])


def _trained_side(architecture: dict[str, Any], model_name: str) -> int:
    """The side of the pictures that a model's own preparation makes, else of its positions."""
    prepared = loading.read_file(model_name, "preprocessor_config.json")
    for size in (prepared.get("crop_size"), prepared.get("size")):
        side = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
        if isinstance(side, int) and side % _patch(architecture) == 0:
            return side
    if "num_patches" in architecture:
        return int(architecture["num_patches"] ** 0.5) * _patch(architecture)
    return int(architecture["image_size"])


def _patches(side: int, patch: int) -> int:
    if side % patch:
        nearest = max(patch, side // patch * patch)
        mend = f"The nearest are {nearest} and {nearest + patch}."
        expected = f"a multiple of the model's patch, {patch} pixels"
        raise ConfigError("vision.image_size", expected, str(side), mend)
    return side // patch


def _pixels(config: PretrainedVisionConfig, family: VisionFamily) -> list[list[float]]:
    """Mean and deviation of the colours; a checkpoint brings its own."""
    prepared: dict[str, Any] = {}
    if not are_weights_following():
        prepared = loading.read_file(config.model_name, "preprocessor_config.json")
    names = ("image_mean", "image_std")
    return [
        list(prepared.get(name) or default)
        for name, default in zip(names, family.pixels, strict=True)
    ]
