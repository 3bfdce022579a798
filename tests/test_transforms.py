"""Augmentation: the right pixels, and randomness that depends on (seed, epoch, index) alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from teamvla.data.transforms import RandomShift, RandomShiftConfig, shift_pictures


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
    base = RandomShift(4, seed=0).shifts(index, epoch, 2)
    others = (
        RandomShift(4, seed=1).shifts(index, epoch, 2),
        RandomShift(4, seed=0).shifts(index, epoch + 1, 2),
        RandomShift(4, seed=0).shifts(index + 1, epoch, 2),
        base[:, ::-1],
        base[:, :, ::-1],
    )
    for other in others:
        assert (base != other).mean() > 0.8


def test_shifts_are_uniform_and_within_the_limit() -> None:
    index = np.arange(20_000)
    shifts = RandomShift(4, seed=3).shifts(index, np.zeros(len(index), np.int64), 2)
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
