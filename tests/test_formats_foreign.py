"""Data sets of strangers: mapped where somebody says what they mean, refused where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from synthetic import write_episodes

from teamvla.data import find_episodes, read_episode
from teamvla.data.formats import ConvertConfig, MappingConfig, convert
from teamvla.errors import ConfigError, SchemaError, TeamVLAError

RNG = np.random.default_rng(0)
OSC = {"obs/robot0_joint_pos": (7,), "obs/robot0_gripper_qpos": (2,), "actions": (7,)}


def write_aloha(path: Path, steps: int = 6, **extra: Any) -> dict[str, np.ndarray]:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "observations/qpos": RNG.random((steps, 14)),
        "observations/qvel": RNG.random((steps, 14)),
        "action": RNG.random((steps, 14)),
        "observations/images/cam_high": RNG.integers(0, 256, (steps, 6, 8, 3), np.uint8),
        **extra,
    }
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[name] = values
    return columns


def aloha(path: Path, out: Path, **settings: Any) -> Any:
    given = {"instruction": "put the cube into the cup", **settings}
    return convert(path, "episodes", out, config=ConvertConfig(**given))


def test_an_aloha_file_is_understood_by_its_layout(tmp_path):
    source = write_aloha(tmp_path / "cube" / "episode_3.hdf5")
    report = aloha(tmp_path / "cube", tmp_path / "out").report
    episode = read_episode(tmp_path / "out" / "cube" / "episode_3.npz")
    action = source["action"]
    np.testing.assert_array_equal(episode.fields["action_b"], action[:, 7:13].astype(np.float32))
    np.testing.assert_allclose(episode.fields["grip_a"], 1 - action[:, 6], rtol=1e-6)
    np.testing.assert_array_equal(episode.fields["rgb_top"], source["observations/images/cam_high"])
    assert episode.meta["contract"]["control_hz"] == 50
    assert "observations/qvel" in report.of("lost")
    assert {"success", "control rate", "instruction", "contract"} <= set(report.of("added"))
    assert "action[6]" in report.of("changed")


def test_grippers_beyond_their_range_are_clipped_and_said(tmp_path):
    action = RNG.random((6, 14))
    action[2, 6] = 1.3
    write_aloha(tmp_path / "cube" / "episode_0.hdf5", action=action)
    report = aloha(tmp_path / "cube", tmp_path / "out").report
    assert any("clipped" in note.why for note in report.notes() if note.what == "action[6]")


def test_compressed_aloha_pictures_are_decoded(tmp_path):
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 6), (250, 10, 20)).save(file, "JPEG", quality=95)
    row = np.frombuffer(file.getvalue() + bytes(20), np.uint8)
    path = tmp_path / "cube" / "episode_0.hdf5"
    write_aloha(path, **{"observations/images/cam_high": np.stack([row] * 6)})
    with h5py.File(path, "a") as opened:
        opened.attrs["compress"] = True
    for order, channel in (("rgb", 0), ("bgr", 2)):
        aloha(tmp_path / "cube", tmp_path / order, jpeg_channels=order)
        picture = read_episode(find_episodes(tmp_path / order)[0]).fields["rgb_top"]
        assert picture[..., channel].mean() > 200 > picture[..., 2 - channel].mean()


@pytest.mark.parametrize(
    ("columns", "settings", "expected"),
    [
        ({"action": np.zeros((6, 7))}, {}, "E606"),
        ({}, {"instruction": None}, "E606"),
        ({"action": np.zeros((5, 14))}, {}, "E605"),
        ({"observations/images/cam_high": np.zeros((6, 4, 4, 1), np.uint8)}, {}, "E605"),
    ],
)
def test_an_aloha_file_that_is_not_clear_is_refused(tmp_path, columns, settings, expected):
    write_aloha(tmp_path / "cube" / "episode_0.hdf5", **columns)
    with pytest.raises(TeamVLAError) as caught:
        aloha(tmp_path / "cube", tmp_path / "out", **settings)
    assert caught.value.code == expected


def soft(file: Any) -> None:
    file["action"] = h5py.SoftLink("/observations/qpos")


def external(file: Any) -> None:
    file["action"] = h5py.ExternalLink("other.hdf5", "/action")


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((6, 14), "f8")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (6, 14))
    file.create_virtual_dataset("action", layout)


def stored_elsewhere(file: Any) -> None:
    file.create_dataset("action", (6, 14), "f8", external=[("/etc/passwd", 0, 672)])


def texts(file: Any) -> None:
    file["action"] = ["a"] * 6


def huge(file: Any) -> None:
    file.create_dataset("action", (1 << 40, 14), "f8", chunks=(1024, 14))


@pytest.mark.parametrize(
    ("harm", "expected"),
    [
        (soft, "E607"),
        (external, "E607"),
        (virtual, "E607"),
        (stored_elsewhere, "E607"),
        (texts, "E608"),
        (huge, "E609"),
    ],
)
def test_an_hdf5_file_cannot_lead_astray(tmp_path, harm, expected):
    path = tmp_path / "cube" / "episode_0.hdf5"
    write_aloha(path)
    with h5py.File(path, "a") as file:
        del file["action"]
        harm(file)
    with pytest.raises(SchemaError) as caught:
        aloha(tmp_path / "cube", tmp_path / "out")
    assert caught.value.code == expected


@pytest.mark.parametrize("cut", [0, 100, 3000])
def test_a_damaged_hdf5_file_is_named(tmp_path, cut):
    path = tmp_path / "cube" / "episode_0.hdf5"
    write_aloha(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SchemaError, match=r"E610.*episode_0\.hdf5"):
        aloha(tmp_path / "cube", tmp_path / "out")


def write_robomimic(path: Path, steps: int = 6) -> dict[str, np.ndarray]:
    columns = {name: RNG.random((steps, *shape)) for name, shape in OSC.items()}
    columns["obs/agentview_image"] = RNG.integers(0, 256, (steps, 6, 8, 3), np.uint8)
    with h5py.File(path, "w") as file:
        for name, values in columns.items():
            file[f"data/demo_0/{name}"] = values
        file["data/demo_0"].attrs["model_file"] = "<mujoco/>"
        file["data"].attrs["env_args"] = '{"env_name": "Lift", "env_kwargs": {"control_freq": 20}}'
        file["mask/train"] = np.array([b"demo_0"])
    return columns


def test_end_effector_actions_are_not_taken_for_joint_positions(tmp_path):
    write_robomimic(tmp_path / "lift.hdf5")
    with pytest.raises(ConfigError, match=r"(?s)E606.*shift: 1.*robot0_joint_pos \[7\]"):
        convert(tmp_path / "lift.hdf5", "episodes", tmp_path / "out")


def test_a_mapping_takes_targets_from_the_row_after(tmp_path):
    source = write_robomimic(tmp_path / "lift.hdf5")
    positions = "obs/robot0_joint_pos"
    mapping = MappingConfig(
        arms={"a": {"q": {"field": positions}, "action": {"field": positions, "shift": 1}}},
        cameras={"rgb_a": "obs/agentview_image"},
        instruction="lift the cube",
    )
    config = ConvertConfig(mapping=mapping)
    done = convert(
        tmp_path / "lift.hdf5", "episodes", tmp_path / "out", config=config, dry_run=True
    )
    assert "actions" in done.report.of("lost")
    assert "model_file" in done.report.of("lost")
    assert "gripper of arm a" in done.report.of("added")
    from teamvla.data.formats import FORMATS, Report

    opened = FORMATS.get("robomimic")().open(tmp_path / "lift.hdf5", config)
    episode = opened.read("demo_0", Report())
    wanted = source[positions].astype(np.float32)
    np.testing.assert_array_equal(episode.fields["q_a"], wanted[:-1])
    np.testing.assert_array_equal(episode.fields["action_a"], wanted[1:])
    assert episode.meta["masks"] == ["train"]
    assert episode.meta["contract"]["control_hz"] == 20


def test_a_mapping_that_names_what_is_not_there_lists_what_is(tmp_path):
    write_robomimic(tmp_path / "lift.hdf5")
    mapping = MappingConfig(arms={"a": {"q": {"field": "joints"}, "action": {"field": "actions"}}})
    with pytest.raises(SchemaError, match=r"(?s)E604.*'joints'.*obs/robot0_joint_pos"):
        convert(
            tmp_path / "lift.hdf5",
            "episodes",
            tmp_path / "o",
            config=ConvertConfig(mapping=mapping),
        )


@pytest.fixture
def foreign_lerobot(tmp_path: Path) -> Path:
    """A LeRobot data set without what this project leaves beside it."""
    write_episodes(tmp_path / "eps", 2)
    folder = tmp_path / "foreign"
    convert(tmp_path / "eps", "lerobot", folder, config=ConvertConfig(images="png"))
    for name in ("teamvla.json", "teamvla-episodes.jsonl"):
        (folder / "meta" / name).unlink()
    return folder


def test_a_foreign_lerobot_data_set_needs_a_mapping(foreign_lerobot, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)E606.*observation\.state \(a_hinge"):
        convert(foreign_lerobot, "episodes", tmp_path / "out")


def test_columns_scales_and_grippers_of_a_mapping(foreign_lerobot, tmp_path):
    def arm(first: int) -> dict[str, Any]:
        columns = list(range(first, first + 6))
        return {
            "q": {"field": "observation.state", "columns": columns, "scale": 2.0},
            "action": {"field": "action", "columns": columns},
            "grip": {"field": "action", "column": first + 6, "open": 1, "closed": 0},
        }

    mapping = MappingConfig(
        arms={"a": arm(7), "b": arm(0)}, cameras={"rgb_a": "observation.images.rgb_b"}
    )
    from teamvla.data.formats import FORMATS, Report

    opened = FORMATS.get("lerobot")().open(foreign_lerobot, ConvertConfig(mapping=mapping))
    report = Report()
    got = opened.read("000001", report)
    before = read_episode(find_episodes(tmp_path / "eps")[1]).fields
    np.testing.assert_array_equal(got.fields["q_a"], 2 * before["q_b"])
    np.testing.assert_array_equal(got.fields["action_b"], before["action_a"])
    np.testing.assert_array_equal(got.fields["grip_a"], 1 - before["grip_b"])
    np.testing.assert_array_equal(got.fields["rgb_a"], before["rgb_b"])
    assert got.task == "lift-the-tray"
    assert got.meta["contract"]["control_hz"] == 20
    assert "next.success" in report.of("lost")
    assert "observation.images.rgb_a" in report.of("lost")


def test_a_lerobot_data_set_cannot_name_files_outside(foreign_lerobot, tmp_path):
    info = foreign_lerobot / "meta" / "info.json"
    info.write_text(info.read_text().replace("data/chunk-", "../eps/chunk-"))
    mapping = MappingConfig(arms={"a": {"q": {"field": "action"}, "action": {"field": "action"}}})
    with pytest.raises(SchemaError, match="E611"):
        convert(foreign_lerobot, "episodes", tmp_path / "o", config=ConvertConfig(mapping=mapping))


@pytest.mark.parametrize(
    "name",
    [
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
        "videos/observation.images.rgb_a/chunk-000/file-000.mp4",
        "meta/teamvla-episodes.jsonl",
    ],
)
@pytest.mark.parametrize("cut", [30, 60])
def test_a_damaged_lerobot_data_set_is_named(tmp_path, name, cut):
    write_episodes(tmp_path / "eps", 1)
    convert(tmp_path / "eps", "lerobot", tmp_path / "there")
    path = tmp_path / "there" / name
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(SchemaError, match="E610"):
        convert(tmp_path / "there", "episodes", tmp_path / "back")
