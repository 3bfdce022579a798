"""The contract's signals in the index, its cache, its statistics and the batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import make_contract

from teamvla.contract import Arm, Camera, Contract, Signal
from teamvla.data import (
    DatasetConfig,
    Episode,
    EpisodeWriter,
    Index,
    IndexConfig,
    MultiTaskDataset,
    build_index,
    make_dataloader,
    read_episode,
    read_meta,
)
from teamvla.data.transforms import Mirror
from teamvla.errors import ConfigError, ContractError, EpisodeError, InputError

F32 = np.float32
VIEW = Camera(field="rgb_top", height=8, width=10)
SIGNALS = (
    Signal(field="speed", unit="m/s"),
    Signal(field="points", shape=(-1, 4), unit="m"),
    Signal(field="direction", dtype="int64", choices=("north", "east")),
    Signal(field="pose", shape=(3,)),
    Signal(field="cells", dtype="uint8", shape=(2, 3)),
    Signal(field="hits", dtype="bool", shape=(-1, 2)),
    Signal(field="lamp", role="action", dtype="bool"),
    Signal(field="wheels", role="action", shape=(2, 2)),
    Signal(field="waypoints", role="target", shape=(2, 2)),
    Signal(field="boxes", role="target", shape=(-1, 3)),
)
ROVER = Contract(embodiment="rover", control_hz=10, cameras=(VIEW,), signals=SIGNALS)
ARMED = Contract(
    embodiment="armed_rover",
    control_hz=10,
    arms=(Arm(name="a", joints=("shoulder", "elbow")),),
    cameras=(VIEW,),
    signals=SIGNALS,
)
SENSORS = ("points", "direction", "cells", "hits")
TARGETS = ("waypoints", "boxes")


def made_step(contract: Contract, rng: np.random.Generator) -> dict[str, Any]:
    """Every field that the contract asks for, with numbers that occur nowhere else."""
    step: dict[str, Any] = {"reward": float(rng.random())}
    for camera in contract.cameras:
        size = (camera.height, camera.width, 3)
        step[camera.field] = rng.integers(0, 256, size, dtype=np.uint8)
    for arm in contract.arms:
        step |= {f"{stem}_{arm.name}": rng.random(arm.num_joints, F32) for stem in ("q", "action")}
        step |= {f"grip_{arm.name}": rng.random(), f"grip_q_{arm.name}": rng.random()}
    for signal in contract.signals:
        shape = tuple(int(rng.integers(0, 6)) if size == -1 else size for size in signal.shape)
        if signal.dtype == "float32":
            step[signal.field] = rng.normal(size=shape).astype(F32)
        else:
            step[signal.field] = rng.integers(0, 2, shape).astype(signal.dtype)
    return step


def write(root: Path, contract: Contract, name: str, steps: int = 5, **changes: Any) -> Path:
    """One episode; a change that is None takes a field out."""
    rng = np.random.default_rng([*name.encode()])
    meta = {"task": "drive", "episode_id": name, "contract": contract.to_dict()}
    with EpisodeWriter(root) as writer:
        writer.start_episode({**meta, "contract_digest": contract.digest})
        for number in range(steps):
            words = {"instruction": "go", "task": "drive", "success": number == steps - 1}
            step = {**made_step(contract, rng), **words, **changes}
            writer.add_step({key: value for key, value in step.items() if value is not None})
        return writer.end_episode(success=True)


@pytest.fixture(scope="module", params=[ROVER, ARMED], ids=["rover", "armed"])
def root(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("episodes")
    for number in range(3):
        write(folder, request.param, f"e{number}", 4 + number)
    return folder


def opened(root: Path, **changes: Any) -> MultiTaskDataset:
    return MultiTaskDataset({"roots": [str(root)], "split": "all", "chunk_size": 3, **changes})


def episodes_of(dataset: MultiTaskDataset) -> list[tuple[Episode, int]]:
    """Of every sample of a plain dataset the episode and the step."""
    places = (dataset.where(row) for row in range(len(dataset)))
    return [(read_episode(path), step) for path, step in places]


def require_same(value: np.ndarray, expected: Any) -> None:
    expected = np.asarray(expected)
    assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
    assert value.tobytes() == expected.tobytes()


# --- the numbers ------------------------------------------------------------------------


def test_every_signal_of_a_batch_is_that_of_the_file_to_the_bit(root: Path) -> None:
    dataset = opened(root, fields=["state", "actions", "reward"])
    batch = dataset.__getitems__(range(len(dataset)))
    observations, targets = batch["observations"], batch["targets"]
    assert set(observations) == {"state", *SENSORS, "points_mask", "hits_mask"}
    assert set(targets) == {*TARGETS, "boxes_mask"}
    for at, (episode, step) in enumerate(episodes_of(dataset)):
        for found, names in ((observations, SENSORS), (targets, TARGETS)):
            for name in names:
                mask = found.get(f"{name}_mask", np.ones((len(dataset), 1), bool))[at]
                whole = found[name][at]
                rows = whole[mask] if f"{name}_mask" in found else whole
                require_same(rows, episode.fields[name][step])
                assert (np.flatnonzero(mask) == np.arange(mask.sum())).all()
                assert f"{name}_mask" not in found or not whole[~mask].any()
        require_same(batch["reward"][at], episode.fields["reward"][step])


def test_the_state_is_that_which_the_contract_reads_from_an_observation(root: Path) -> None:
    dataset = opened(root)
    states = dataset.field("state")[:]
    assert dataset.contract.state_sizes[-2:] == (1, 3)
    for state, (episode, step) in zip(states, episodes_of(dataset), strict=True):
        require_same(state, dataset.contract.measured_state(episode.step(step)))
        speed, pose = (episode.fields[name][step] for name in ("speed", "pose"))
        require_same(state[-4:], np.append(speed, pose))


def test_the_actions_are_the_recorded_commands_joined(root: Path) -> None:
    dataset = opened(root, chunk_size=1)
    contract = dataset.contract
    for row, (episode, step) in enumerate(episodes_of(dataset)):
        parts = contract.recorded_command(episode.fields, step)
        joined = np.concatenate([np.ravel(part).astype(F32) for part in parts])
        require_same(dataset[row]["actions"][0], joined)
        back = contract.command_fields(contract.split_command(joined))
        for signal in contract.action_signals:
            require_same(back[signal.field], episode.fields[signal.field][step])


def test_varying_rows_are_padded_to_the_longest_of_the_batch(tmp_path: Path) -> None:
    clouds = [np.full((count, 4), count, F32) for count in (2, 0, 3)]
    for number, cloud in enumerate(clouds):
        write(tmp_path, ROVER, f"e{number}", 1, points=cloud)
    dataset = opened(tmp_path)
    seen = dataset.__getitems__([0, 1])["observations"]
    assert seen["points"].shape == (2, 2, 4)
    assert seen["points_mask"].tolist() == [[True, True], [False, False]]
    assert not seen["points"][1].any()
    seen = dataset.__getitems__([1])["observations"]
    assert seen["points"].shape == (1, 1, 4)  # a row to reduce over, which is not there
    assert not seen["points_mask"].any()
    assert dataset.field("points")[2].tolist() == clouds[2].tolist()


def test_a_history_has_the_sensors_of_its_steps_and_the_target_of_its_own(root: Path) -> None:
    plain, dataset = opened(root), opened(root, n_obs_steps=3)
    batch = dataset.__getitems__([0, 2, 3])
    seen = batch["observations"]
    assert seen["points"].shape[:2] == seen["points_mask"].shape[:2] == (3, 3)
    for at, row in enumerate((0, 2, 3)):
        for back in range(3):
            before = plain[max(row - back, 0)]["observations"]
            mask = seen["points_mask"][at, 2 - back]
            require_same(
                seen["points"][at, 2 - back][mask], before["points"][before["points_mask"]]
            )
            require_same(seen["cells"][at, 2 - back], before["cells"])
        require_same(batch["targets"]["waypoints"][at], plain[row]["targets"]["waypoints"])


@pytest.mark.parametrize("history", [1, 2])
def test_several_shards_and_a_merge_of_them_give_the_batches_of_one(
    tmp_path: Path, history: int
) -> None:
    for number in range(3):
        write(tmp_path, ROVER, f"e{2 - number}", 3 + number)
        build_index(tmp_path)
    build_index(tmp_path, tmp_path / "whole")
    several = opened(tmp_path, n_obs_steps=history)
    whole = opened(tmp_path, n_obs_steps=history, index=str(tmp_path / "whole"))
    assert [len(data.index.cache.shards) for data in (several, whole)] == [3, 1]
    rows = np.random.default_rng(0).permutation(len(whole))
    expected = whole.__getitems__(rows)
    require_equal(several.__getitems__(rows), expected)
    copied = build_index(tmp_path, config=IndexConfig(max_chunk=7))  # writes all shards anew
    assert copied.summary["last_run"]["shards_copied"] == 3
    require_equal(opened(tmp_path, n_obs_steps=history).__getitems__(rows), expected)


def require_equal(batch: Any, expected: Any) -> None:
    assert batch.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            require_equal(batch[name], value)
        else:
            np.testing.assert_array_equal(batch[name], value, err_msg=name)


def test_a_lossy_cache_keeps_the_signals_exactly(root: Path, tmp_path: Path) -> None:
    build_index(root, tmp_path / "jpeg", IndexConfig(codec="jpeg"))
    lossy, exact = opened(root, index=str(tmp_path / "jpeg")), opened(root)
    rows = range(len(exact))
    for key in ("points", "cells", "hits", "state"):
        seen = (data.__getitems__(rows)["observations"][key] for data in (lossy, exact))
        require_same(*seen)


def test_tensors_keep_the_types(root: Path) -> None:
    torch = pytest.importorskip("torch")
    config = {"roots": [str(root)], "split": "all", "batch_size": 4, "chunk_size": 2}
    batch = next(iter(make_dataloader({**config, "num_workers": 1})))
    seen = batch["observations"]
    assert [seen[name].dtype for name in ("points", "direction", "cells", "hits")] == [
        torch.float32, torch.int64, torch.uint8, torch.bool,
    ]  # fmt: skip
    assert batch["targets"]["boxes_mask"].dtype == torch.bool


# --- what is chosen ---------------------------------------------------------------------


def test_only_the_chosen_signals_are_read(root: Path) -> None:
    batch = opened(root, signals=["cells", "boxes"]).__getitems__([0])
    assert set(batch["observations"]) == {"image", "state", "cells"}
    assert set(batch["targets"]) == {"boxes", "boxes_mask"}
    batch = opened(root, signals=[], fields=["actions"]).__getitems__([0])
    assert set(batch) == {"observations", "actions", "action_is_pad", "index", "epoch"}
    assert batch["observations"] == {}


@pytest.mark.parametrize(
    ("name", "said"),
    [("point", "got none. Did you mean 'points'"), ("pose", "a part of the state"),
     ("wheels", "a part of the state or the actions")],
)  # fmt: skip
def test_signals_that_are_none_are_told(root: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=rf"dataset\.signals: '{name}'.*{said}"):
        opened(root, signals=[name])


def test_a_signal_is_named_once() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.signals.*twice"):
        DatasetConfig.parse({"signals": ["points", "points"]})


def test_views_know_the_signals(root: Path) -> None:
    dataset = opened(root)
    assert dataset.field("waypoints")[3].shape == (2, 2)
    assert dataset.field("reward")[:].shape == (len(dataset),)
    with pytest.raises(InputError, match="Did you mean 'cells'"):
        dataset.field("cell")


def test_repr_tells_the_signals(tmp_path: Path) -> None:
    write(tmp_path, ROVER, "e0")
    text = repr(opened(tmp_path))
    assert "state float32[4], points float32[P, 4], direction int64, cells uint8[2, 3]" in text
    assert "target waypoints float32[2, 2], target boxes float32[P, 3], actions" in text
    assert text.endswith("actions float32[3, 5])")


# --- rewards ----------------------------------------------------------------------------


def test_a_reward_that_was_not_recorded_cannot_be_asked_for(tmp_path: Path) -> None:
    write(tmp_path, ROVER, "e0", reward=None)
    write(tmp_path, ROVER, "e1")  # the first one decides
    assert not build_index(tmp_path).layout.reward
    with pytest.raises(InputError, match=r"dataset\.fields: 'reward': expected episodes"):
        opened(tmp_path, fields=["state", "reward"])


def test_a_reward_in_the_first_episode_alone_is_a_disagreement(tmp_path: Path) -> None:
    write(tmp_path, ROVER, "e0")
    second = write(tmp_path, ROVER, "e1", reward=None)
    with pytest.raises(EpisodeError, match="reward, as in the other episodes") as caught:
        build_index(tmp_path, config=IndexConfig(skip_invalid=True))
    assert (caught.value.code, caught.value.where) == ("E503", str(second))


# --- robots without cameras, arms or state ----------------------------------------------


def test_a_robot_without_cameras_has_no_image(tmp_path: Path) -> None:
    blind = ROVER.model_copy(update={"cameras": ()})
    write(tmp_path, blind, "e0")
    built = build_index(tmp_path, config=IndexConfig(codec="jpeg"))
    built.verify()
    assert list(built.damaged()) == []
    assert built.statistics["pictures"] == {"every": {"steps": 4, "lines": 8}}
    dataset = opened(tmp_path)
    assert "image" not in dataset[0]["observations"]
    assert "image" not in repr(dataset)
    with pytest.raises(InputError, match="field 'image'"):
        dataset.field("image")


def test_a_robot_without_a_state_has_none(tmp_path: Path) -> None:
    signals = tuple(signal for signal in SIGNALS if not signal.in_state)
    write(tmp_path, ROVER.model_copy(update={"signals": signals}), "e0")
    dataset = opened(tmp_path)
    assert "state" not in dataset[0]["observations"]
    assert dataset.statistics["state"]["mean"] == dataset.statistics["state"]["q99"] == []
    assert dataset.statistics["columns"]["state"] == []
    assert len(dataset.statistics["actions"]["mean"]) == 5


# --- the index --------------------------------------------------------------------------


def test_statistics_cover_the_joined_signals_by_name(tmp_path: Path) -> None:
    paths = [write(tmp_path, ARMED, f"e{number}") for number in range(3)]
    figures = build_index(tmp_path).statistics
    assert figures["columns"]["state"] == [
        "q_a[0]", "q_a[1]", "grip_q_a", "speed", "pose[0]", "pose[1]", "pose[2]",
    ]  # fmt: skip
    assert figures["columns"]["actions"] == [
        "action_a[0]", "action_a[1]", "grip_a",
        "lamp", "wheels[0,0]", "wheels[0,1]", "wheels[1,0]", "wheels[1,1]",
    ]  # fmt: skip
    fields = [read_episode(path).fields for path in paths]
    pose = np.concatenate([one["pose"] for one in fields]).astype(np.float64)
    np.testing.assert_allclose(figures["state"]["mean"][4:], pose.mean(0), rtol=1e-6)
    wheels = np.concatenate([one["wheels"].reshape(-1, 4) for one in fields])
    np.testing.assert_array_equal(F32(figures["actions"]["max"][4:]), wheels.max(0))


def flip(path: Path, at: int) -> None:
    """Change one byte, counted from the end."""
    content = bytearray(path.read_bytes())
    content[-at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["points", "points-offsets", "cells", "waypoints", "reward"])
def test_a_changed_bit_of_a_signal_is_found_with_its_episode(tmp_path: Path, name: str) -> None:
    write(tmp_path, ROVER, "e0")
    write(tmp_path, ROVER, "e1", points=np.ones((3, 4), F32))
    built = build_index(tmp_path)
    assert list(built.damaged()) == []
    flip(built.folder / "shard-0001" / f"signal-{name}.npy", 8)
    field = name.removesuffix("-offsets")
    assert list(Index.open(built.folder).damaged()) == [("drive/e1.npz", [field])]
    with pytest.raises(InputError, match=rf"{field} of shard-0001 damaged.*--rebuild"):
        build_index(tmp_path, config=IndexConfig(max_chunk=7))


def test_offsets_that_lead_out_of_the_cache_are_refused(tmp_path: Path) -> None:
    write(tmp_path, ROVER, "e0", points=np.ones((3, 4), F32))
    dataset = opened(tmp_path)
    flip(dataset.index.folder / "shard-0001" / "signal-points-offsets.npy", 4)
    with pytest.raises(InputError, match=r"the cached rows of points.*--verify"):
        opened(tmp_path).__getitems__(range(len(dataset)))


def test_a_file_of_a_signal_that_is_cut_short_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, ROVER, "e0")
    built = build_index(tmp_path)
    path = built.folder / "shard-0001" / "signal-boxes.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"signal-boxes\.npy: \d+ bytes instead of"):
        Index.open(built.folder)
    assert list(build_index(tmp_path).damaged()) == []


def test_an_index_of_the_older_version_is_built_anew_with_its_settings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, ROVER, "e0")
    before = build_index(tmp_path, config=IndexConfig(max_chunk=7))
    path = before.folder / "summary.json"
    path.write_text(json.dumps({**before.summary, "schema": "teamvla.index/2"}))
    with pytest.raises(InputError, match=r"schema teamvla\.index/3, got 'teamvla\.index/2'"):
        Index.open(before.folder)
    after = build_index(tmp_path)
    assert "is built anew" in caplog.text
    assert (after.config, after.digest) == (before.config, before.digest)


# --- refusals ---------------------------------------------------------------------------


def altered(root: Path, **members: Any) -> EpisodeError:
    """What an index is refused with whose episode has these members instead."""
    path = write(root, ROVER, "e0")
    found = {**dict(np.load(path)), **members}
    np.savez(path, **{name: array for name, array in found.items() if array is not None})
    with pytest.raises(EpisodeError) as caught:
        build_index(root)
    return caught.value


def test_a_number_of_a_cloud_that_is_not_finite_is_told_with_its_step(tmp_path: Path) -> None:
    path = write(tmp_path, ROVER, "e0", points=np.ones((3, 4), F32))
    members = dict(np.load(path))
    members["points"][7, 2] = np.nan
    np.savez(path, **members)
    with pytest.raises(EpisodeError, match="points: finite numbers, got others at step 2") as told:
        build_index(tmp_path)
    assert told.value.code == "E506"


def test_a_signal_that_is_missing_or_of_another_type_is_told(tmp_path: Path) -> None:
    assert altered(tmp_path / "missing", cells=None).code == "E102"
    assert altered(tmp_path / "type", cells=np.zeros((5, 2, 3), F32)).code == "E105"


def test_a_signal_that_is_missing_in_some_episodes_can_be_left_out(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, ROVER, f"e{number}")
    path = tmp_path / "drive" / "e1.npz"
    np.savez(path, **{k: v for k, v in np.load(path).items() if k != "waypoints"})
    built = build_index(tmp_path, config=IndexConfig(skip_invalid=True))
    assert built.num_episodes == 2
    assert [Path(one["path"]).name for one in built.invalid] == ["e1.npz"]


def test_a_whole_number_that_float32_has_not_is_no_action(tmp_path: Path) -> None:
    gear = Signal(field="gear", role="action", dtype="int64")
    contract = ROVER.model_copy(update={"signals": (*SIGNALS, gear)})
    write(tmp_path, contract, "e0", gear=2**24)
    build_index(tmp_path)
    write(tmp_path, contract, "e1", gear=2**24 + 1)
    with pytest.raises(EpisodeError, match=r"gear: whole numbers that float32 has.*step 0"):
        build_index(tmp_path)


@pytest.mark.parametrize("name", ["image", "state", "actions", "language", "reward"])
def test_a_signal_that_is_called_like_a_part_of_a_batch_is_refused(
    tmp_path: Path, name: str
) -> None:
    signal = Signal(field=name, shape=(2, 2))
    write(tmp_path, ROVER.model_copy(update={"signals": (*SIGNALS, signal)}), "e0")
    with pytest.raises(ContractError, match=rf"signals with other names than .*got {name}"):
        build_index(tmp_path)


@pytest.mark.parametrize("name", ["pose", "wheels"])
def test_states_and_commands_beyond_the_arms_are_not_mirrored(name: str) -> None:
    signals = tuple(signal for signal in SIGNALS if signal.field == name)
    contract = make_contract().model_copy(update={"signals": signals})
    with pytest.raises(ContractError, match=rf"states and commands of arms alone, got {name}"):
        Mirror(contract)


def test_targets_are_not_mirrored_in_silence() -> None:
    batch = {"observations": {}, "targets": {"waypoints": np.zeros((1, 2, 2), F32)}}
    with pytest.raises(ContractError, match="got waypoints"):
        Mirror(make_contract()).mirror(batch, np.array([0]))


def test_an_observation_without_a_vector_of_the_state_is_refused() -> None:
    seen = {"speed": 1.0, "pose": np.zeros(3)}
    assert ROVER.measured_state(seen).tolist() == [1, 0, 0, 0]
    with pytest.raises(ContractError, match="field 'pose', got speed"):
        ROVER.measured_state({"speed": 1.0})
    with pytest.raises(ContractError, match="3 numbers of 'pose', got 2"):
        ROVER.measured_state({**seen, "pose": np.zeros(2)})


def test_the_contract_of_the_index_is_that_of_the_episodes(root: Path) -> None:
    built = build_index(root)
    path = root / built.episodes.text("path", 0)
    assert built.contract.to_dict() == read_meta(path)["contract"]
    assert built.layout.signals == built.contract.signals
