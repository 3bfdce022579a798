"""Augmentation: the right pixels, and randomness that depends on (seed, epoch, index) alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teamvla.config import Project
from teamvla.data import DatasetConfig
from teamvla.data.transforms import (
    TRANSFORMS,
    Color,
    ColorConfig,
    Mirror,
    RandomShift,
    RandomShiftConfig,
    shift_pictures,
)
from teamvla.data.transforms.color import color_pictures
from teamvla.errors import ConfigError
from teamvla.sim.scene import two_arm_contract


def make_batch(index: list[int], epoch: int = 0, cameras: int = 2) -> dict[str, Any]:
    """Pictures [B,V,C,H,W] that are a function of the sample's number."""
    pictures = [np.random.default_rng(i).integers(0, 256, (cameras, 9, 11, 3), "u1") for i in index]
    return {
        "observations": {"image": np.stack(pictures).transpose(0, 1, 4, 2, 3)},
        "index": np.array(index),
        "epoch": np.full(len(index), epoch),
    }


@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from(["u1", "f4"]), st.integers(0, 99))
def test_shifting_equals_padding_and_cropping(
    batch: int, channels: int, dtype: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (batch, 2, 6, 7, channels)).astype(dtype)
    shifts = rng.integers(-4, 5, (batch, 2, 2))
    padded = np.pad(pictures, ((0, 0), (0, 0), (4, 4), (4, 4), (0, 0)), mode="edge")
    shifted = shift_pictures(pictures, shifts)
    for b in range(batch):
        for v in range(2):
            dy, dx = shifts[b, v]
            expected = padded[b, v, 4 + dy : 10 + dy, 4 + dx : 11 + dx]
            np.testing.assert_array_equal(shifted[b, v], expected)


def test_a_sample_is_shifted_alike_in_every_batch() -> None:
    shift = RandomShift(pixels=3, seed=5)
    together = shift(make_batch([7, 2, 40]))["observations"]["image"]
    for place, number in enumerate([7, 2, 40]):
        alone = shift(make_batch([number]))["observations"]["image"][0]
        np.testing.assert_array_equal(alone, together[place])


def test_seed_epoch_sample_camera_and_axis_each_matter() -> None:
    index, epoch = np.arange(200), np.zeros(200, np.int64)
    base = RandomShift(4, seed=0).shifts({"index": index, "epoch": epoch}, 2)
    others = (
        RandomShift(4, seed=1).shifts({"index": index, "epoch": epoch}, 2),
        RandomShift(4, seed=0).shifts({"index": index, "epoch": epoch + 1}, 2),
        RandomShift(4, seed=0).shifts({"index": index + 1, "epoch": epoch}, 2),
        base[:, ::-1],
        base[:, :, ::-1],
    )
    for other in others:
        assert (base != other).mean() > 0.8


def test_shifts_are_uniform_and_within_the_limit() -> None:
    index = np.arange(20_000)
    batch = {"index": index, "epoch": np.zeros(len(index), np.int64)}
    shifts = RandomShift(4, seed=3).shifts(batch, 2)
    values, counts = np.unique(shifts, return_counts=True)
    assert values.tolist() == [*range(-4, 5)]
    np.testing.assert_allclose(counts / shifts.size, 1 / 9, rtol=0.05)


def test_only_the_picture_changes() -> None:
    batch = {**make_batch([1, 2]), "actions": np.ones((2, 3))}
    before = batch["observations"]["image"].copy()
    shifted = RandomShiftConfig(pixels=2).build(seed=0)(batch)
    assert shifted["actions"] is batch["actions"]
    np.testing.assert_array_equal(batch["observations"]["image"], before)
    assert (shifted["observations"]["image"] != before).any()


# --- history ----------------------------------------------------------------------------


@pytest.mark.parametrize("transform", [RandomShift(3), Color(), Color(0, 0, 0.9)])
def test_the_frames_of_a_history_get_the_same_randomness(transform: Any) -> None:
    single = make_batch([3, 8])
    frames = np.stack([single["observations"]["image"]] * 3, axis=1)
    film = transform({**single, "observations": {"image": frames}})["observations"]["image"]
    assert film.shape == (2, 3, 2, 3, 9, 11)
    alone = transform(single)["observations"]["image"]
    for frame in range(3):
        np.testing.assert_array_equal(film[:, frame], alone)


@pytest.mark.parametrize("transform", [RandomShift(3), Color()])
def test_a_batch_without_pictures_passes_through(transform: Any) -> None:
    batch = {**make_batch([1]), "observations": {"state": np.ones((1, 14), np.float32)}}
    assert transform(batch) is batch


