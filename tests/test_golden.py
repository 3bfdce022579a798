"""The files in fixtures/ stay readable for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from teamvla.checkpoint import read_checkpoint
from teamvla.contract import Contract
from teamvla.data import read_episode, validate_file
from teamvla.models.loading import load_policy

FIXTURES = Path(__file__).parent.parent / "fixtures"
EPISODE = FIXTURES / "data" / "lift_sample.npz"
CHECKPOINT = FIXTURES / "checkpoints" / "bc_stub.ckpt"


def test_the_episode_is_valid_and_tells_a_lift():
    assert validate_file(EPISODE, EPISODE.parent) == []
    episode = read_episode(EPISODE)
    assert (episode.task, episode.success) == ("lift", True)
    phases = [str(phase) for phase in dict.fromkeys(episode.fields["phase"])]
    assert phases[:4] == ["approach", "descend", "close", "lift"]


def test_the_episode_can_be_read_with_numpy_alone():
    with np.load(EPISODE, allow_pickle=False) as members:
        assert members["rgb_a"].shape[1:] == (32, 32, 3)
        assert np.array_equal(members["action_a"], read_episode(EPISODE).fields["action_a"])


def test_commands_stand_beside_the_observation_that_they_were_sent_from():
    fields = read_episode(EPISODE).fields
    ahead = np.abs(fields["q_a"][1:] - fields["action_a"][:-1]).mean()
    behind = np.abs(fields["q_a"][:-1] - fields["action_a"][1:]).mean()
    assert ahead < behind


def test_the_checkpoint_can_be_read_without_torch():
    header, arrays = read_checkpoint(CHECKPOINT)
    assert header.meta["kind"] == "policy"
    assert {name.partition(".")[0] for name in arrays} == {"model", "ema", "optim", "rng", "probe"}


def test_the_checkpoint_acts_on_the_episode():
    policy, header = load_policy(CHECKPOINT)
    episode = read_episode(EPISODE)
    assert policy.contract == Contract.parse(episode.meta["contract"], "the episode")
    policy.reset()
    arms = policy.act({**episode.step(0), "instruction": episode.instruction})
    limits = [link.limits for link in policy.contract.arms[0].links]
    slack = 0.5
    assert all(
        low - slack <= q <= high + slack for q, (low, high) in zip(arms[0], limits, strict=False)
    )
    assert header.meta["state"]["epoch"] == 1
