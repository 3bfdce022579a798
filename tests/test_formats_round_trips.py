"""Episodes through every format and back: equal, except what the report says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import make_contract, make_steps, write_episodes

from teamvla.data import EpisodeWriter, find_episodes, read_episode
from teamvla.data.formats import ConvertConfig, convert
from teamvla.data.formats.verify import decibels, same

LOSSLESS = [("episodes", "png"), ("lerobot", "png"), ("aloha", "png"), ("robomimic", "png")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Episodes with everything that a step can hold, measured grippers and a changing prompt."""
    root = tmp_path_factory.mktemp("rich")
    contract = make_contract()
    with EpisodeWriter(root) as writer:
        for number in range(2):
            writer.start_episode(
                {
                    "task": "lift",
                    "episode_id": f"e{number}",
                    "contract": contract.to_dict(),
                    "contract_digest": contract.digest,
                    "seed": number,
                    "reset_state": {"qpos": [0.1, 0.2]},
                }
            )
            for tick, step in enumerate(make_steps(5, number)):
                rng = np.random.default_rng(tick)
                extra: dict[str, Any] = {
                    "depth_a": rng.random((8, 10), np.float32) / tick if tick else
                    np.full((8, 10), np.inf, np.float32),
                    "phase": ["reach", "grasp"][tick % 2],
                    "timestamp": tick / 20 + 1e-9,
                    "qd_a": rng.random(6, np.float32),
                    "battery": 0.1 * tick,
                    "count": tick,
                    "operator": {"name": "Ada", "tick": tick},
                    "raw": rng.integers(-5, 5, (3, 2), np.int16),
                }  # fmt: skip
                prompt = "lift the tray" if tick < 3 else "put it down"
                writer.add_step({**step, **extra, "instruction": prompt})
            writer.end_episode(success=bool(number))
    return root


@pytest.mark.parametrize(("name", "images"), LOSSLESS)
def test_episodes_come_back_to_the_bit(root, tmp_path, name, images):
    convert(root, name, tmp_path / "there", config=ConvertConfig(images=images))
    done = convert(tmp_path / "there", "episodes", tmp_path / "back")
    assert done.format_from == name
    for path in find_episodes(root):
        before = read_episode(path)
        after = read_episode(tmp_path / "back" / path.relative_to(root))
        assert before.fields.keys() == after.fields.keys()
        for field, values in before.fields.items():
            assert same(values, after.fields[field]), field
            assert values.dtype.kind == after.fields[field].dtype.kind
        meta = {key: value for key, value in after.meta.items() if key != "converted"}
        assert meta == before.meta


@pytest.mark.parametrize(("name", "images"), LOSSLESS)
def test_every_field_has_its_fate_in_the_report(root, tmp_path, name, images):
    report = convert(
        root, name, tmp_path / "there", config=ConvertConfig(images=images), dry_run=True
    ).report
    assert not (tmp_path / "there").exists()
    told = {note.what for note in report.notes()}
    episode = read_episode(find_episodes(root)[0])
    assert set(episode.fields) <= told


def test_mp4_is_reported_with_its_measured_quality(tmp_path):
    root = tmp_path / "eps"
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None] * 8, (32, 32, 3)).copy()
    contract = make_contract()
    cameras = [{"field": f"rgb_{arm}", "height": 32, "width": 32} for arm in "ab"]
    with EpisodeWriter(root) as writer:
        writer.start_episode(
            {"task": "lift", "contract": {**contract.to_dict(), "cameras": cameras}}
        )
        for step in make_steps(7, 0):
            writer.add_step({**step, "rgb_a": ramp, "rgb_b": ramp[::-1].copy()})
        path = writer.end_episode(success=True)
    done = convert(root, "lerobot", tmp_path / "there")
    convert(tmp_path / "there", "episodes", tmp_path / "back")
    before, after = read_episode(path), read_episode(find_episodes(tmp_path / "back")[0])
    error = before.fields["rgb_a"].astype(float) - after.fields["rgb_a"]
    quality = decibels(float(np.mean(error**2)))
    assert quality > 30
    assert any(f"PSNR {quality:.1f} dB" in note.why for note in done.report.notes())
    assert same(before.fields["q_a"], after.fields["q_a"])


