"""OpenVLA and OpenVLA-OFT: names, tokens and shapes as published; what policies promise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_models import (
    CHUNK,
    CONTRACT,
    DIM,
    STATISTICS,
    TEXTS,
    make_batch,
    mistake,
    predicted,
    row_of,
    train,
    write_tokenizer,
)
from pydantic import ValidationError

from teamvla.errors import ConfigError, InputError, MissingDependencyError
from teamvla.models import LossConfig
from teamvla.models.building import build_policy
from teamvla.models.loading import from_arrays, to_arrays
from teamvla.models.openvla.architecture import LAYOUT, OpenVLAArchitecture
from teamvla.models.openvla.heads import ActionBins
from teamvla.models.openvla.layout import read_weights, write_weights
from teamvla.models.openvla.wrapper import OpenVLAConfig, OpenVLAWrapper
from teamvla.models.pretrained.settings import weights_follow

TOWER = {"image_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
TINY = {
    "dino": TOWER, "siglip": TOWER,
    "language": {
        "vocab_size": 576, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 8,
    },
}  # fmt: skip
#: of the ``config.json`` of openvla-7b all that says something about its sizes
PUBLISHED = {
    "model_type": "openvla", "use_fused_vision_backbone": True, "image_sizes": [224, 224],
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "timm_override_act_layers": [None, None], "n_action_bins": 256, "pad_to_multiple_of": 64,
    "text_config": {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064},
}  # fmt: skip
PROMPT_WORDS = (
    "In: What action should the robot take to lift tray? hold? tray lower tray slowly? Out:"
)
every_head = pytest.mark.parametrize("head", ["tokens", "parallel"])


def config(head: str = "tokens", **changes: Any) -> OpenVLAConfig:
    given = {"chunk_size": CHUNK, "architecture": TINY, "head": {"type": head}} | changes
    return OpenVLAConfig.model_validate(given)


def make(head: str = "tokens", seed: int = 0, **changes: Any) -> OpenVLAWrapper:
    loss = LossConfig(collision=0)
    policy = build_policy(config(head, **changes), CONTRACT, STATISTICS, loss, seed=seed)
    assert isinstance(policy, OpenVLAWrapper)
    return policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OpenVLA-OFT as published, with a tokenizer that knows the words of the prompt."""
    at = write_tokenizer(tmp_path_factory.mktemp("openvla") / "words", PROMPT_WORDS)
    size = len((at / "tokenizer.json").read_bytes())
    tiny = TINY | {"tokenizer_bytes": size, "empty_token": 5}
    policy = make("parallel", use_state=True, architecture=tiny)
    policy.tokenizer.load((at / "tokenizer.json").read_bytes())
    return policy.save_published(at.parent / "published")


# As published.


def test_it_has_the_published_number_of_parameters() -> None:
    architecture = OpenVLAArchitecture.from_published(PUBLISHED)
    with torch.device("meta"):
        policy = OpenVLAWrapper(OpenVLAConfig(architecture=architecture), CONTRACT)
    assert sum(p.numel() for p in policy.parameters()) == 7_541_237_184


def test_its_tensors_have_the_published_names_and_shapes() -> None:
    architecture = OpenVLAArchitecture.from_published(PUBLISHED)
    with torch.device("meta"):
        policy = OpenVLAWrapper(OpenVLAConfig(architecture=architecture), CONTRACT)
    theirs = {name: list(t.shape) for name, t in LAYOUT.outward(policy.state_dict()).items()}
    dino, siglip = "vision_backbone.featurizer", "vision_backbone.fused_featurizer"
    expected = {
        f"{dino}.cls_token": [1, 1, 1024],
        f"{dino}.reg_token": [1, 4, 1024],
        f"{dino}.pos_embed": [1, 256, 1024],
        f"{dino}.patch_embed.proj.weight": [1024, 3, 14, 14],
        f"{dino}.blocks.0.attn.qkv.weight": [3072, 1024],
        f"{dino}.blocks.23.attn.proj.bias": [1024],
        f"{dino}.blocks.23.ls2.scale_factor": [1024],
        f"{dino}.norm.weight": [1024],
        f"{siglip}.pos_embed": [1, 256, 1152],
        f"{siglip}.blocks.26.mlp.fc1.weight": [4304, 1152],
        f"{siglip}.attn_pool.latent": [1, 1, 1152],
        f"{siglip}.attn_pool.kv.weight": [2304, 1152],
        f"{siglip}.attn_pool.mlp.fc2.bias": [1152],
        "projector.fc1.weight": [8704, 2176],
        "projector.fc2.weight": [4096, 8704],
        "projector.fc3.bias": [4096],
        "language_model.model.embed_tokens.weight": [32064, 4096],
        "language_model.model.layers.31.self_attn.o_proj.weight": [4096, 4096],
        "language_model.model.layers.0.mlp.gate_proj.weight": [11008, 4096],
        "language_model.model.layers.0.post_attention_layernorm.weight": [4096],
        "language_model.model.norm.weight": [4096],
        "language_model.lm_head.weight": [32064, 4096],
    }
    assert {name: theirs.get(name) for name in expected} == expected
    # 14 tensors a block of DINOv2 and 12 of SigLIP's, 7 and 18 around them; 9 a layer of Llama.
    assert len(theirs) == 24 * 14 + 7 + 27 * 12 + 18 + 6 + 32 * 9 + 3
    assert sum(np.prod(shape, dtype=np.int64) for shape in theirs.values()) == 7_541_237_184


