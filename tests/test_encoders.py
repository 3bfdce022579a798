"""Encoders: pictures and instructions to features."""

from __future__ import annotations

import pytest
import torch

from teamvla.models.encoders.language import (
    CHARACTERS,
    PAD,
    UNKNOWN,
    VOCABULARY_SIZE,
    CharacterConfig,
    build_text_encoder,
    forward_text,
    tokenize,
)
from teamvla.models.encoders.vision import (
    ConvConfig,
    build_vision_encoder,
    forward_vision,
    scale_images,
)

TEXTS = ["lift the tray", "put it down, please!"]


@pytest.fixture
def text_encoder():
    torch.manual_seed(0)
    return build_text_encoder(CharacterConfig()).eval()


@pytest.fixture
def vision_encoder():
    torch.manual_seed(0)
    return build_vision_encoder(ConvConfig()).eval()


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_vocabulary_is_the_specified_43_characters():
    assert len(CHARACTERS) == len(set(CHARACTERS)) == 43
    assert VOCABULARY_SIZE == 45


def test_tokenize_numbers_characters_and_masks_padding():
    tokens = tokenize(["ab -", "b"])
    assert tokens["input_ids"].tolist() == [[3, 4, 2, 44], [4, PAD, PAD, PAD]]
    assert tokens["attention_mask"].tolist() == [[True] * 4, [True, False, False, False]]


def test_tokenize_is_deterministic():
    first, again = tokenize(TEXTS), tokenize(list(TEXTS))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_tokenize_ignores_case_and_marks_unknown_characters():
    assert torch.equal(tokenize(["LIFT"])["input_ids"], tokenize(["lift"])["input_ids"])
    assert tokenize(["é"])["input_ids"].tolist() == [[UNKNOWN]]


def test_tokenize_cuts_long_texts():
    assert tokenize(["a" * 100], max_length=7)["input_ids"].shape == (1, 7)


def test_no_text_reads_as_one_blank():
    assert torch.equal(tokenize([""])["input_ids"], tokenize([" "])["input_ids"])


def test_text_feature_does_not_depend_on_the_padding_of_its_batch(text_encoder):
    alone = forward_text(text_encoder, tokenize(["lift"]))
    padded = forward_text(text_encoder, tokenize(["lift", "x" * 50]))
    torch.testing.assert_close(padded[:1], alone, rtol=1e-5, atol=1e-6)


def test_text_feature_depends_on_the_order_of_the_characters(text_encoder):
    features = text_encoder.encode(["left arm", "arm left"]).mean()
    assert (features[0] - features[1]).abs().max() > 1e-4


def test_training_encodes_each_distinct_text_once(text_encoder, monkeypatch):
    rows = []
    whole = text_encoder.forward
    monkeypatch.setattr(
        text_encoder, "forward", lambda ids, mask: rows.append(len(ids)) or whole(ids, mask)
    )
    tokens = text_encoder.train().encode(TEXTS * 8)
    assert rows == [2]
    assert torch.equal(tokens.values[:2], tokens.values[-2:])
    assert tokens.mask.sum(1).tolist() == [len(text) for text in TEXTS] * 8
    assert not torch.equal(tokens.values[0], tokens.values[1])


def test_inference_encodes_a_text_once_and_answers_from_the_cache(text_encoder, monkeypatch):
    with torch.no_grad():
        first = text_encoder.encode(TEXTS)
        monkeypatch.setattr(text_encoder, "forward", None)
        again = text_encoder.encode(TEXTS[::-1])
    assert torch.equal(again.values, first.values.flip(0))
    assert torch.equal(again.mask, first.mask.flip(0))


def test_cached_feature_is_the_one_that_training_sees(text_encoder):
    with torch.no_grad():
        cached = text_encoder.encode(TEXTS)
    seen = text_encoder.train().encode(TEXTS)
    assert torch.equal(cached.mask, seen.mask)
    torch.testing.assert_close(cached.mean(), seen.mean(), rtol=1e-5, atol=1e-6)


def change_by_optimizer(encoder):
    encoder.train()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    encoder.encode(TEXTS).values[..., 0].sum().backward()
    optimizer.step()
    encoder.eval()


def change_in_place(encoder):
    with torch.no_grad():
        encoder.blocks[0].attention.q_proj.weight.mul_(3)
        encoder.norm.bias.add_(1)


def change_by_loading(encoder):
    torch.manual_seed(5)
    encoder.load_state_dict(build_text_encoder(CharacterConfig()).state_dict())


@pytest.mark.parametrize("change", [change_by_optimizer, change_in_place, change_by_loading])
def test_cache_is_dropped_when_weights_change(text_encoder, change):
    with torch.no_grad():
        before = text_encoder.encode(TEXTS).mean()
    change(text_encoder)
    with torch.no_grad():
        after = text_encoder.encode(TEXTS).mean()
        fresh = torch.cat([forward_text(text_encoder, tokenize([text])) for text in TEXTS])
    assert not torch.allclose(before, after, atol=1e-4)
    torch.testing.assert_close(after, fresh)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads 3 must divide embed_dim 64"):
        CharacterConfig(num_heads=3)


def test_bytes_and_floats_are_the_same_picture():
    images = pictures(2, 3, 8, 8)
    torch.testing.assert_close(scale_images(images), scale_images(images.float() / 255))
    assert scale_images(torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)).tolist() == [
        [[[-1.0, 1.0]]]
    ]


def test_scaling_leaves_float_pictures_alone():
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    kept = images.clone()
    scale_images(images.contiguous(memory_format=torch.channels_last))
    scale_images(images)
    assert torch.equal(images, kept)


def test_cameras_share_one_encoder(vision_encoder):
    images = pictures(2, 3, 3, 64, 64)
    together = forward_vision(vision_encoder, images)
    assert together.shape == (2, 3, 64, 32)
    alone = forward_vision(vision_encoder, images[:, 1])
    torch.testing.assert_close(together[:, 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (96, 96), (48, 80), (224, 224)])
def test_every_resolution_gives_features_that_depend_on_the_picture(vision_encoder, size):
    images = pictures(2, 3, *size)
    features = vision_encoder.pooling()(forward_vision(vision_encoder, images))
    assert features.shape == (2, 128)
    assert (features[0] - features[1]).abs().max() > 1e-3


def test_encoder_sees_where_things_are(vision_encoder):
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[0, :, 8:16, 8:16] = 255
    images[1, :, 48:56, 48:56] = 255
    tokens = forward_vision(vision_encoder, images)
    changed = (tokens[0] - tokens[1]).norm(dim=-1).view(8, 8)
    assert changed[1, 1] > 10 * changed[1, 6]
    assert changed[6, 6] > 10 * changed[1, 6]


def test_bf16_autocast_stays_near_float32(vision_encoder):
    images = pictures(4, 3, 64, 64)
    exact = forward_vision(vision_encoder, images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = forward_vision(vision_encoder, images)
    assert (exact - rough.float()).abs().max() < 0.05
