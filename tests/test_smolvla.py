"""SmolVLA: names and shapes as published, and what every policy promises."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from published_models import (
    CHUNK,
    CONTRACT,
    DIM,
    STATISTICS,
    make_batch,
    mistake,
    predicted,
    row_of,
    train,
    write_tokenizer,
)

from teamvla.errors import ConfigError
from teamvla.models import LossConfig
from teamvla.models.building import build_policy
from teamvla.models.loading import from_arrays, to_arrays
from teamvla.models.openvla.inputs import letterboxed
from teamvla.models.openvla.layout import read_weights, write_weights
from teamvla.models.pretrained.settings import weights_follow
from teamvla.models.smolvla.architecture import (
    LEROBOT_LAYOUT,
    SmolVLAArchitecture,
    smolvlm_layout,
)
from teamvla.models.smolvla.wrapper import SmolVLAConfig, SmolVLAWrapper

TINY = {
    "vision": {
        "image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64,
        "num_attention_heads": 2,
    },
    "language": {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    },
    "max_state_dim": 16, "max_action_dim": 16,
}  # fmt: skip
#: of the ``config.json`` of smolvla_base what says something about its sizes
PUBLISHED = {
    "type": "smolvla", "max_state_dim": 32, "max_action_dim": 32, "num_vlm_layers": 16,
    "self_attn_every_n_layers": 2, "expert_width_multiplier": 0.75, "num_expert_layers": 0,
    "attention_mode": "cross_attn", "min_period": 0.004, "max_period": 4.0,
}  # fmt: skip


def make(seed: int = 0, **changes: Any) -> SmolVLAWrapper:
    given = {"chunk_size": CHUNK, "architecture": TINY} | changes
    config = SmolVLAConfig.model_validate(given)
    policy = build_policy(config, CONTRACT, STATISTICS, LossConfig(), seed=seed)
    assert isinstance(policy, SmolVLAWrapper)
    return policy


def published(**changes: Any) -> SmolVLAWrapper:
    architecture = SmolVLAArchitecture.from_lerobot(PUBLISHED)
    with torch.device("meta"):
        return SmolVLAWrapper(SmolVLAConfig(architecture=architecture, **changes), CONTRACT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SmolVLA as LeRobot publishes it, with a tokenizer."""
    at = write_tokenizer(tmp_path_factory.mktemp("smolvla") / "words", "lift the tray hold lower")
    data = (at / "tokenizer.json").read_bytes()
    policy = make(architecture=TINY | {"tokenizer_bytes": len(data)})
    policy.tokenizer.load(data)
    return policy.save_published(at.parent / "published")