def test_names_go_there_and_back_bit_by_bit() -> None:
    ours = dict(make().state_dict())
    back = dict(LAYOUT.inward(LAYOUT.outward(ours).items(), "here"))
    assert {name for name in ours if not name.startswith(("normalizer.", "tokenizer."))} == {*back}
    assert all(torch.equal(ours[name], tensor) for name, tensor in back.items())


def test_a_published_folder_gives_the_policy_again(folder: Path) -> None:
    given = {"weights": str(folder), "unnorm_key": "teamvla", "use_state": True}
    first, other = (
        make("parallel", seed=seed, architecture=None, **given).eval() for seed in (0, 7)
    )
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert torch.equal(predicted(first, make_batch()), predicted(other, make_batch()))


def test_a_published_folder_written_again_holds_the_same_bytes(
    folder: Path, tmp_path: Path
) -> None:
    policy = make("parallel", architecture=None, weights=str(folder), use_state=True)
    again = policy.save_published(tmp_path / "again")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes(), name


def test_shards_are_found_by_their_index(folder: Path, tmp_path: Path) -> None:
    whole = dict(read_weights(folder))
    write_weights(tmp_path, whole, shard_bytes=40_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    parts = dict(read_weights(tmp_path))
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_numbers_become_the_published_tokens_and_come_back() -> None:
    bins = ActionBins(OpenVLAArchitecture.from_published(PUBLISHED))
    numbers = torch.cat([torch.linspace(-1.2, 1.2, 4001), torch.tensor([-1.0, 0.0, 1.0])])
    edges = np.linspace(-1, 1, 256)
    digits = np.digitize(np.clip(numbers.numpy(), -1, 1), edges)
    tokens = bins.tokens(numbers)
    np.testing.assert_array_equal(tokens.numpy(), 32_000 - digits)
    middles = (edges[:-1] + edges[1:]) / 2
    expected = middles[np.clip(32_000 - tokens.numpy() - 1, 0, 254)]
    np.testing.assert_allclose(bins.actions(tokens).numpy(), expected, atol=1e-7)
    assert (int(tokens.min()), int(tokens.max())) == (31_744, 31_999)


def test_a_prompt_is_worded_and_ended_as_in_training(folder: Path) -> None:
    policy = make("parallel", architecture=None, weights=str(folder), use_state=True)
    ids, mask = policy._read(["Lift tray", "hold"])
    words = ["<unk>", "<s>", "</s>", *dict.fromkeys(PROMPT_WORDS.split())]
    asked, empty = ["<s>", *PROMPT_WORDS.split()[:8]], words[5]
    said = [[words[token] for token in row[keep]] for row, keep in zip(ids, mask, strict=True)]
    assert said[0] == [*asked, "lift", "tray?", "Out:", empty]
    assert said[1] == [*asked, "hold?", "Out:", empty]
    assert bool(mask[:, 0].all() and mask[:, -1].all())


def test_the_prompt_of_the_published_model_ends_in_its_empty_token() -> None:
    assert OpenVLAArchitecture.from_published(PUBLISHED).empty_token == 29_871


def test_published_ranges_scale_actions_but_not_where_they_are_masked(
    folder: Path, tmp_path: Path
) -> None:
    at = Path(shutil.copytree(folder, tmp_path / "model"))
    mask = [place not in (6, 13) for place in range(DIM)]
    ranges = {"q01": [-2.0] * DIM, "q99": [4.0] * DIM, "mask": mask}
    (at / "dataset_statistics.json").write_text(json.dumps({"bridge": {"action": ranges}}))
    policy = make(architecture=None, weights=str(at), unnorm_key="bridge")
    actions = policy.normalizer.denormalize_actions(torch.tensor([[-1.0] * DIM, [0.5] * DIM]))
    assert actions[:, 0].tolist() == [-2.0, 2.5]
    assert actions[:, 6].tolist() == [-1.0, 0.5]


def test_without_a_name_of_ranges_the_data_scale_actions(folder: Path) -> None:
    policy = make(architecture=None, weights=str(folder))
    bounds = policy.normalizer.denormalize_actions(torch.ones(DIM))
    assert bounds.tolist() == pytest.approx([0.9 if p not in (6, 13) else 1 for p in range(DIM)])


# Against transformers.


def test_the_language_model_computes_what_transformers_does() -> None:
    transformers = pytest.importorskip("transformers")
    policy = make(architecture=TINY | {"language": TINY["language"] | {"num_key_value_heads": 2}})
    ours = policy.language_model
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**ours.config.to_transformers(), attn_implementation="eager")
    ).eval()
    start = "language_model."
    named = LAYOUT.outward(policy.state_dict())
    theirs.load_state_dict(
        {n.removeprefix(start): t for n, t in named.items() if n.startswith(start)}
    )
    ids = torch.randint(0, 576, (2, 11), generator=torch.Generator().manual_seed(0))
    causal = torch.ones(11, 11, dtype=torch.bool).tril()
    places = torch.arange(11).expand(2, -1)
    with torch.no_grad():
        hidden, _ = ours(ours.embed_tokens(ids), places, causal)
        torch.testing.assert_close(ours.lm_head(hidden), theirs(ids).logits, atol=1e-5, rtol=1e-4)


