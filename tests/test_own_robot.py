"""A robot that the simulator does not have: from arrays to a checkpoint."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teamvla.cli.app import run
from teamvla.contract import Arm, Camera, Contract
from teamvla.data import EpisodeWriter

TRAIN = (
    "trainer.epochs=1", "trainer.threads=1", "trainer.precision=fp32", "dataset.batch_size=8",
    "trainer.log_every=5", "dataset.chunk_size=4", "model.chunk_size=4",
    "model.execution.n_action_steps=4",
)  # fmt: skip


def own_episodes(root: Path, arms: str, cameras: tuple[str, ...]) -> Path:
    """Twelve short episodes of arms of two joints without known geometry."""
    contract = Contract(
        embodiment="my_robot",
        control_hz=10,
        arms=tuple(Arm(name=arm, joints=("shoulder", "elbow")) for arm in arms),
        cameras=tuple(Camera(field=name, height=32, width=32) for name in cameras),
    )
    rng = np.random.default_rng(0)
    with EpisodeWriter(root) as writer:
        for _ in range(12):
            writer.start_episode({"task": "reach", "contract": contract.to_dict()})
            for index in range(6):
                writer.add_step(own_step(rng, arms, cameras, index))
            writer.end_episode(success=True)
    return root


def own_step(
    rng: np.random.Generator, arms: str, cameras: tuple[str, ...], index: int
) -> dict[str, Any]:
    step: dict[str, Any] = {"task": "reach", "instruction": "reach out", "success": index == 5}
    for name in cameras:
        step[name] = rng.integers(0, 256, (32, 32, 3), np.uint8)
    for arm in arms:
        step[f"q_{arm}"] = rng.random(2, np.float32)
        step[f"action_{arm}"] = rng.random(2, np.float32)
        step[f"grip_{arm}"] = 0.5
    return step


@pytest.mark.parametrize(
    ("arms", "cameras"), [("ab", ("rgb_a", "rgb_b")), ("a", ("rgb_a",)), ("ab", ("rgb_top",))]
)
def test_training_names_every_setting_that_must_change_and_then_runs(
    tmp_path, capsys, arms, cameras
):
    root = own_episodes(tmp_path / "data", arms, cameras)
    train = ["train", "--data", str(root), "--out", str(tmp_path / "run"), "--json"]
    train += [word for setting in TRAIN for word in ("--set", setting)]
    assert run(train) == 1
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    flags = re.search(r"without rollouts: (.*)\.$", message)
    assert flags is not None, message
    assert run([*train, *shlex.split(flags[1])]) == 0
    said = json.loads(capsys.readouterr().out)
    # No simulator can measure it: what comes next is to look at it.
    assert shlex.split(said["next"])[:2] == ["teamvla", "ckpt-inspect"]
    assert run(["ckpt-inspect", said["best"], "--verify", "-q"]) == 0
