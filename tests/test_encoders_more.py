"""The vision transformer, the residual network and the words."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

from teamvla.config import Project
from teamvla.data.dataloader import MultiTaskDataset
from teamvla.errors import ConfigError, ContractError
from teamvla.models.base import PolicyConfig
from teamvla.models.encoders.language import PAD, UNKNOWN, build_text_encoder
from teamvla.models.encoders.resnet import ResNetConfig, SpatialSoftmax
from teamvla.models.encoders.vision import build_vision_encoder, forward_vision
from teamvla.models.encoders.vit import PatchEmbedding, ViTConfig
from teamvla.models.encoders.words import (
    FIRST_WORD,
    WORD_BYTES,
    WordConfig,
    WordEncoder,
    instruction_words,
    split_words,
)
from teamvla.models.loading import load_policy
from teamvla.models.registries import ENCODER_REGISTRY
from teamvla.train.runs import save, start_run

SMALL_VIT = ViTConfig(patch_size=8, embed_dim=32, num_heads=2, num_layers=2)
WORDS = {"words": {"lift": 2, "the": 5, "tray": 2, "block": 3}}


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def word_encoder(statistics=WORDS, **settings) -> WordEncoder:
    torch.manual_seed(0)
    return build_text_encoder(WordConfig(**settings), statistics).eval()


def numbers(encoder: WordEncoder, text: str) -> list[int]:
    return encoder.tokenize([text])["input_ids"][0].tolist()


def test_patch_embedding_reads_each_patch_alone_row_by_row():
    torch.manual_seed(0)
    embed = PatchEmbedding((16, 32), 8, 3, 12)
    images = torch.zeros(1, 3, 16, 32)
    plain = embed(images)
    images[:, :, 8:16, 16:24] = 1.0
    changed = (embed(images) - plain).abs().sum(-1)[0] > 0
    assert embed.num_patches == 8
    assert changed.tolist() == [row * 4 + column == 6 for row in range(2) for column in range(4)]


def test_patch_embedding_tells_equal_patches_apart_by_their_places():
    embed = PatchEmbedding(16, 8, 3, 12)
    patches = embed(torch.ones(1, 3, 16, 16))[0]
    assert torch.pdist(patches).min() > 1e-3


@pytest.mark.parametrize(
    ("size", "patch", "message"),
    [
        ((64, 64), 24, "64 x 64 pixels, got 24. The nearest that work are 16 or 32"),
        ((48, 80), 10, "48 x 80 pixels, got 10. The nearest that work are 8 or 16"),
        ((64, 64), 100, "64 x 64 pixels, got 100. The nearest that work are 64;"),
    ],
)
def test_patch_that_does_not_divide_the_picture_names_those_that_do(size, patch, message):
    with pytest.raises(ConfigError, match=message):
        build_vision_encoder(ViTConfig(patch_size=patch), (3, *size))


def test_vit_refuses_pictures_of_another_size():
    encoder = build_vision_encoder(SMALL_VIT, (3, 32, 32))
    with pytest.raises(ConfigError, match=r"pictures: expected 32 x 32 pixels, got 64 x 64 pixels"):
        forward_vision(encoder, pictures(1, 3, 64, 64))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="num_heads 3 must divide embed_dim 64"):
        ViTConfig(embed_dim=64, num_heads=3)


def test_cls_token_of_the_vit_sums_up_all_patches():
    torch.manual_seed(0)
    encoder = build_vision_encoder(SMALL_VIT, (3, 32, 32)).eval()
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    tokens = encoder(images)
    assert tokens.shape == (1, 17, 32)
    pooled = encoder.pooling()(tokens)
    assert torch.equal(pooled, tokens[:, 0])
    (gradient,) = torch.autograd.grad(pooled[0, 0], images)
    of_patches = gradient.unfold(2, 8, 8).unfold(3, 8, 8).abs().sum((0, 1, 4, 5))
    assert of_patches.min() > 0


def test_vit_pictures_of_a_batch_do_not_mix():
    torch.manual_seed(0)
    encoder = build_vision_encoder(SMALL_VIT, (3, 32, 32)).eval()
    images = pictures(3, 2, 3, 32, 32)
    together = forward_vision(encoder, images)
    alone = forward_vision(encoder, images[1:2, 1])
    torch.testing.assert_close(together[1:2, 1], alone, rtol=1e-5, atol=1e-5)


def test_vit_drops_out_in_training_only():
    torch.manual_seed(0)
    encoder = build_vision_encoder(SMALL_VIT, (3, 32, 32))
    images = torch.rand(1, 3, 32, 32)
    assert not torch.equal(encoder(images), encoder(images))
    encoder.eval()
    assert torch.equal(encoder(images), encoder(images))


@pytest.mark.parametrize(
    ("size", "side", "layers"),
    [
        ((64, 64), (8, 8), (1, 1, 1)),
        ((32, 48), (4, 6), (1, 1, 1)),
        ((50, 30), (7, 4), (1, 2, 1)),
        ((64, 64), (2, 2), (1,) * 5),
        ((128, 128), (8, 8), (2, 1, 1)),
    ],
)
def test_resnet_keeps_a_grid_of_at_most_the_size_asked_for(size, side, layers):
    config = ResNetConfig(width=8, layers=layers)
    encoder = build_vision_encoder(config, (3, *size)).eval()
    tokens = forward_vision(encoder, pictures(2, 3, *size))
    assert encoder.side == side
    assert tokens.shape == (2, side[0] * side[1], 8 * 2 ** (len(layers) - 1))
    assert encoder.num_tokens == tokens.shape[1]
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3


def test_resnet_tokens_are_the_cells_row_by_row():
    torch.manual_seed(0)
    encoder = build_vision_encoder(ResNetConfig(), (3, 64, 64)).eval()
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[1, :, 8:16, 48:56] = 255
    tokens = forward_vision(encoder, images)
    changed = (tokens[0] - tokens[1]).norm(dim=-1).view(8, 8)
    assert divmod(int(changed.argmax()), 8) == (1, 6)


def test_resnet_never_mixes_pictures_of_a_batch():
    torch.manual_seed(0)
    encoder = build_vision_encoder(ResNetConfig(), (3, 32, 32)).train()
    images = pictures(4, 3, 32, 32)
    alone = forward_vision(encoder, images[:1])
    torch.testing.assert_close(forward_vision(encoder, images)[:1], alone, rtol=1e-4, atol=1e-5)


def test_picture_that_is_shifted_moves_the_points_of_the_spatial_softmax():
    torch.manual_seed(0)
    encoder = build_vision_encoder(ResNetConfig(pooling="spatial_softmax"), (3, 64, 64)).eval()
    pool = encoder.pooling()
    pool.log_temperature.data.fill_(-3.0)
    images = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    images[0, :, 24:32, 16:24] = 255
    images[1, :, 24:32, 40:48] = 255
    images[2, :, 48:56, 16:24] = 255
    tokens = forward_vision(encoder, images)
    found = pool.points(tokens - tokens.mean(0))
    right, down = found[1] - found[0], found[2] - found[0]
    assert right[:, 0].abs().max() > 0.4
    assert right[:, 0].abs().mean() > 4 * right[:, 1].abs().mean()
    assert down[:, 1].abs().mean() > 4 * down[:, 0].abs().mean()


def test_spatial_softmax_gives_the_place_of_a_peak():
    pool = SpatialSoftmax((3, 5), dim=2, features=4)
    tokens = torch.zeros(1, 15, 2)
    tokens[0, 4, 0] = 50.0  # the first row's last column
    tokens[0, 10, 1] = 50.0  # the last row's first
    torch.testing.assert_close(pool.points(tokens), torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]))


@pytest.mark.parametrize("config", [SMALL_VIT, ResNetConfig(width=8)])
def test_bf16_autocast_stays_near_float32(config):
    torch.manual_seed(0)
    encoder = build_vision_encoder(config, (3, 32, 32)).eval()
    images = pictures(2, 3, 32, 32)
    exact = forward_vision(encoder, images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = forward_vision(encoder, images).float()
    assert (exact - rough).abs().max() < 0.05 * exact.abs().max()


def test_words_are_read_without_case_and_punctuation():
    assert split_words("Lift the tray's 2 handles, PLEASE!") == [
        "lift", "the", "tray's", "2", "handles", "please",
    ]  # fmt: skip


def test_instruction_words_counts_the_most_frequent_first_then_by_alphabet():
    counts = instruction_words(["Lift the tray", "put the block on the plate", "lift it"])
    assert list(counts.items()) == [
        ("the", 3), ("lift", 2),
        ("block", 1), ("it", 1), ("on", 1), ("plate", 1), ("put", 1), ("tray", 1),
    ]  # fmt: skip


def test_vocabulary_is_in_order_of_frequency_however_the_words_come():
    encoder = word_encoder()
    shuffled = word_encoder({"words": dict(reversed(WORDS["words"].items()))})
    assert encoder.words == shuffled.words == ["the", "block", "lift", "tray"]
    assert numbers(encoder, "Lift the tray!") == [FIRST_WORD + 2, FIRST_WORD, FIRST_WORD + 3]


def test_list_of_words_keeps_its_order_and_each_word_once():
    assert word_encoder({"words": ["tray", "Lift", "tray", "lift"]}).words == ["tray", "lift"]


def test_words_outside_the_vocabulary_are_one_unknown_token():
    encoder = word_encoder()
    assert numbers(encoder, "hoist the basket") == [UNKNOWN, FIRST_WORD, UNKNOWN]
    tokens = encoder.encode(["hoist the tray", "raise the tray", "lift the tray"]).values
    assert torch.equal(tokens[0], tokens[1])
    assert not torch.allclose(tokens[0], tokens[2], atol=1e-3)


@pytest.mark.parametrize("text", ["", "   ", "?!"])
def test_text_without_words_is_one_unknown_word(text):
    assert numbers(word_encoder(), text) == [UNKNOWN]


def test_padding_is_masked_and_changes_nothing():
    encoder = word_encoder()
    tokens = encoder.tokenize(["lift", "lift the tray"])
    assert tokens["input_ids"][0, 1:].tolist() == [PAD, PAD]
    assert tokens["attention_mask"].tolist() == [[True, False, False], [True] * 3]
    padded = encoder.encode(["lift", "lift the tray"]).mean()
    torch.testing.assert_close(padded[:1], encoder.encode(["lift"]).mean())


def test_only_the_most_frequent_words_fit_and_one_line_says_so(caplog):
    with caplog.at_level(logging.INFO):
        encoder = word_encoder(vocab_size=2)
    assert encoder.words == ["the", "block"]
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["of 4 words the 2 most frequent are told apart (vocab_size)"]


def test_statistics_without_words_are_said_once(caplog):
    assert word_encoder(None).words == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no words in the statistics" in caplog.text


@pytest.mark.parametrize("words", [{"lift": "often"}, [1, 2], "lift", 3])
def test_words_that_are_none_are_refused(words):
    with pytest.raises(ContractError, match=r"statistics\.words"):
        word_encoder({"words": words})


def test_long_text_is_cut_with_one_warning(caplog):
    encoder = word_encoder(max_text_len=3)
    long = "lift the tray the block"
    assert numbers(encoder, long) == numbers(encoder, "lift the tray")
    numbers(encoder, long)
    assert len(caplog.records) == 1
    assert "5" in caplog.text
    assert repr(long) in caplog.text


def test_very_long_words_and_other_scripts_are_looked_up_by_their_bytes():
    long, other = "ü" * WORD_BYTES, "ü" * WORD_BYTES + "x"
    encoder = word_encoder({"words": [long, "持ち上げる", "größe"]})
    assert numbers(encoder, f"{long} {other} 持ち上げる GRÖSSE Größe") == [
        FIRST_WORD, FIRST_WORD, FIRST_WORD + 1, UNKNOWN, FIRST_WORD + 2,
    ]  # fmt: skip


def test_order_of_the_words_matters():
    tokens = word_encoder().encode(["lift the block", "block the lift"]).mean()
    assert (tokens[0] - tokens[1]).abs().max() > 1e-3


def test_vocabulary_travels_in_the_weights():
    encoder, other = word_encoder(), word_encoder({"words": ["tray", "plate", "lift"]})
    assert numbers(other, "plate") == [FIRST_WORD + 1]
    other.load_state_dict(encoder.state_dict())
    assert other.words == encoder.words
    assert numbers(other, "plate the tray") == [UNKNOWN, FIRST_WORD, FIRST_WORD + 3]
    texts = ["lift the tray", "plate"]
    with torch.no_grad():
        assert torch.equal(other.encode(texts).values, encoder.encode(texts).values)


def test_vocabulary_survives_a_deep_copy_which_is_then_its_own():
    encoder = word_encoder()
    encoder.encode(["lift"])
    twin = copy.deepcopy(encoder)
    assert twin.words == encoder.words
    twin.load_state_dict(word_encoder({"words": ["plate"]}).state_dict())
    assert (twin.words, numbers(encoder, "lift")) == (["plate"], [FIRST_WORD + 2])


def test_cache_of_encoded_texts_is_dropped_when_another_vocabulary_is_loaded():
    encoder, other = word_encoder(), word_encoder({"words": ["plate", "lift"]})
    with torch.no_grad():
        before = encoder.encode(["lift"]).values
        encoder.load_state_dict(other.state_dict())
        after = encoder.encode(["lift"]).values
        assert torch.equal(after, other.encode(["lift"]).values)
    assert not torch.allclose(before, after, atol=1e-3)


def test_training_teaches_the_unknown_word_and_evaluation_drops_none():
    encoder = word_encoder(word_dropout=0.5)
    texts = ["lift the tray"]
    assert torch.equal(encoder.encode(texts).values, encoder.encode(texts).values)
    encoder.train()
    for _ in range(4):
        encoder.encode(texts).values[..., 0].sum().backward()
    assert encoder.embedding.weight.grad[UNKNOWN].abs().max() > 0


def test_without_word_dropout_the_unknown_word_stays_as_it_is():
    encoder = word_encoder(word_dropout=0.0).train()
    encoder.encode(["lift the tray"]).values[..., 0].sum().backward()
    assert encoder.embedding.weight.grad[UNKNOWN].abs().max() == 0


def test_dataset_gives_the_instructions_of_the_chosen_episodes(lift_root):
    chosen = {}
    for split in ("train", "val", "all"):
        dataset = MultiTaskDataset({"roots": [str(lift_root)], "split": split})
        chosen[split] = dataset.instructions
        assert dataset.instructions == sorted(set(dataset.field("language")[:]))
    assert chosen["train"] != chosen["all"]


def test_vocabulary_of_a_training_is_in_its_checkpoint(small_project, tmp_path):
    project = small_project.replace("model", language={"type": "words"})
    run = start_run(project, tmp_path / "run")
    expected = instruction_words(run.train_loader.dataset.instructions)
    policy, header = load_policy(save(run, "last.ckpt"))
    assert header.meta["statistics"]["words"] == expected
    assert policy.language.words == list(expected)


@pytest.mark.parametrize(
    ("name", "tokens"), [("cnn", (16, 32)), ("resnet", (16, 64)), ("vit", (5, 256))]
)
def test_configuration_names_each_encoder(name, tokens):
    model = Project.load("train_bc", (f"model.vision.type={name}",)).section("model", PolicyConfig)
    encoder = build_vision_encoder(model.vision, (3, 32, 32))
    assert type(encoder) is ENCODER_REGISTRY.get(name)
    assert forward_vision(encoder, pictures(2, 3, 32, 32)).shape == (2, *tokens)
