"""robomimic data sets: one HDF5 file, a group ``data/demo_N`` an episode.

``obs/*`` are observations, ``actions`` what the environment's ``step`` took. Most such
data hold end-effector commands, which are not joint positions: they need a mapping that
says where joint position targets come from, and are refused without one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.contract import Contract
from teamvla.data.formats.aloha import describe_own
from teamvla.data.formats.base import ConvertConfig, Source, digest_of
from teamvla.data.formats.folders import FolderTarget
from teamvla.data.formats.hdf5 import (
    OWN,
    Hdf5File,
    created,
    has_place,
    import_h5py,
    opened,
    read_own,
    write_own,
)
from teamvla.data.formats.joined import Joined, Places, describe_vectors, join, mapping_of
from teamvla.data.formats.mapped import Foreign, to_episode
from teamvla.data.formats.mapping import Passed, slug
from teamvla.data.formats.report import Report
from teamvla.data.npz import Episode
from teamvla.data.zipcontainer import MAX_BYTES
from teamvla.errors import ConfigError, EpisodeError, InputError, SchemaError
from teamvla.files import sha256_file
from teamvla.logs import progress

FILE = "dataset.hdf5"
PLACES = Places("obs/joint_state", "actions", (0.0, 1.0), (-1.0, 1.0))
_BOOKKEEPING = frozenset(("rewards", "dones"))


class RobomimicFormat(FolderTarget):
    """A file with ``data/demo_N``, or a folder with one such file."""

    def recognises(self, path: Path) -> bool:
        try:
            file = _file(path)
        except InputError:
            return False
        return not re.fullmatch(r"episode_\d+\.hdf5", file.name)

    def open(self, path: Path, config: ConvertConfig) -> Source:
        return RobomimicSource(_file(path), config)

    def describe(self, episode: Episode, config: ConvertConfig, report: Report) -> None:
        joined = join(episode)
        describe_vectors(joined, PLACES, report)
        for name in joined.pictures:
            report.note("carried", name, f"obs/{name}_image")
        describe_own(joined, report)
        report.note("added", "rewards", "rewards", "1 where success, else 0")
        report.note("added", "dones", "dones", "1 in the last step")
        why = "robomimic plays it back in the environment that made it, which is not robosuite"
        report.note("lost", "simulator states", "states", why)
        why = "joint targets in rad: let robomimic scale them (action_config, min_max)"
        report.note("changed", "range of the actions", "actions", why)

    def build(self, source: Source, folder: Path, config: ConvertConfig) -> None:
        total, first = 0, None
        with (
            progress("write robomimic", len(source.names()), "episode") as bar,
            created(folder / FILE) as file,
        ):
            data = file.create_group("data")
            for number, key in enumerate(source.names()):
                episode = source.read(key, Report())
                joined = join(episode)
                first = first or joined.contract
                _check_same(episode, joined, first)
                _write(data.create_group(f"demo_{number}"), episode, joined)
                total += episode.num_steps
                bar.advance()
            data.attrs["total"] = total
            data.attrs["env_args"] = json.dumps(
                {"env_name": "teamvla", "type": 2, "env_kwargs": {}}
            )


def _check_same(episode: Episode, joined: Joined, first: Contract) -> None:
    if joined.contract.digest != first.digest:
        mend = "Convert data of one contract into one data set."
        expected = "the contract of the first episode"
        raise SchemaError(str(episode.path), expected, "another", mend, code="E614")


def _write(demo: Any, episode: Episode, joined: Joined) -> None:
    actions = joined.actions.astype(np.float64)
    for column in joined.contract.grippers:
        actions[:, column] = 2 * actions[:, column] - 1  # robosuite: -1 open .. 1 closed
    last = np.zeros(episode.num_steps, np.int64)
    last[-1] = 1
    cameras = {name: f"obs/{name}_image" for name in joined.pictures}
    columns = {
        PLACES.state: joined.state,
        PLACES.actions: actions,
        "rewards": episode.fields["success"].astype(np.float64),
        "dones": last,
    }
    for name, values in columns.items():
        demo.create_dataset(name, data=values, track_times=False)
    for name, rows in joined.pictures.items():
        demo.create_dataset(cameras[name], data=rows, chunks=(1, *rows.shape[1:]))
    demo.attrs["num_samples"] = episode.num_steps
    fields = {
        name: Passed(field=f"{OWN}/{name}")
        for name, values in joined.rest.items()
        if has_place(values)
    }
    mapping = mapping_of(joined, PLACES, cameras, fields, Passed(field="success"))
    write_own(demo, episode, joined, mapping)
    demo[OWN].create_dataset("fields/success", data=episode.fields["success"])


def _file(path: Path) -> Path:
    if path.is_file() and path.suffix in (".hdf5", ".h5"):
        return path
    found = sorted([*path.glob("*.hdf5"), *path.glob("*.h5")]) if path.is_dir() else []
    if len(found) != 1:
        raise InputError(str(path), "one HDF5 file", f"{len(found)}")
    return found[0]


class RobomimicSource:
    """An opened robomimic file."""

    def __init__(self, path: Path, config: ConvertConfig) -> None:
        import_h5py()
        self._path, self._config = path, config
        self._digest: str | None = None
        with opened(path) as file:
            demos = [name for name in file.names("data") if re.fullmatch(r"demo_\d{1,9}", name)]
            self._env = _environment(file)
            self._masks = {
                name: set(file_names(file, f"mask/{name}")) for name in file.names("mask")
            }
        if not demos:
            raise EpisodeError(str(path), "groups data/demo_N", "none", code="E610")
        self._demos = sorted(demos, key=lambda name: int(name[5:]))

    def names(self) -> list[str]:
        return self._demos

    def digest(self, key: str) -> str:
        self._digest = self._digest or sha256_file(self._path)
        return digest_of(self._digest, key)

    def read(self, key: str, report: Report) -> Episode:
        with opened(self._path) as file:
            own = read_own(file, f"data/{key}") if self._config.mapping is None else None
            columns = self._columns(file, f"data/{key}")
            attributes = file.attributes(f"data/{key}")
        if own is not None:
            meta, mapping, fields = own
            columns |= {k if k in ("success", "instruction") else f"{OWN}/{k}": v
                        for k, v in fields.items()}  # fmt: skip
            episode = to_episode(Foreign(self._path, columns, None, meta), mapping, Report())
            for name in episode.fields:
                report.note("carried", name, name)
            return episode
        if self._config.mapping is None:
            raise self._unmapped(columns)
        return self._mapped(key, columns, attributes, report)

    def _mapped(
        self, key: str, columns: dict[str, np.ndarray], attributes: dict[str, Any], report: Report
    ) -> Episode:
        assert self._config.mapping is not None
        mapping = self._config.completed(self._config.mapping)
        task = slug(str(self._env.get("env_name", "task")))
        meta: dict[str, Any] = {
            "task": task,
            "episode_id": slug(key),
            "instruction": task.replace("-", " "),
        }
        masks = sorted(name for name, demos in self._masks.items() if key in demos)
        if masks:
            meta["masks"] = masks
            report.note("aside", "mask", "metadata.masks", "splits are made by teamvla index")
        if mapping.instruction is None:
            report.note("added", "instruction", "instruction", "the environment's name")
        if "model_file" in attributes:
            report.note("lost", "model_file", "", "the simulator's model is not part of an episode")
        if self._env:
            meta["env_args"] = self._env
            report.note("aside", "env_args", "metadata.env_args", "")
        if "rewards" in columns and mapping.success is None:
            report.note("lost", "rewards", "", "to take success from them: mapping.success")
        hz = self._env.get("env_kwargs", {}).get("control_freq")
        rate = float(hz) if isinstance(hz, int | float) and hz > 0 else None
        return to_episode(Foreign(self._path, columns, rate, meta, _BOOKKEEPING), mapping, report)

    def _columns(self, file: Hdf5File, below: str) -> dict[str, np.ndarray]:
        columns, room = {}, MAX_BYTES
        for place in file.data_sets(below):
            name = place.removeprefix(f"{below}/")
            # next_obs says again what obs says one row later
            if name.startswith((f"{OWN}/", "next_obs/")):
                continue
            columns[name] = file.read(place, room)
            room -= columns[name].nbytes
        return columns

    def _unmapped(self, columns: dict[str, np.ndarray]) -> ConfigError:
        known = ", ".join(f"{name} {list(v.shape[1:])}" for name, v in sorted(columns.items()))
        return ConfigError(
            str(self._path),
            "a mapping to joint positions",
            "none, and actions of robomimic are usually end-effector commands",
            "Give one with --mapping FILE, where an arm's action may be the joint positions "
            "one row later: action: {field: obs/robot0_joint_pos, shift: 1}. "
            f"There are: {known}.",
            code="E606",
        )


def file_names(file: Hdf5File, place: str) -> list[str]:
    """The names of demonstrations in a mask: fixed-width bytes, as robomimic stores them."""
    return [name.decode("utf-8", "replace") for name in file.read_names(place)]


def _environment(file: Hdf5File) -> dict[str, Any]:
    text = file.attributes("data").get("env_args", "{}") if file.has("data") else "{}"
    try:
        found = json.loads(str(text))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
