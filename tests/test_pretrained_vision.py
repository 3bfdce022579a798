"""Pretrained encoders of pictures, tiny ones through the real path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pretrained_models import PATCH, SIDE, VISION, WIDTH, save_vision
from torch.nn import functional

from teamvla.errors import ConfigError, InputError
from teamvla.models.encoders.vision import build_vision_encoder, forward_vision
from teamvla.models.pretrained import VisionEncoder, VisionEncoderConfig, weights_follow
from teamvla.models.pretrained.settings import completed

transformers = pytest.importorskip("transformers")
every_model = pytest.mark.parametrize("name", VISION)
NUM_TOKENS = (SIDE // PATCH) ** 2


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("vision")
    return {name: save_vision(name, root / name) for name in VISION}


def pictures(side: int = SIDE, rows: int = 2) -> torch.Tensor:
    """Scaled pictures."""
    dice = torch.Generator().manual_seed(0)
    return torch.rand(rows, 3, side, side, generator=dice) * 2 - 1


#: what the families' own preparation makes of 0..1, and how many tokens are no patches
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
EXPECTED: dict[str, tuple[Any, int]] = {
    "siglip": (([0.5] * 3, [0.5] * 3), 0),
    "siglip2": (([0.5] * 3, [0.5] * 3), 0),
    "clip": (OPENAI, 1),
    "dinov2": (IMAGENET, 1),
    "dinov2_registers": (IMAGENET, 5),
    "dinov3": (IMAGENET, 5),
}


def from_transformers(name: str, folder: Path, images: torch.Tensor) -> torch.Tensor:
    """All tokens that the library's own model makes of scaled pictures."""
    (mean, std), _ = EXPECTED[name]
    colours = [torch.tensor(c).view(1, 3, 1, 1) for c in (mean, std)]
    pixels = ((images + 1) / 2 - colours[0]) / colours[1]
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "vision_model", model)
    with torch.no_grad():
        if name != "siglip2":
            return model(pixels).last_hidden_state
        # As its image processor cuts them: row by row, each pixel's colours side by side.
        cut = pixels.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)
        patches = cut.permute(0, 2, 3, 4, 5, 1).reshape(len(pixels), NUM_TOKENS, -1)
        shapes = torch.full((len(pixels), 2), SIDE // PATCH)
        whole = torch.ones(patches.shape[:2], dtype=torch.int64)
        return model(patches, whole, shapes).last_hidden_state


@pytest.mark.parametrize("name", EXPECTED)
def test_the_tokens_are_those_of_the_patches(name, folders):
    theirs = from_transformers(name, folders[name], pictures())
    assert theirs.shape[1] == NUM_TOKENS + EXPECTED[name][1]
    ours = VisionEncoder(VisionEncoderConfig(model_name=str(folders[name])))(pictures())
    torch.testing.assert_close(ours, theirs[:, EXPECTED[name][1] :], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("whole", "tower"), [("siglip", "siglip_tower"), ("clip", "clip_tower")])
def test_a_tower_alone_is_loaded_as_well_as_that_of_a_whole_model(whole, tower, folders):
    for name in (whole, tower):
        encoder = VisionEncoder(model_name=str(folders[name]))
        assert encoder(pictures()).shape == (2, NUM_TOKENS, WIDTH)
        assert (encoder.dim, encoder.num_tokens) == (WIDTH, NUM_TOKENS)


@every_model
@pytest.mark.parametrize("side", [48, 20])
def test_pictures_of_another_size_are_scaled_to_the_models(name, side, folders):
    encoder = VisionEncoder(model_name=str(folders[name]))
    size = (SIDE, SIDE)
    scaled = functional.interpolate(pictures(side), size, mode="bicubic", antialias=True)
    expected = encoder(scaled.clamp(-1, 1))
    torch.testing.assert_close(encoder(pictures(side)), expected, rtol=0, atol=1e-6)


@every_model
def test_positions_are_interpolated_where_another_size_is_asked_for(name, folders):
    encoder = VisionEncoder(model_name=str(folders[name]), image_size=16)
    assert encoder.num_tokens == 4
    tokens = encoder(pictures(16))
    assert tokens.shape == (2, 4, WIDTH)
    assert tokens.isfinite().all()
    assert not torch.allclose(tokens[:, 0], tokens[:, 3], atol=1e-2)


@every_model
def test_frozen_weights_get_no_gradient_and_stay_in_evaluation_mode(name, folders):
    encoder = VisionEncoder(model_name=str(folders[name]), output_dim=8).train()
    assert not any(part.training for part in encoder.model.modules())
    encoder(pictures()).sum().backward()
    assert {n for n, p in encoder.named_parameters() if p.grad is not None} == {
        "output.weight",
        "output.bias",
    }


@every_model
def test_a_finite_gradient_reaches_every_weight_that_is_tuned(name, folders):
    encoder = VisionEncoder(model_name=str(folders[name]), freeze=False).train()
    encoder(pictures()).square().sum().backward()
    for path, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, path
            assert parameter.grad.isfinite().all(), path
    left_out = sum(not parameter.requires_grad for parameter in encoder.parameters())
    assert left_out <= 2  # what is behind the CLS token, or of masked patches


@every_model
def test_it_is_built_again_without_its_folder(name, folders, tmp_path):
    elsewhere = save_vision(name, tmp_path / "model")
    encoder = VisionEncoder(model_name=str(elsewhere), freeze=False)
    settings = json.loads(encoder.config.model_dump_json())
    for path in elsewhere.iterdir():
        path.unlink()
    elsewhere.rmdir()
    with weights_follow():
        other = VisionEncoder(VisionEncoderConfig.model_validate(settings))
    for parameter in other.parameters():
        parameter.data.fill_(float("nan"))
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(pictures(20)), encoder(pictures(20)))


