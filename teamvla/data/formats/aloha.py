"""ALOHA data sets, as ACT records them: one HDF5 file an episode.

``/observations/qpos`` and ``/action`` are float64[T,14]: left arm's 6 joints (rad), its
gripper, the right arm's; ``/observations/images/CAMERA`` is uint8[T,H,W,3], or JPEG
with the attribute ``compress``. A gripper is 0 closed .. 1 open there, and 0 open .. 1
closed here. Without a mapping, left is arm a, right is arm b, 50 Hz.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.data.formats.base import ConvertConfig, Source
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
from teamvla.data.formats.mapping import (
    ArmMapping,
    Column,
    Gripper,
    MappingConfig,
    Passed,
    picture_field,
    slug,
)
from teamvla.data.formats.pictures import decode_pictures
from teamvla.data.formats.report import Report
from teamvla.data.npz import Episode
from teamvla.data.zipcontainer import MAX_BYTES
from teamvla.errors import ConfigError, EpisodeError
from teamvla.files import sha256_file
from teamvla.logs import progress

PLACES = Places("observations/qpos", "action", (1.0, 0.0), (1.0, 0.0))
_IMAGES = "observations/images"
_HZ = 50.0
_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
_CAMERAS = {"cam_left_wrist": "rgb_a", "cam_right_wrist": "rgb_b"}
_BOOKKEEPING = frozenset(("compress_len",))


class AlohaFormat(FolderTarget):
    """``episode_N.hdf5`` files in a folder, or in one folder a task; or one file."""

    def recognises(self, path: Path) -> bool:
        if path.is_file():
            return path.suffix == ".hdf5" and bool(_numbered(path))
        return bool(_files(path))

    def open(self, path: Path, config: ConvertConfig) -> Source:
        return AlohaSource(path, config)

    def describe(self, episode: Episode, config: ConvertConfig, report: Report) -> None:
        joined = join(episode)
        describe_vectors(joined, PLACES, report)
        for name in joined.pictures:
            report.note("carried", name, f"{_IMAGES}/{camera_name(name)}")
        describe_own(joined, report)
        if len(joined.names) != 14:
            why = f"{len(joined.names)} columns: ACT's own scripts expect 14"
            report.note("changed", "size of the vectors", PLACES.state, why)

    def build(self, source: Source, folder: Path, config: ConvertConfig) -> None:
        numbers: dict[str, int] = {}
        with progress("write aloha", len(source.names()), "episode") as bar:
            for key in source.names():
                episode = source.read(key, Report())
                number = numbers.get(episode.task, 0)
                numbers[episode.task] = number + 1
                path = folder / episode.task / f"episode_{number}.hdf5"
                _write(path, episode)
                bar.advance()


def describe_own(joined: Joined, report: Report) -> None:
    """Note what stands in the group ``teamvla`` of an HDF5 file."""
    why = "no place in the format: a group that its readers do not look at"
    for name, values in joined.rest.items():
        if not has_place(values):
            report.note("lost", name, "", "neither numbers nor text")
        else:
            report.note("aside", name, f"{OWN}/fields/{name}", why)
    report.note("aside", "success", f"{OWN}/fields/success", why)
    for what in ("instruction", "task", "episode_id", "contract", "metadata"):
        report.note("aside", what, f"{OWN}/meta", why)


def camera_name(field: str) -> str:
    """Name of a camera in an ALOHA file: ``rgb_a`` is ``cam_left_wrist``."""
    known = {ours: theirs for theirs, ours in _CAMERAS.items()} | {"rgb_top": "cam_high"}
    return known.get(field, f"cam_{field.removeprefix('rgb_')}")


def _numbered(path: Path) -> int | None:
    match = re.fullmatch(r"episode_(\d{1,9})\.hdf5", path.name)
    return int(match[1]) + 1 if match else None


def _files(root: Path) -> list[Path]:
    if root.is_file():
        return [root]
    found = [*root.glob("episode_*.hdf5"), *root.glob("*/episode_*.hdf5")]
    numbered = [path for path in found if _numbered(path)]
    return sorted(numbered, key=lambda path: (path.parent, _numbered(path)))


def _write(path: Path, episode: Episode) -> None:
    joined = join(episode)
    cameras = {name: f"{_IMAGES}/{camera_name(name)}" for name in joined.pictures}
    success = Passed(field="success")
    fields = {
        name: Passed(field=f"{OWN}/{name}")
        for name, values in joined.rest.items()
        if has_place(values)
    }
    # float64, as ACT records it: there 1 - x loses nothing of a float32
    state, actions = joined.state.astype(np.float64), joined.actions.astype(np.float64)
    for column in joined.contract.grippers:
        state[:, column], actions[:, column] = 1 - state[:, column], 1 - actions[:, column]
    with created(path) as file:
        file.attrs["sim"] = True
        file.attrs["compress"] = False
        for name, values in ((PLACES.state, state), (PLACES.actions, actions)):
            file.create_dataset(name, data=values, track_times=False)
        for name, rows in joined.pictures.items():
            file.create_dataset(
                cameras[name], data=rows, chunks=(1, *rows.shape[1:]), track_times=False
            )
        write_own(file, episode, joined, mapping_of(joined, PLACES, cameras, fields, success))
        file[OWN].create_dataset("fields/success", data=episode.fields["success"])


class AlohaSource:
    """Opened ALOHA files."""

    def __init__(self, root: Path, config: ConvertConfig) -> None:
        import_h5py()
        self._config = config
        folder = root.parent if root.is_file() else root
        self._task = slug(folder.resolve().name)
        self._paths = {p.relative_to(folder).with_suffix("").as_posix(): p for p in _files(root)}

    def names(self) -> list[str]:
        return list(self._paths)

    def digest(self, key: str) -> str:
        return sha256_file(self._paths[key])

    def read(self, key: str, report: Report) -> Episode:
        path = self._paths[key]
        with opened(path) as file:
            own = read_own(file, "") if self._config.mapping is None else None
            columns = self._columns(file)
        if own is not None:
            meta, mapping, fields = own
            columns |= {k if k in ("success", "instruction") else f"{OWN}/{k}": v
                        for k, v in fields.items()}  # fmt: skip
            episode = to_episode(Foreign(path, columns, None, meta), mapping, Report())
            for name in episode.fields:
                report.note("carried", name, name)
            return episode
        mapping = self._config.mapping or default_mapping(columns, path)
        mapping = self._config.completed(mapping)
        if mapping.instruction is None:
            mend = "Say it: --set instruction='put the cube into the cup'."
            raise ConfigError(str(path), "a prompt", "none in the files", mend, code="E606")
        meta = {"task": self._task, "episode_id": slug(path.stem), "instruction": ""}
        report.note("added", "instruction", "instruction", "the mapping's")
        if mapping.control_hz is None:
            why = "not in the files: 50, the rate of ALOHA"
            report.note("added", "control rate", "contract.control_hz", why)
        return to_episode(Foreign(path, columns, _HZ, meta, _BOOKKEEPING), mapping, report)

    def _columns(self, file: Hdf5File) -> dict[str, np.ndarray]:
        compressed = bool(file.attributes().get("compress", False))
        columns, room = {}, MAX_BYTES
        for name in file.data_sets():
            if name.startswith(f"{OWN}/"):
                continue
            if compressed and name.startswith(f"{_IMAGES}/"):
                columns[name] = self._decompressed(file, name, room)
            else:
                columns[name] = file.read(name, room)
            room -= columns[name].nbytes
        return columns

    def _decompressed(self, file: Hdf5File, name: str, room: int) -> np.ndarray:
        padded, where = file.read(name, room), f"{file.path}: {name}"
        if padded.ndim != 2:
            got = f"{padded.ndim} axes"
            raise EpisodeError(where, "one row of bytes a picture", got, code="E605")
        pictures = decode_pictures((row.tobytes() for row in padded), ("JPEG",), where, room)
        return pictures if self._config.jpeg_channels == "rgb" else pictures[..., ::-1]


def default_mapping(columns: dict[str, Any], path: Path) -> MappingConfig:
    """Left is a, right is b, 6 joints and a gripper each, whatever cameras there are.

    Raises:
        ConfigError: the vectors are not those of two such arms.
    """
    sizes = {name: columns[name].shape[1:] for name in ("observations/qpos", "action")
             if name in columns}  # fmt: skip
    if sizes != {"observations/qpos": (14,), "action": (14,)}:
        got = ", ".join(f"{name} {list(size)}" for name, size in sizes.items()) or "neither"
        mend = "Say what the columns are with --mapping FILE (docs/your_robot.md)."
        expected = "qpos and action of 14 columns"
        raise ConfigError(str(path), expected, got, mend, code="E606")
    arms = {name: _arm(first) for name, first in (("a", 0), ("b", 7))}
    cameras = {}
    for name in columns:
        if name.startswith(f"{_IMAGES}/"):
            camera = name.rpartition("/")[2]
            ours = _CAMERAS.get(camera) or ("rgb_top" if camera == "cam_high" else None)
            cameras[ours or picture_field(camera)] = name
    return MappingConfig(arms=arms, cameras=cameras)


def _arm(first: int) -> ArmMapping:
    columns, grip = tuple(range(first, first + 6)), first + 6
    return ArmMapping(
        joints=_JOINTS,
        q=Column(field=PLACES.state, columns=columns),
        action=Column(field=PLACES.actions, columns=columns),
        grip=Gripper(field=PLACES.actions, column=grip, open=1, closed=0),
        grip_q=Gripper(field=PLACES.state, column=grip, open=1, closed=0),
    )