# --- colour -----------------------------------------------------------------------------


def blended(one: np.ndarray, other: np.ndarray | float, factor: float) -> np.ndarray:
    return factor * one + (1 - factor) * other


def grey(picture: np.ndarray) -> np.ndarray:
    return picture @ np.array([0.299, 0.587, 0.114])


@given(st.integers(0, 99), st.tuples(*[st.floats(0, 2)] * 3))
def test_colours_follow_the_definition(seed: int, factors: tuple[float, float, float]) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), "u1")
    brightness, contrast, saturation = factors
    expected = brightness * picture.astype(np.float64)
    expected = blended(expected, grey(expected).mean(), contrast)
    expected = blended(expected, grey(expected)[..., None], saturation)
    colored = color_pictures(picture[None], np.array([factors]))[0]
    np.testing.assert_allclose(colored, expected.clip(0, 255), atol=0.51)


def test_factors_of_one_change_no_bit() -> None:
    pictures = np.arange(256, dtype=np.uint8)[:, None, None] * np.ones((1, 5, 3), np.uint8)
    np.testing.assert_array_equal(color_pictures(pictures[None], np.ones((1, 3)))[0], pictures)


def test_color_factors_fill_their_ranges_and_differ_by_camera() -> None:
    index = np.arange(5000)
    batch = {"index": index, "epoch": np.zeros(len(index), np.int64)}
    factors = ColorConfig(brightness=0.1, contrast=0.4, saturation=0).build(7).factors(batch, 2)
    for channel, reach in enumerate((0.1, 0.4)):
        assert abs(factors[..., channel].min() - (1 - reach)) < 0.01
        assert abs(factors[..., channel].max() - (1 + reach)) < 0.01
    assert (factors[..., 2] == 1).all()
    assert (factors[:, 0, 0] != factors[:, 1, 0]).mean() > 0.99


def test_a_sample_is_colored_alike_in_every_batch_but_not_in_every_epoch() -> None:
    together = Color(seed=2)(make_batch([7, 2]))["observations"]["image"]
    alone = Color(seed=2)(make_batch([2]))["observations"]["image"][0]
    later = Color(seed=2)(make_batch([2], epoch=1))["observations"]["image"][0]
    np.testing.assert_array_equal(together[1], alone)
    assert (later != alone).any()


# --- settings ---------------------------------------------------------------------------


def test_an_unknown_transform_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"transforms\.0\.type.*'rotate' \(known: random_shift, color, mirror"
    ):
        DatasetConfig.parse({"transforms": [{"type": "rotate"}]})


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "dataset.transforms.0.pixel=3",
            "--set dataset.transforms.0.pixel=3: error: unknown key "
            "'dataset.transforms.0.pixel'; did you mean 'pixels'? (known: type, pixels)",
        ),
        (
            "dataset.transforms=[{type: randm_shift}]",
            "--set dataset.transforms=[{type: randm_shift}]: error: dataset.transforms.0.type: "
            "no such choice, got 'randm_shift'; did you mean 'random_shift'? "
            "(known: random_shift, color, mirror)",
        ),
        (
            "dataset.transforms=[{pixels: 3}]",
            "--set dataset.transforms=[{pixels: 3}]: error: "
            "missing key 'dataset.transforms.0.type'",
        ),
    ],
)
def test_a_wrong_setting_of_a_transform_is_explained(override: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Project.load("train_bc", [override]).section("dataset", DatasetConfig)
    assert str(caught.value) == line


def test_a_wrong_key_of_a_transform_in_a_file_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("dataset:\n  transforms:\n    - type: color\n      brightnes: 0.2\n")
    with pytest.raises(ConfigError) as caught:
        Project.load(str(path)).section("dataset", DatasetConfig)
    expected = "mine.yaml:4:7: error: unknown key 'dataset.transforms.0.brightnes'; did you mean"
    assert f"{expected} 'brightness'?" in str(caught.value)


def test_a_setting_of_one_transform_is_changed_by_its_place() -> None:
    project = Project.load("train_bc", ["dataset.transforms.0.pixels=3"])
    (shift,) = project.section("dataset", DatasetConfig).transforms
    assert shift == RandomShiftConfig(pixels=3)


def test_every_transform_is_built_from_its_type_alone() -> None:
    contract = two_arm_contract(8, 8)
    config = DatasetConfig.parse({"transforms": [{"type": name} for name in TRANSFORMS]})
    kinds = [type(settings.build(0, contract)) for settings in config.transforms]
    assert kinds == [RandomShift, Color, Mirror]