def test_bf16_halves_the_weights_and_stays_near(folders):
    exact = VisionEncoder(model_name=str(folders["siglip"]))
    rough = VisionEncoder(model_name=str(folders["siglip"]), dtype="bf16")
    assert {parameter.dtype for parameter in rough.parameters()} == {torch.bfloat16}
    tokens = rough(pictures())
    assert tokens.dtype == torch.float32
    assert (tokens - exact(pictures())).abs().mean() < 0.05


def test_what_the_models_own_preparation_says_counts(tmp_path):
    folder = save_vision("dinov2", tmp_path)
    own = {
        "crop_size": {"height": 16, "width": 16},
        "image_mean": [0.1] * 3,
        "image_std": [0.2] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(own))
    encoder = VisionEncoder(model_name=str(folder))
    assert (encoder.image_size, encoder.num_tokens) == (16, 4)
    torch.testing.assert_close(encoder.mean.flatten(), torch.full((3,), 0.1))
    torch.testing.assert_close(encoder.std.flatten(), torch.full((3,), 0.2))


def test_its_pooling_keeps_places_apart(folders):
    torch.manual_seed(0)
    encoder = VisionEncoder(model_name=str(folders["siglip"]), grid=2, features=6)
    tokens = encoder(pictures())
    pooling = encoder.pooling()
    assert pooling(tokens.expand(3, *tokens.shape)).shape == (3, 2, 6)
    assert not torch.allclose(pooling(tokens), pooling(tokens.flip(1)), atol=1e-4)


def test_it_is_an_encoder_like_the_others(folders):
    config = VisionEncoderConfig(model_name=str(folders["clip"]))
    encoder = build_vision_encoder(config, (3, 64, 64))
    images = torch.randint(0, 256, (2, 3, 3, 64, 64), dtype=torch.uint8)
    assert forward_vision(encoder, images).shape == (2, 3, NUM_TOKENS, WIDTH)


def test_the_names_of_the_specification(folders, monkeypatch):
    from teamvla.models.pretrained import hub

    monkeypatch.setitem(hub.SHORT_NAMES, "siglip-base", "nobody/siglip")
    monkeypatch.setattr(hub, "_snapshot", lambda name, *rest, **more: folders["siglip"])
    encoder = VisionEncoder(VisionEncoderConfig(model_name="siglip-base", image_size=224))
    assert encoder(pictures(224)).shape == (2, (224 // PATCH) ** 2, WIDTH)


# What is wrong is said.


def test_a_language_model_is_no_encoder_of_pictures(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ConfigError, match=r"of the families siglip_vision_model, .*, got qwen2"):
        completed(VisionEncoderConfig(model_name=str(tmp_path)))


def test_a_size_that_the_patch_does_not_divide_is_refused(folders):
    with pytest.raises(ConfigError, match="a multiple of the model's patch, 8 pixels, got 60"):
        VisionEncoder(model_name=str(folders["siglip"]), image_size=60)


def test_pictures_of_other_colours_are_refused(folders):
    config = VisionEncoderConfig(model_name=str(folders["siglip"]))
    with pytest.raises(ConfigError, match="expected pictures of 3 channels, got 1"):
        VisionEncoder(config, (1, 64, 64))


def test_weights_of_another_architecture_are_refused(folders):
    config = completed(VisionEncoderConfig(model_name=str(folders["siglip"])))
    other = {**(config.architecture or {}), "num_hidden_layers": 3}
    with pytest.raises(ConfigError, match="expected num_hidden_layers 2, as in its folder, got 3"):
        VisionEncoder(config.model_copy(update={"architecture": other}))


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    weights = save_vision("dinov2", tmp_path) / "model.safetensors"
    kept = load_file(weights)
    del kept["encoder.layer.1.norm1.weight"]
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(ConfigError, match=r"no encoder.layer.1.norm1.weight \(1 are missing\)"):
        VisionEncoder(model_name=str(tmp_path))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "expected config.json of a model.*, got an empty folder"),
        ({"config.json": '{"model_type": "dinov2"}'}, "got config.json"),
        ({"config.json": "{", "model.safetensors": ""}, "expected the configuration of a model"),
    ],
)
def test_a_folder_without_a_model_is_refused(files, said, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        VisionEncoder(model_name=str(tmp_path))