def test_dinov2_computes_what_transformers_does() -> None:
    transformers = pytest.importorskip("transformers")
    tower = make().vision.dino
    sizes = {name: value for name, value in TOWER.items() if name != "intermediate_size"}
    settings = transformers.Dinov2WithRegistersConfig(
        **sizes, mlp_ratio=2, num_hidden_layers=3, patch_size=16, num_register_tokens=4
    )
    theirs = transformers.Dinov2WithRegistersModel(settings).eval()
    own, named = tower.state_dict(), {}
    around = {
        "cls": "embeddings.cls_token", "registers": "embeddings.register_tokens",
        "patches.weight": "embeddings.patch_embeddings.projection.weight",
        "patches.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight", "norm.bias": "layernorm.bias",
    }  # fmt: skip
    inside = {
        "norm_attention": "norm1", "norm_mlp": "norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2",
        "attention.q_proj": "attention.q_proj", "scale_mlp": "layer_scale2.lambda1",
        "attention.k_proj": "attention.k_proj", "scale_attention": "layer_scale1.lambda1",
        "attention.v_proj": "attention.v_proj",
        "attention.o_proj": "attention.o_proj",
    }  # fmt: skip
    for name, tensor in own.items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            part = next(p for p in inside if rest == p or rest.startswith(f"{p}."))
            named[f"encoder.layer.{number}.{inside[part]}{rest.removeprefix(part)}"] = tensor
        elif name in around:
            named[around[name]] = tensor
    # transformers adds a position to CLS, which timm's weights have taken up in it.
    cls = torch.zeros(1, 1, 32)
    named["embeddings.position_embeddings"] = torch.cat([cls, own["positions"]], 1)
    named["embeddings.mask_token"] = torch.zeros(1, 32)
    theirs.load_state_dict(named)
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(c).reshape(3, 1, 1) for c in (tower.config.mean, tower.config.std))
    with torch.no_grad():
        expected = theirs((pictures - mean) / std, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(tower.penultimate(pictures), expected[:, 5:], atol=1e-5, rtol=0)


def test_parallel_decoding_reads_the_tokens_before_the_empty_ones(folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    policy = make("parallel", architecture=None, weights=str(folder), use_state=True).eval()
    batch = row_of(make_batch(), 0)
    prompt, head = policy.encode(batch)[0], policy.heads[0]
    theirs = transformers.LlamaModel(
        transformers.LlamaConfig(
            **policy.language_model.config.to_transformers(), attn_implementation="eager"
        )
    ).eval()
    start = "language_model.model."
    named = LAYOUT.outward(policy.state_dict())
    theirs.load_state_dict(
        {n.removeprefix(start): t for n, t in named.items() if n.startswith(start)}
    )
    length, count = CHUNK * DIM, prompt.tokens.values.shape[1]
    stop = policy.language_model.embed_tokens(torch.tensor([[2]]))
    embedded = torch.cat([prompt.tokens.values, torch.zeros(1, length, 32), stop], 1)
    both_ways = torch.zeros(1, 1, count + length + 1, count + length + 1)
    with torch.no_grad():
        read = theirs(inputs_embeds=embedded, attention_mask=both_ways).last_hidden_state
        expected = head.model(read[:, count - 1 : count - 1 + length].reshape(1, CHUNK, -1))
        torch.testing.assert_close(head.sample(prompt), expected, atol=1e-5, rtol=1e-4)


# What every policy promises.


@every_head
def test_padding_changes_nothing(head: str) -> None:
    policy, batch = make(head).train(), make_batch()
    before = policy.loss(batch)["loss"]
    before.backward()
    slopes = [p.grad.clone() for p in policy.parameters() if p.requires_grad]
    batch["actions"][0, CHUNK // 2 :] = float("nan")
    policy.zero_grad()
    after = policy.loss(batch)["loss"]
    after.backward()
    assert torch.equal(before, after)
    again = [p.grad for p in policy.parameters() if p.requires_grad]
    assert all(map(torch.equal, slopes, again))


@every_head
def test_a_finite_gradient_reaches_every_parameter_that_is_trained(head: str) -> None:
    policy = make(head, use_state=True).train()
    policy.loss(make_batch())["loss"].backward()
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any() or name.endswith("k_proj.bias"), name


@every_head
def test_a_batch_gets_what_its_rows_get_alone(head: str) -> None:
    policy, batch = make(head, use_state=True).eval(), make_batch()
    alone = torch.cat([predicted(policy, row_of(batch, row)) for row in range(3)])
    torch.testing.assert_close(predicted(policy, batch), alone, rtol=0, atol=1e-5)


@every_head
def test_training_lowers_the_loss(head: str) -> None:
    policy, batch = make(head), make_batch()
    before = policy.loss(batch)["loss"].item()
    assert train(policy, batch, 40, lr=1e-2).loss(batch)["loss"].item() < 0.75 * before


@pytest.mark.slow
@every_head
def test_it_learns_a_batch(head: str) -> None:
    policy = make(head, architecture={}, normalization={"actions": "min_max"})
    assert mistake(train(policy, make_batch(), 300), make_batch()) < 0.08


@every_head
def test_pictures_words_and_state_all_count(head: str) -> None:
    policy, batch = make(head, use_state=True).eval(), make_batch()
    before = policy.encode(batch)[0].tokens.values
    seen = batch["observations"]
    for changed in (
        {"observations": seen | {"image": 255 - seen["image"]}},
        {"observations": seen | {"state": seen["state"] + 1}},
        {"language": ["put it down"] * 3},
    ):
        after = policy.encode(batch | changed)[0].tokens.values
        assert after.shape != before.shape or not torch.equal(after, before)


def test_the_tokens_that_it_says_are_the_likeliest_given_those_before() -> None:
    policy, batch = make().eval(), make_batch()
    prompt, head = policy.encode(batch)[0], policy.heads[0]
    said = head.bins.tokens(head.sample(prompt)).flatten(1)
    embedded = torch.cat([prompt.tokens.values, policy.language_model.embed_tokens(said)], 1)
    mask = torch.cat([prompt.tokens.mask, torch.ones_like(said, dtype=torch.bool)], 1)
    length = mask.shape[1]
    allowed = mask[:, None, None] & torch.ones(length, length, dtype=torch.bool).tril()
    with torch.no_grad():
        hidden, _ = policy.language_model(embedded, mask.long().cumsum(1) - 1, allowed)
        logits = policy.language_model.lm_head(hidden[:, -said.shape[1] - 1 : -1])
    assert torch.equal(logits[..., 256:512].argmax(-1) + 256, said)


def test_a_generator_draws_other_tokens() -> None:
    policy, batch = make().eval(), make_batch()
    seen, texts = batch["observations"], batch["language"]
    draws = [
        policy.predict_action_chunk(seen, texts, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_frozen_vision_gets_no_gradient() -> None:
    policy = make(freeze_vision=True).train()
    policy.loss(make_batch())["loss"].backward()
    assert all(p.grad is None for p in policy.vision.parameters())
    assert all(p.grad is not None for p in policy.projector.parameters())


@every_head
def test_gradient_checkpointing_changes_no_gradient(head: str) -> None:
    slopes = []
    for checkpointed in (False, True):
        policy = make(head).train()
        if checkpointed:
            for part in (policy.language_model, policy.vision.dino, policy.vision.siglip):
                part.gradient_checkpointing_enable()
        policy.loss(make_batch())["loss"].backward()
        slopes.append([p.grad for p in policy.parameters() if p.requires_grad])
    assert all(map(torch.equal, *slopes))


def test_a_checkpoint_needs_no_folder(folder: Path, tmp_path: Path) -> None:
    at = Path(shutil.copytree(folder, tmp_path / "model"))
    policy = make("parallel", architecture=None, weights=str(at), use_state=True).eval()
    settings, arrays = policy.config.model_dump(mode="json"), to_arrays("", policy.state_dict())
    answer = predicted(policy, make_batch())
    shutil.rmtree(at)
    with weights_follow():
        other = build_policy(OpenVLAConfig.model_validate(settings), CONTRACT, None, seed=3).eval()
    other.load_state_dict(from_arrays("", arrays))
    assert torch.equal(predicted(other, make_batch()), answer)


@every_head
def test_weights_that_were_saved_and_loaded_give_the_same_bits(head: str) -> None:
    policy, batch = make(head).eval(), make_batch()
    other = make(head, seed=9).eval()
    other.load_state_dict(policy.state_dict())
    assert torch.equal(predicted(other, batch), predicted(policy, batch))


# Refusals.


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"expected an OpenVLA .*, got model_type 'llava'"):
        OpenVLAArchitecture.from_folder(tmp_path)


def test_a_missing_tensor_is_named(folder: Path, tmp_path: Path) -> None:
    at = Path(shutil.copytree(folder, tmp_path / "model"))
    weights = dict(read_weights(at))
    del weights["projector.fc2.weight"]
    (at / "model.safetensors").unlink()
    write_weights(at, weights)
    with pytest.raises(ConfigError, match=r"projector\.fc2\.weight: missing there"):
        make(architecture=None, weights=str(at))


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    architecture = OpenVLAArchitecture.from_folder(folder)
    language = architecture.language.model_copy(update={"intermediate_size": 64})
    other = architecture.model_copy(update={"language": language})
    with pytest.raises(ConfigError, match=r"gate_proj\.weight: \[48, 32\] there, \[64, 32\] here"):
        make(architecture=other, weights=str(folder))


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    at = Path(shutil.copytree(folder, tmp_path / "model"))
    (at / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: expected the tokenizer"):
        OpenVLAArchitecture.from_folder(at)


def test_a_shard_outside_the_folder_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"projector.fc1.weight": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="a weight_map to files beside it"):
        list(read_weights(tmp_path))


def test_a_name_of_ranges_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'teamvla'"):
        make(architecture=None, weights=str(folder), unnorm_key="teamvl")


def test_a_name_of_ranges_without_a_folder_is_refused() -> None:
    with pytest.raises(ValidationError, match="ranges in the folder of weights, and there is none"):
        config(unnorm_key="teamvla")


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


def test_a_robot_without_cameras_is_refused() -> None:
    from teamvla.models.spaces import Spaces

    with pytest.raises(ConfigError, match="cameras with three colours"):
        OpenVLAWrapper(config(), Spaces.plain(7, 7))


def test_a_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(ValidationError, match="no room for bytes, bins and padding"):
        OpenVLAArchitecture.model_validate({"language": {"vocab_size": 300}})


def test_a_tokenizer_needs_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make("parallel", architecture=None, weights=str(folder), use_state=True)
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r"teamvla\[pretrained\]"):
        policy.tokenizer.encode(TEXTS[0])