@pytest.fixture(scope="module")
def smolvlm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A tiny SmolVLM2 of four layers, saved by transformers."""
    transformers = pytest.importorskip("transformers")
    tower = TINY["vision"] | {"num_hidden_layers": 2}
    text = TINY["language"] | {"num_hidden_layers": 4, "model_type": "llama"}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10_000.0}
    settings = transformers.SmolVLMConfig(
        vision_config=tower, text_config=text, scale_factor=2, image_token_id=1
    )
    settings._attn_implementation = "eager"
    torch.manual_seed(0)
    model = transformers.SmolVLMForConditionalGeneration(settings).eval()
    at = write_tokenizer(tmp_path_factory.mktemp("smolvlm"), "lift the tray hold lower")
    model.save_pretrained(at)
    return at, model


# As published.


def test_it_has_the_published_numbers_of_parameters() -> None:
    policy = published(train_expert_only=True)
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert sum(p.numel() for p in policy.parameters()) == 450_046_176
    assert trained == 99_880_992


def test_its_tensors_have_the_published_names_and_shapes() -> None:
    whole = LEROBOT_LAYOUT.outward(published().state_dict())
    theirs = {name: list(tensor.shape) for name, tensor in whole.items()}
    vlm, expert = "model.vlm_with_expert.vlm", "model.vlm_with_expert.lm_expert"
    tower = f"{vlm}.model.vision_model"
    expected = {
        f"{tower}.embeddings.patch_embedding.weight": [768, 3, 16, 16],
        f"{tower}.embeddings.position_embedding.weight": [1024, 768],
        f"{tower}.encoder.layers.11.self_attn.out_proj.bias": [768],
        f"{tower}.post_layernorm.weight": [768],
        f"{vlm}.model.connector.modality_projection.proj.weight": [960, 12288],
        f"{vlm}.model.text_model.embed_tokens.weight": [49280, 960],
        f"{vlm}.model.text_model.layers.15.self_attn.k_proj.weight": [320, 960],
        f"{vlm}.model.text_model.norm.weight": [960],
        f"{vlm}.lm_head.weight": [49280, 960],
        f"{expert}.layers.0.self_attn.k_proj.weight": [320, 720],
        f"{expert}.layers.1.self_attn.k_proj.weight": [320, 320],
        f"{expert}.layers.15.self_attn.q_proj.weight": [960, 720],
        f"{expert}.layers.0.mlp.down_proj.weight": [720, 2048],
        f"{expert}.norm.weight": [720],
        "model.state_proj.weight": [960, 32],
        "model.action_in_proj.weight": [720, 32],
        "model.action_out_proj.bias": [32],
        "model.action_time_mlp_in.weight": [720, 1440],
        "model.action_time_mlp_out.weight": [720, 720],
    }
    assert {name: theirs.get(name) for name in expected} == expected
    # 16 tensors a block of SigLIP and 5 around; 9 a layer of SmolLM2 and 3; 9 of the expert and 1.
    assert len(theirs) == 12 * 16 + 5 + 1 + 16 * 9 + 3 + 16 * 9 + 1 + 5 * 2


def test_names_go_there_and_back_bit_by_bit() -> None:
    ours = dict(make().state_dict())
    back = dict(LEROBOT_LAYOUT.inward(LEROBOT_LAYOUT.outward(ours).items(), "here"))
    assert {name for name in ours if not name.startswith(("normalizer.", "tokenizer."))} == {*back}
    assert all(torch.equal(ours[name], tensor) for name, tensor in back.items())


def test_a_published_folder_gives_the_policy_again(folder: Path) -> None:
    first, other = (
        make(seed=seed, architecture=None, weights=str(folder)).eval() for seed in (0, 7)
    )
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert torch.equal(predicted(first, make_batch()), predicted(other, make_batch()))


def test_a_published_folder_written_again_holds_the_same_bytes(
    folder: Path, tmp_path: Path
) -> None:
    policy = make(architecture=None, weights=str(folder))
    again = policy.save_published(tmp_path / "again")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_normalisation_and_compilation_of_others_are_passed_over(
    folder: Path, tmp_path: Path
) -> None:
    at = Path(shutil.copytree(folder, tmp_path / "model"))
    theirs = {n.replace("model.", "model._orig_mod.", 1): t for n, t in read_weights(folder)}
    theirs["normalize_inputs.so100.buffer_observation_state.mean"] = torch.zeros(6)
    theirs["unnormalize_outputs.buffer_action.std"] = torch.ones(6)
    (at / "model.safetensors").unlink()
    write_weights(at, theirs)
    one, other = (make(architecture=None, weights=str(path)).eval() for path in (folder, at))
    assert torch.equal(predicted(one, make_batch()), predicted(other, make_batch()))


def test_pictures_keep_their_shape_on_black() -> None:
    pictures = torch.ones(1, 3, 8, 16)
    boxed = letterboxed(pictures, 32)
    assert boxed.shape == (1, 3, 32, 32)
    assert not boxed[:, :, :16].any()
    assert bool((boxed[:, :, 16:] == 1).all())


# Against transformers.


def test_the_first_layers_of_a_smolvlm_are_used(smolvlm: tuple[Path, Any]) -> None:
    at, theirs = smolvlm
    policy = make(architecture=None, weights=str(at), num_vlm_layers=3)
    assert len(policy.language_model.layers) == 3
    named = smolvlm_layout(3).outward(policy.state_dict())
    whole = theirs.state_dict()
    assert named.keys() == {n for n in whole if not n.startswith("model.text_model.layers.3.")}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in named.items())


def test_vision_and_connector_compute_what_transformers_does(smolvlm: tuple[Path, Any]) -> None:
    at, theirs = smolvlm
    policy = make(architecture=None, weights=str(at), num_vlm_layers=3)
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        seen = theirs.model.vision_model(pixel_values=pictures * 2 - 1).last_hidden_state
        ours = policy.vision(pictures)
        torch.testing.assert_close(ours, seen, atol=1e-5, rtol=1e-4)
        expected = theirs.model.connector(seen)
        torch.testing.assert_close(policy.connector(ours), expected, atol=1e-5, rtol=1e-4)


def test_the_prefix_has_the_keys_and_values_of_transformers(smolvlm: tuple[Path, Any]) -> None:
    at, theirs = smolvlm
    policy = make(architecture=None, weights=str(at), num_vlm_layers=3).eval()
    ids = torch.randint(0, 320, (2, 9), generator=torch.Generator().manual_seed(0))
    model, places = policy.language_model, torch.arange(9).expand(2, -1)
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    with torch.no_grad():
        _, ours = model.keys_values(model.embed_tokens(ids), places, causal)
        cache = theirs.model.text_model(ids, use_cache=True).past_key_values
    for depth, (keys, values) in enumerate(ours):
        layer = cache.layers[depth]
        torch.testing.assert_close(keys, layer.keys, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(values, layer.values, atol=1e-5, rtol=1e-4)


# The expert.


def test_an_action_does_not_depend_on_those_behind_it() -> None:
    policy = make().eval()
    prefix, head = policy.encode(make_batch())[0], policy.heads[0]
    noisy = torch.randn(3, CHUNK, 16, generator=torch.Generator().manual_seed(0))
    times, contexts = torch.tensor([0.2, 0.5, 0.9]), head.contexts(prefix)
    with torch.no_grad():
        before = head.velocity(noisy, times, prefix, contexts)
        noisy[:, 2:] += 1
        after = head.velocity(noisy, times, prefix, contexts)
    torch.testing.assert_close(after[:, :2], before[:, :2], atol=1e-6, rtol=0)
    assert not torch.allclose(after[:, 2], before[:, 2])


def test_only_layers_that_join_let_actions_see_each_other() -> None:
    changed = []
    for every in (1, 4):
        policy = make(architecture=TINY | {"self_attention_every": every}).eval()
        prefix, head = policy.encode(make_batch())[0], policy.heads[0]
        layer, seen = head.layers[1], head.contexts(prefix)[1]
        context = 2 * 8 if every == 4 else 24
        assert layer.self_attn.k_proj.in_features == context
        changed.append(seen[0].data_ptr() == prefix.layers[1][0].data_ptr())
    assert changed == [True, False]


def test_the_network_that_knows_the_way_is_followed_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = make().eval()
    head = policy.heads[0]
    goal = torch.rand(CHUNK, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(head, "velocity", lambda x, t, *_: (x - goal) / t[:, None, None])
    sampled = head.sample(policy.encode(make_batch())[0])
    torch.testing.assert_close(sampled, goal[:, :DIM].expand(3, -1, -1))


def test_times_lean_to_noise() -> None:
    times = make().heads[0].times(20_000, torch.Generator().manual_seed(0))
    assert float(times.min()) >= 0.001
    assert float(times.max()) <= 1.0
    # The mean of Beta(1.5, 1).
    assert float(times.mean()) == pytest.approx(0.6, abs=0.01)


def test_the_prefix_is_computed_once_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, calls = make().eval(), []
    read = policy.language_model.keys_values

    def counted(*given: Any) -> Any:
        calls.append(1)
        return read(*given)

    monkeypatch.setattr(policy.language_model, "keys_values", counted)
    predicted(policy, make_batch())
    assert len(calls) == 1


def test_pictures_and_words_do_not_see_the_state() -> None:
    policy, batch = make().eval(), make_batch()
    before = policy.encode(batch)[0]
    batch["observations"]["state"] = batch["observations"]["state"] + 1
    after = policy.encode(batch)[0]
    assert torch.equal(after.tokens.values[:, :-1], before.tokens.values[:, :-1])
    assert not torch.equal(after.tokens.values[:, -1], before.tokens.values[:, -1])


# What every policy promises.


def lost(policy: SmolVLAWrapper, batch: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(0)
    return policy.loss(batch)["loss"]


def test_padding_changes_nothing() -> None:
    policy, batch = make().train(), make_batch()
    before = lost(policy, batch)
    before.backward()
    slopes = [p.grad.clone() for p in policy.parameters() if p.requires_grad]
    batch["actions"][0, CHUNK // 2 :] = float("nan")
    policy.zero_grad()
    after = lost(policy, batch)
    after.backward()
    assert torch.equal(before, after)
    again = [p.grad for p in policy.parameters() if p.requires_grad]
    assert all(map(torch.equal, slopes, again))


def test_a_finite_gradient_reaches_every_parameter_that_is_trained() -> None:
    policy = make().train()
    lost(policy, make_batch()).backward()
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


def test_a_batch_gets_what_its_rows_get_alone() -> None:
    policy, batch = make().eval(), make_batch()
    alone = torch.cat([predicted(policy, row_of(batch, row)) for row in range(3)])
    torch.testing.assert_close(predicted(policy, batch), alone, rtol=0, atol=1e-5)


def test_training_lowers_the_loss() -> None:
    policy, batch = make(), make_batch()
    before = policy.eval().loss(batch)["loss"].item()
    assert train(policy, batch, 120, lr=1e-2).loss(batch)["loss"].item() < 0.6 * before


@pytest.mark.slow
def test_it_learns_a_batch() -> None:
    policy = make(architecture={})
    assert mistake(train(policy, make_batch(), 600), make_batch()) < 0.1


def test_pictures_words_and_state_all_count() -> None:
    policy, batch = make().eval(), make_batch()
    before, seen = predicted(policy, batch), batch["observations"]
    for changed in (
        {"observations": seen | {"image": 255 - seen["image"]}},
        {"observations": seen | {"state": seen["state"] + 1}},
        {"language": ["put it down"] * 3},
    ):
        assert not torch.equal(predicted(policy, batch | changed), before)


@pytest.mark.parametrize(
    ("setting", "frozen"),
    [
        ("freeze_vision", ["vision"]),
        ("train_expert_only", ["vision", "connector", "language_model"]),
    ],
)
def test_what_is_frozen_gets_no_gradient(setting: str, frozen: list[str]) -> None:
    policy = make(**{setting: True}).train()
    lost(policy, make_batch()).backward()
    for name, parameter in policy.named_parameters():
        if name.split(".")[0] in frozen:
            assert parameter.grad is None, name
    assert policy.state_projector.weight.grad is not None


def test_gradient_checkpointing_changes_no_gradient() -> None:
    slopes = []
    for checkpointed in (False, True):
        policy = make().train()
        if checkpointed:
            policy.language_model.gradient_checkpointing_enable()
            policy.vision.gradient_checkpointing_enable()
        lost(policy, make_batch()).backward()
        slopes.append([p.grad for p in policy.parameters() if p.requires_grad])
    assert all(map(torch.equal, *slopes))


def test_a_checkpoint_needs_no_folder(folder: Path, tmp_path: Path) -> None:
    at = Path(shutil.copytree(folder, tmp_path / "model"))
    policy = make(architecture=None, weights=str(at)).eval()
    settings, arrays = policy.config.model_dump(mode="json"), to_arrays("", policy.state_dict())
    answer = predicted(policy, make_batch())
    shutil.rmtree(at)
    with weights_follow():
        other = build_policy(SmolVLAConfig.model_validate(settings), CONTRACT, None, seed=3).eval()
    other.load_state_dict(from_arrays("", arrays))
    assert torch.equal(predicted(other, make_batch()), answer)


def test_weights_that_were_saved_and_loaded_give_the_same_bits() -> None:
    policy, batch = make().eval(), make_batch()
    other = make(seed=9).eval()
    assert not torch.equal(predicted(other, batch), predicted(policy, batch))
    other.load_state_dict(policy.state_dict())
    assert torch.equal(predicted(other, batch), predicted(policy, batch))


# Refusals.


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"expected a SmolVLM2, .*, got model_type 'llava'"):
        SmolVLAArchitecture.from_folder(tmp_path, 16)


def test_an_expert_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="an expert as in the published SmolVLA"):
        SmolVLAArchitecture.from_lerobot(PUBLISHED | {"attention_mode": "self_attn"})


def test_an_action_that_is_too_long_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_action_dim: expected at least 14"):
        make(architecture=TINY | {"max_action_dim": 7})


def test_a_memory_changes_nothing_of_what_pictures_and_words_are() -> None:
    """The keys and values of all that stands before the state."""
    plain, batch = make(), make_batch()
    remembering = make(temporal={"type": "memory"})
    seen, other = (policy.encode(batch)[0] for policy in (plain, remembering))
    size = seen.tokens.values.shape[1]
    assert other.tokens.values.shape[1] == size + 1
    for before, after in zip(seen.layers, other.layers, strict=True):
        for first, second in zip(before, after, strict=True):
            torch.testing.assert_close(first[:, :, : size - 1], second[:, :, : size - 1])


def test_published_weights_are_taken_beside_a_memory_but_not_written_with_one(
    folder: Path, tmp_path: Path
) -> None:
    given = {"architecture": None, "weights": str(folder)}
    plain, remembering = make(**given), make(**given, temporal={"type": "memory"})
    own = remembering.state_dict()
    assert all(torch.equal(weight, own[name]) for name, weight in plain.state_dict().items())
    with pytest.raises(ConfigError, match="expected null, as published models have no memory"):
        remembering.save_published(tmp_path / "published")
    assert not (tmp_path / "published").exists()
