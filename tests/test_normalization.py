"""Scaling of actions and states by the statistics of the training split."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teamvla.errors import ContractError
from teamvla.models.normalization import NormalizationConfig, Normalizer
from teamvla.models.spaces import Spaces
from teamvla.sim.scene import two_arm_contract

SPACES = Spaces.of(two_arm_contract(32, 32))
DIM = 14
STATISTICS = {
    "actions": {
        "min": np.linspace(-2, -0.1, DIM).tolist(),
        "max": np.linspace(0.2, 1.5, DIM).tolist(),
        "q01": np.linspace(-1, -0.1, DIM).tolist(),
        "q99": np.linspace(0.1, 1, DIM).tolist(),
    },
    "state": {"mean": np.linspace(-1, 1, DIM).tolist(), "std": np.linspace(0, 1, DIM).tolist()},
    "count": 100,
}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-3, 3, width=32), min_size=DIM, max_size=DIM), st.booleans())
def test_normalizer_undoes_itself(values, by_quantiles):
    config = NormalizationConfig(actions="quantiles" if by_quantiles else "min_max")
    scaler = Normalizer(config, SPACES, STATISTICS)
    vector = torch.tensor(values)
    actions = scaler.denormalize_actions(scaler.normalize_actions(vector))
    torch.testing.assert_close(actions, vector, rtol=1e-5, atol=1e-5)


def test_normalizer_scales_the_range_of_joints_to_one():
    scaler = Normalizer(NormalizationConfig(), SPACES, STATISTICS)
    joints = [place for place in range(DIM) if place not in (6, 13)]
    for bound, value in (("min", -1.0), ("max", 1.0)):
        scaled = scaler.normalize_actions(torch.tensor(STATISTICS["actions"][bound]))
        torch.testing.assert_close(scaled[joints], torch.full((12,), value))


def test_normalizer_scales_grippers_by_their_unit_not_by_what_was_seen():
    scaler = Normalizer(NormalizationConfig(), SPACES, STATISTICS)
    assert scaler.normalize_actions(torch.zeros(DIM))[[6, 13]].tolist() == [-1, -1]
    assert scaler.normalize_actions(torch.ones(DIM))[[6, 13]].tolist() == [1, 1]


def test_an_idle_joint_does_not_blow_up():
    idle = {
        "actions": {"min": [0.1] * DIM, "max": [0.1] * DIM},
        "state": {"mean": [0.1] * DIM, "std": [0.0] * DIM},
    }
    config = NormalizationConfig(half_range_floor=0.02, std_floor=0.04)
    scaler = Normalizer(config, SPACES, idle)
    drifted = torch.full((DIM,), 0.11)
    assert scaler.normalize_actions(drifted)[0].item() == pytest.approx(0.5, rel=1e-4)
    assert scaler.normalize_state(drifted)[0].item() == pytest.approx(0.25, rel=1e-4)


def test_without_statistics_only_grippers_are_scaled_and_that_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        scaler = Normalizer(NormalizationConfig(), SPACES, None)
    assert "not normalised" in caplog.text
    vector = torch.rand(DIM, generator=torch.Generator().manual_seed(0))
    expected = vector.clone()
    expected[[6, 13]] = expected[[6, 13]] * 2 - 1
    torch.testing.assert_close(scaler.normalize_actions(vector), expected)
    assert torch.equal(scaler.normalize_state(vector), vector)


@pytest.mark.parametrize(
    ("values", "got"),
    [([0.0] * 3, r"shape \(3,\)"), ([float("nan")] * DIM, "NaN"), (None, "nothing of the kind")],
)
def test_statistics_that_do_not_fit_are_refused(values, got):
    broken = {**STATISTICS, "state": {"mean": values, "std": [1.0] * DIM}}
    with pytest.raises(ContractError, match=f"statistics.state.mean: expected 14.*{got}"):
        Normalizer(NormalizationConfig(), SPACES, broken)
