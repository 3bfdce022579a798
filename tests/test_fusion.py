"""Fusions: what they make of pictures, words and state."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from teamvla.errors import ConfigError, ContractError
from teamvla.models.encoders.language import CharacterConfig, build_text_encoder
from teamvla.models.encoders.resnet import ResNetConfig
from teamvla.models.encoders.vision import ConvConfig, build_vision_encoder
from teamvla.models.encoders.vit import ViTConfig
from teamvla.models.features import Modalities, Tokens
from teamvla.models.fusion.concat import ConcatConfig
from teamvla.models.fusion.cross_modal import CrossModalConfig, CrossModalFusion, across
from teamvla.models.fusion.film import FilmBlock, FilmConfig
from teamvla.models.fusion.hierarchical import HierarchicalConfig, HierarchicalFusion
from teamvla.models.fusion.transformer import TransformerFusionConfig
from teamvla.models.registries import FUSION_REGISTRY
from teamvla.models.registry import ModelRegistry

CONCAT = ConcatConfig(hidden_dim=32, num_blocks=1)
FILM = FilmConfig(hidden_dim=32, num_blocks=1)
TRANSFORMER = TransformerFusionConfig(embed_dim=32, num_heads=2)
CROSS = CrossModalConfig(embed_dim=32, num_heads=2, num_blocks=0)
HIERARCHICAL = HierarchicalConfig(embed_dim=32, num_heads=2)
FUSIONS = [CONCAT, FILM, TRANSFORMER, CROSS, HIERARCHICAL]
CNN = ConvConfig(width=8, reduced=8, grid=4, features=16)
VIT = ViTConfig(patch_size=16, embed_dim=32, num_heads=2, num_layers=1)
ENCODERS = [CNN, ResNetConfig(width=8, grid=4, features=16), VIT]
ROWS, CAMERAS, STATE = 3, 2, 5


def name(config) -> str:
    return str(config.type)


def parts(vision=CNN):
    torch.manual_seed(0)
    text = CharacterConfig(embed_dim=16, num_heads=2, num_layers=1)
    return build_vision_encoder(vision, (3, 32, 32)), build_text_encoder(text)


def fusion_of(config, vision, cameras=CAMERAS, text=None, state_dim=STATE) -> nn.Module:
    torch.manual_seed(1)
    kind = FUSION_REGISTRY.get(config.type)
    return kind(config, vision, cameras, text, state_dim).eval()


def seen_by(vision, text, seed=2) -> Modalities:
    draw = torch.Generator().manual_seed(seed)
    shape = (ROWS, CAMERAS, vision.num_tokens, vision.dim)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2, [True] * 2 + [False] * 4])
    return Modalities(
        torch.randn(shape, generator=draw),
        Tokens(torch.randn((ROWS, 6, text.dim), generator=draw), mask),
        torch.randn((ROWS, STATE), generator=draw),
    )


@pytest.fixture(params=ENCODERS, ids=name)
def vision(request):
    return parts(request.param)[0]


@pytest.mark.parametrize("config", FUSIONS, ids=name)
def test_padded_words_change_nothing_bit_for_bit(config, vision):
    text = parts()[1]
    fusion, seen = fusion_of(config, vision, text=text), seen_by(vision, text)
    junk = seen.text.values.where(seen.text.mask.unsqueeze(-1), 1e4)
    plain, other = fusion(seen), fusion(replace(seen, text=Tokens(junk, seen.text.mask)))
    assert torch.equal(plain.summary, other.summary)
    counted = plain.tokens.mask.unsqueeze(-1)
    assert torch.equal(plain.tokens.values * counted, other.tokens.values * counted)


@pytest.mark.parametrize("config", FUSIONS, ids=name)
def test_every_modality_and_every_camera_counts(config, vision):
    text = parts()[1]
    fusion, seen = fusion_of(config, vision, text=text), seen_by(vision, text)
    plain, another = fusion(seen).summary, seen_by(vision, text, seed=3)
    swapped = [
        replace(seen, pictures=torch.stack([seen.pictures[:, 0], another.pictures[:, 1]], 1)),
        replace(seen, pictures=torch.stack([another.pictures[:, 0], seen.pictures[:, 1]], 1)),
        replace(seen, text=Tokens(another.text.values, seen.text.mask)),
        replace(seen, state=another.state),
    ]
    for changed in swapped:
        assert (fusion(changed).summary - plain).abs().max() > 1e-4


@pytest.mark.parametrize("config", FUSIONS, ids=name)
def test_cameras_are_told_apart(config, vision):
    fusion, seen = fusion_of(config, vision), seen_by(vision, parts()[1])
    seen = replace(seen, text=None)
    exchanged = replace(seen, pictures=seen.pictures.flip(1))
    assert (fusion(seen).summary - fusion(exchanged).summary).abs().max() > 1e-4


def test_transformer_tells_cameras_apart_by_their_embedding_alone():
    vision, text = parts()
    fusion, seen = fusion_of(TRANSFORMER, vision, text=text), seen_by(vision, text)
    exchanged = replace(seen, pictures=seen.pictures.flip(1))
    fusion.cameras.data.zero_()
    torch.testing.assert_close(fusion(seen).summary, fusion(exchanged).summary)


def test_transformer_knows_the_places_of_tokens_of_a_grid():
    vision, text = parts()
    fusion, seen = fusion_of(TRANSFORMER, vision, text=text), seen_by(vision, text)
    turned = replace(seen, pictures=seen.pictures.flip(2))
    assert (fusion(seen).summary - fusion(turned).summary).abs().max() > 1e-4
    fusion.places.data.zero_()
    torch.testing.assert_close(fusion(seen).summary, fusion(turned).summary)


@pytest.mark.parametrize("config", [VIT, CNN], ids=name)
def test_transformer_begins_with_the_cls_tokens_where_there_are_any(config):
    vision, text = parts(config)
    fusion, seen = fusion_of(TRANSFORMER, vision, text=text), seen_by(vision, text)
    fusion.blocks = nn.ModuleList()
    changed = seen.pictures.clone()
    changed[:, 1, 0] += torch.randn(vision.dim, generator=torch.Generator().manual_seed(4))
    moved = fusion(replace(seen, pictures=changed)).summary - fusion(seen).summary
    assert bool(moved.abs().max() > 1e-4) == vision.has_cls


def test_transformer_lays_its_tokens_out_as_documented():
    vision, text = parts()
    fusion, seen = fusion_of(TRANSFORMER, vision, text=text), seen_by(vision, text)
    features = fusion(seen)
    pictures = CAMERAS * vision.num_tokens
    assert features.tokens.values.shape == (ROWS, 1 + pictures + 6 + 1, fusion.dim)
    assert torch.equal(features.summary, features.tokens.values[:, 0])
    assert torch.equal(features.tokens.mask[:, 1 + pictures : -1], seen.text.mask)
    assert features.tokens.mask[:, : 1 + pictures].all()
    assert features.tokens.mask[:, -1].all()


@pytest.mark.parametrize("config", FUSIONS, ids=name)
@pytest.mark.parametrize("given", ["pictures", "text", "state"])
def test_one_modality_alone_is_enough(config, given):
    vision, text = parts()
    seen = seen_by(vision, text)
    alone = Modalities(**{given: getattr(seen, given)})
    fusion = fusion_of(
        config,
        vision if given == "pictures" else None,
        text=text if given == "text" else None,
        state_dim=STATE if given == "state" else 0,
    )
    fusion(alone).summary.square().sum().backward()
    for parameter in fusion.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("config", FUSIONS, ids=name)
def test_rows_of_a_batch_do_not_mix(config, vision):
    text = parts()[1]
    fusion, seen = fusion_of(config, vision, text=text), seen_by(vision, text)
    third = Modalities(
        seen.pictures[2:], Tokens(seen.text.values[2:], seen.text.mask[2:]), seen.state[2:]
    )
    torch.testing.assert_close(
        fusion(third).summary, fusion(seen).summary[2:], rtol=1e-5, atol=1e-5
    )


def test_tokens_look_at_other_modalities_alone_where_there_are_any():
    full = torch.ones(2, 2, dtype=torch.bool)
    empty = torch.tensor([[True, True], [False, False]])
    parts = {"a": Tokens(torch.zeros(2, 2, 4), full), "b": Tokens(torch.zeros(2, 2, 4), empty)}
    seen = across(parts)[:, 0].int().tolist()
    assert seen[0] == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert seen[1] == [[1, 1, 0, 0]] * 4  # the second has nothing to be asked for
    alone = across({"a": Tokens(torch.zeros(2, 2, 4), full)})
    assert alone.all()


def test_the_specification_s_cross_modal_fusion_takes_tensors():
    torch.manual_seed(0)
    fusion = CrossModalFusion(feature_dim=32, num_heads=4).eval()
    given = {name: torch.randn(2, n, 32) for name, n in (("vision", 6), ("lidar", 4), ("radar", 3))}
    fused = fusion(**given)
    assert fused.shape == (2, 6, 32)
    for name in ("vision", "lidar", "radar"):
        other = fusion(**{**given, name: torch.randn_like(given[name])})
        assert (other - fused).abs().max() > 1e-3, name


def test_the_specification_s_hierarchical_fusion_takes_tensors():
    torch.manual_seed(0)
    fusion = HierarchicalFusion(feature_dim=32, num_heads=4).eval()
    given = {name: torch.randn(2, n, 32) for name, n in (("vision", 6), ("lidar", 4), ("radar", 3))}
    fused = fusion(**given)
    assert fused.shape == (2, 32)
    for name in ("vision", "lidar", "radar"):
        other = fusion(**{**given, name: torch.randn_like(given[name])})
        assert (other - fused).abs().max() > 1e-3, name


@pytest.mark.parametrize("kind", [CrossModalFusion, HierarchicalFusion])
def test_tensors_by_position_are_vision_lidar_and_radar(kind):
    torch.manual_seed(0)
    fusion, parts = kind(feature_dim=32, num_heads=4).eval(), torch.randn(3, 2, 5, 32)
    vision, lidar, radar = parts
    by_name = fusion(vision=vision, lidar=lidar, radar=radar)
    assert torch.equal(fusion(vision, lidar, radar), by_name)
    assert torch.equal(fusion(vision, lidar, radar=radar), by_name)
    for given, others, got in (
        ((vision, lidar, radar, radar), {}, "4 by position"),
        ((vision, lidar), {"lidar": lidar}, "'lidar' twice"),
        ((), {}, "0 by position"),
    ):
        with pytest.raises(ContractError, match=f"tokens of vision, lidar, radar .*, got {got}"):
            fusion(*given, **others)


def test_lidar_and_radar_meet_before_the_pictures():
    """The first stage hands on so many tokens of a scene, whatever the sensors had."""
    torch.manual_seed(0)
    fusion = HierarchicalFusion(HierarchicalConfig(embed_dim=32, num_heads=2, scene_tokens=5))
    assert fusion.scene is None  # nothing of the kind
    fusion = HierarchicalFusion(32, num_heads=2)
    parts = {"first": 1, "points": 40, "radar": 12, "vision": 7}
    tokens = {name: Tokens.full(torch.randn(2, n, 32)) for name, n in parts.items()}
    assert fusion._staged(tokens).tokens.mask.shape == (2, 1 + 7 + 16)


def test_film_scales_and_shifts_as_the_formula_says():
    torch.manual_seed(0)
    block = FilmBlock(4, 3)
    tokens, condition = torch.randn(2, 5, 4), torch.randn(2, 3)
    scale, shift = block.modulation(condition).split(4, dim=-1)
    hidden = block.outer(nn.functional.silu(block.inner(tokens)))
    hidden = (hidden - hidden.mean(1, keepdim=True)) / (
        hidden.var(1, keepdim=True, correction=0) + 1e-5
    ).sqrt()
    expected = tokens + nn.functional.silu((1 + scale[:, None]) * hidden + shift[:, None])
    torch.testing.assert_close(block(tokens, condition), expected)


def film_condition(**options) -> int:
    state_dim, text = options.pop("state_dim"), options.pop("text")
    vision = parts()[0]
    fusion = fusion_of(FilmConfig(**options), vision, text=text, state_dim=state_dim)
    return int(fusion.film[0].modulation.in_features) if len(fusion.film) else 0


def test_film_is_conditioned_on_words_and_by_option_on_the_state():
    text = parts()[1]
    assert film_condition(text=text, state_dim=STATE) == text.dim
    assert film_condition(text=text, state_dim=STATE, film_state=True) == text.dim + STATE
    assert film_condition(text=None, state_dim=STATE) == STATE
    assert film_condition(text=None, state_dim=0) == 0


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="num_heads 3 must divide embed_dim 64"):
        TransformerFusionConfig(embed_dim=64, num_heads=3)
    with pytest.raises(ConfigError, match="num_heads 5 must divide embed_dim 32"):
        ModelRegistry.create(
            "single_brain",
            action_dim=2,
            fusion={"type": "transformer", "embed_dim": 32, "num_heads": 5},
        )


@pytest.mark.parametrize("config", FUSIONS, ids=name)
def test_bf16_autocast_stays_near_float32(config, vision):
    text = parts()[1]
    fusion, seen = fusion_of(config, vision, text=text), seen_by(vision, text)
    exact = fusion(seen).summary
    with torch.autocast("cpu", torch.bfloat16):
        rough = fusion(seen).summary.float()
    assert (exact - rough).abs().max() < 0.1


#: statistics of :func:`squares`: nothing to scale, and the words
SCALES = {
    "actions": {"min": [-1, -1], "max": [1, 1]},
    "state": {"mean": [], "std": []},
    "words": ["take", "the", "red", "blue", "one"],
}


def squares(seed: int, rows: int = 64) -> dict:
    """A red and a blue square in each picture; the words say whose place is the action."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.randint(0, 16, (rows, 2), generator=draw)
    maps = nn.functional.one_hot(places, 16).float().view(rows, 1, 2, 4, 4)
    cells = maps.repeat_interleave(8, -1).repeat_interleave(8, -2)
    images = torch.stack([cells[:, :, 0], torch.zeros(rows, 1, 32, 32), cells[:, :, 1]], 2)
    asked = torch.randint(0, 2, (rows,), generator=draw)
    place = places[torch.arange(rows), asked]
    return {
        "observations": {"image": images},
        "language": [f"Take the {('red', 'blue')[n]} one." for n in asked.tolist()],
        "actions": torch.stack([place % 4, place // 4], -1) / 1.5 - 1,
    }


def trained_on_squares(fusion: dict, steps: int) -> nn.Module:
    policy = ModelRegistry.create(
        "single_brain",
        action_dim=2,
        chunk_size=1,
        execution={"replan_every": 1},
        image_size=32,
        vision={"type": "cnn", "grid": 4, "width": 8, "reduced": 16, "features": 32},
        language={"type": "words", "embed_dim": 16, "num_heads": 2, "num_layers": 1},
        fusion=fusion,
        head={"loss_type": "mse"},
        statistics=SCALES,
    )
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for step in range(steps):
            optimizer.zero_grad()
            policy.loss(squares(step))["loss"].backward()
            optimizer.step()
    return policy.eval()


@torch.no_grad()
def error(policy: nn.Module, language: str | None = None) -> float:
    batch = squares(10_000, 256)
    if language is not None:
        batch["language"] = [language] * 256
    return float(policy(batch)["action_mse"])


def test_film_solves_what_only_the_words_decide():
    policy = trained_on_squares({"type": "film", "hidden_dim": 64, "num_blocks": 1}, 200)
    assert error(policy) < 0.03
    assert error(policy, "") > 0.2  # chance: it cannot know which of the two