def test_pictures_of_a_video_are_those_of_their_steps(tmp_path):
    root = tmp_path / "eps"
    with EpisodeWriter(root) as writer:
        for number in range(3):
            writer.start_episode({"task": "lift", "contract": make_contract().to_dict()})
            for tick, step in enumerate(make_steps(4, number)):
                level = np.full((8, 10, 3), 60 * tick + 10 * number, np.uint8)
                writer.add_step({**step, "rgb_a": level, "rgb_b": level})
            writer.end_episode()
    convert(root, "lerobot", tmp_path / "there")
    convert(tmp_path / "there", "episodes", tmp_path / "back")
    for number, path in enumerate(find_episodes(tmp_path / "back")):
        means = read_episode(path).fields["rgb_a"].mean(axis=(1, 2, 3))
        np.testing.assert_allclose(means, 60 * np.arange(4) + 10 * number, atol=4)


def test_verification_finds_what_a_format_loses(root, tmp_path, monkeypatch):
    monkeypatch.setattr("teamvla.data.formats.aloha.has_place", lambda values: False)
    report = convert(root, "aloha", tmp_path / "there").report
    assert {"phase", "depth_a", "battery"} <= set(report.of("lost"))


@pytest.mark.parametrize("name", ["lerobot", "robomimic"])
def test_episodes_of_two_contracts_make_no_data_set(tmp_path, name):
    from synthetic import write_episode

    write_episode(tmp_path / "eps", "a")
    write_episode(tmp_path / "eps", "b", contract=make_contract(30.0))
    with pytest.raises(Exception, match="E614"):
        convert(tmp_path / "eps", name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_chains_of_conversions_keep_the_numbers(tmp_path):
    write_episodes(tmp_path / "eps", 2)
    png = ConvertConfig(images="png")
    convert(tmp_path / "eps", "aloha", tmp_path / "a")
    convert(tmp_path / "a", "lerobot", tmp_path / "b", config=png)
    convert(tmp_path / "b", "robomimic", tmp_path / "c")
    convert(tmp_path / "c", "episodes", tmp_path / "d")
    for path in find_episodes(tmp_path / "eps"):
        before = read_episode(path).fields
        after = read_episode(tmp_path / "d" / path.relative_to(tmp_path / "eps")).fields
        assert all(same(values, after[name]) for name, values in before.items())


@pytest.mark.parametrize("name", ["aloha", "robomimic", "lerobot"])
def test_fields_of_varying_length_are_carried_or_reported(tmp_path, name):
    with EpisodeWriter(tmp_path / "eps") as writer:
        writer.start_episode({"task": "lift", "contract": make_contract().to_dict()})
        for tick, step in enumerate(make_steps(3, 0)):
            writer.add_step({**step, "points": np.full((tick, 4), tick, np.float32)})
        path = writer.end_episode()
    png = ConvertConfig(images="png")
    report = convert(tmp_path / "eps", name, tmp_path / "there", config=png).report
    convert(tmp_path / "there", "episodes", tmp_path / "back")
    after = read_episode(find_episodes(tmp_path / "back")[0]).fields
    if name == "lerobot":
        assert "points" in report.of("lost")
        assert "points" not in after
    else:
        assert same(read_episode(path).fields["points"], after["points"])


@pytest.mark.parametrize("name", ["aloha", "robomimic", "lerobot"])
def test_one_arm_and_one_camera_come_back(tmp_path, name):
    from teamvla.contract import Arm, Camera, Contract

    contract = Contract(
        embodiment="single_arm",
        arms=(Arm(name="a", joints=("lift", "turn")),),
        cameras=(Camera(field="rgb_top", height=8, width=10),),
    )
    with EpisodeWriter(tmp_path / "eps") as writer:
        writer.start_episode({"task": "pick", "contract": contract.to_dict()})
        for tick in range(3):
            joints = np.array([tick, 0.5], np.float32)
            step = {"task": "pick", "instruction": "pick it", "success": tick == 2}
            step |= {"rgb_top": np.full((8, 10, 3), tick, np.uint8), "q_a": joints}
            writer.add_step({**step, "action_a": joints + 1, "grip_a": 0.25})
        path = writer.end_episode()
    convert(tmp_path / "eps", name, tmp_path / "there", config=ConvertConfig(images="png"))
    convert(tmp_path / "there", "episodes", tmp_path / "back")
    before = read_episode(path)
    after = read_episode(find_episodes(tmp_path / "back")[0])
    assert after.meta["contract"] == before.meta["contract"]
    assert all(same(values, after.fields[field]) for field, values in before.fields.items())
