"""Does LeRobot's own reader see in our output what our episodes hold?

Run by hand in an environment of its own; README.md beside this file says how. It takes a
root of episodes, the data set that ``teamvla convert`` made of it, and how far a picture
may be off on average (0 for PNG; mp4 is lossy).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("episodes", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.0, help="mean of |difference|, 0..255")
    options = parser.parse_args()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset("local/converted", root=options.dataset, video_backend="pyav")
    worst, row = 0.0, 0
    paths = sorted(options.episodes.glob("*/*.npz"))
    assert dataset.num_episodes == len(paths), (dataset.num_episodes, len(paths))
    for number, path in enumerate(paths):
        with np.load(path, allow_pickle=False) as file:
            episode = dict(file)
        meta = json.loads(episode["meta"].tobytes())
        assert dataset.fps == meta["contract"]["control_hz"], (dataset.fps, path)
        for step in range(meta["num_steps"]):
            item = dataset[row]
            worst = max(worst, compare(item, episode, meta, number, step))
            row += 1
    assert row == dataset.num_frames, (row, dataset.num_frames)
    assert worst <= options.tolerance, f"a picture is {worst:.2f} off"
    sys.stdout.write(
        f"{len(paths)} episodes, {row} frames at {dataset.fps} fps: state (with the grippers), "
        f"actions, tasks, times and success equal; worst picture {worst:.3f} of 255 off\n"
    )
    return 0


def compare(item: dict, episode: dict, meta: dict, number: int, step: int) -> float:
    """Assert that everything but pictures is equal; how far the worst picture is off."""
    arms = [arm["name"] for arm in meta["contract"]["arms"]]
    actions = [np.append(episode[f"action_{a}"][step], episode[f"grip_{a}"][step]) for a in arms]
    np.testing.assert_array_equal(item["action"].numpy(), np.concatenate(actions))
    state = [np.append(episode[f"q_{a}"][step], opening(episode, arms, a, step)) for a in arms]
    np.testing.assert_array_equal(item["observation.state"].numpy(), np.concatenate(state))
    texts = episode.get("instruction")
    assert item["task"] == (meta["instruction"] if texts is None else str(texts[step]))
    assert int(item["episode_index"]) == number
    assert int(item["frame_index"]) == step
    assert abs(float(item["timestamp"]) - step / meta["contract"]["control_hz"]) < 1e-4
    assert bool(item["next.success"]) == bool(episode["success"][step])
    off = 0.0
    for camera in meta["contract"]["cameras"]:
        name = camera["field"]
        picture = item[f"observation.images.{name}"].numpy().transpose(1, 2, 0) * 255
        off = max(off, float(np.abs(picture - episode[name][step]).mean()))
    return off


def opening(episode: dict, arms: list[str], arm: str, step: int) -> np.float32:
    """The gripper's entry of the state: measured, or where not, the command of the tick before."""
    if all(f"grip_q_{name}" in episode for name in arms):
        return episode[f"grip_q_{arm}"][step]
    return episode[f"grip_{arm}"][step - 1] if step else np.float32(0)


if __name__ == "__main__":
    raise SystemExit(main())
