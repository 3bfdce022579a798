"""LeRobot data sets, version 3.0: parquet tables, and pictures as mp4 or PNG.

The layout is the one that lerobot 0.4 writes. What LeRobot has no place for stands in
two files that it does not look at: ``meta/teamvla.json`` (the mapping, with the contract)
and ``meta/teamvla-episodes.jsonl`` (the metadata of each episode). Fields beside state,
action, pictures and success are columns named ``teamvla.FIELD``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.data.formats.base import ConvertConfig, Source, digest_of, digest_of_folder
from teamvla.data.formats.folders import FolderTarget
from teamvla.data.formats.joined import Joined, Places, describe_vectors, join
from teamvla.data.formats.mapped import Foreign, to_episode
from teamvla.data.formats.mapping import MappingConfig, slug
from teamvla.data.formats.pictures import decode_pictures
from teamvla.data.formats.report import Report
from teamvla.data.formats.tables import ParquetRows, import_arrow, import_parquet, to_numpy
from teamvla.data.formats.video import read_frames
from teamvla.data.npz import MAX_META_BYTES, Episode
from teamvla.data.zipcontainer import MAX_BYTES
from teamvla.errors import ConfigError, EpisodeError, InputError
from teamvla.files import read_json

INFO = "meta/info.json"
MAPPING = "meta/teamvla.json"
EPISODES_META = "meta/teamvla-episodes.jsonl"
PLACES = Places("observation.state", "action")
SUCCESS = "next.success"
CAMERA = "observation.images."
OWN = "teamvla."
_MOST_META = 256 << 20
_BOOKKEEPING = frozenset(("timestamp", "frame_index", "episode_index", "index", "task_index"))


class LeRobotFormat(FolderTarget):
    """A folder with ``meta/info.json``."""

    def recognises(self, path: Path) -> bool:
        return (path / INFO).is_file()

    def open(self, path: Path, config: ConvertConfig) -> Source:
        return LeRobotSource(path, config)

    def describe(self, episode: Episode, config: ConvertConfig, report: Report) -> None:
        joined = join(episode)
        describe_vectors(joined, PLACES, report)
        lossy = f"mp4 by {config.codec}, crf {config.crf}, is lossy"
        for name in joined.pictures:
            into = CAMERA + name
            video = config.images == "video"
            report.note("changed" if video else "carried", name, into, lossy if video else "")
        for name, values in joined.rest.items():
            if fits(values):
                report.note("aside", name, OWN + name, "a column that LeRobot's policies ignore")
            else:
                report.note("lost", name, "", "LeRobot has no columns whose length varies")
        report.note("carried", "success", SUCCESS)
        report.note("carried", "instruction", "tasks")
        for key in ("task", "episode_id", "contract", "metadata"):
            into = MAPPING if key == "contract" else EPISODES_META
            report.note("aside", key, into, "LeRobot has no place for it")

    def build(self, source: Source, folder: Path, config: ConvertConfig) -> None:
        from teamvla.data.formats.lerobot_writer import write_lerobot

        write_lerobot(source, folder, config)


def fits(values: Any) -> bool:
    """Whether a field can be a column: an array of numbers or texts, one size for all steps."""
    return isinstance(values, np.ndarray) and values.dtype.kind in "fiubU"


def fps_of(joined: Joined) -> float:
    """Rate of the data set; an int where it is one, as LeRobot has it."""
    hz = joined.contract.control_hz
    return int(hz) if hz == int(hz) else hz


class LeRobotSource:
    """An opened LeRobot data set.

    Raises:
        EpisodeError: the metadata are damaged.
        ConfigError: no mapping was given, and none lies beside the data.
    """

    def __init__(self, root: Path, config: ConvertConfig) -> None:
        import_parquet()
        self.root = root
        self._info = self._read_info()
        self._own = config.mapping is None and (root / MAPPING).is_file()
        self._mapping = config.completed(config.mapping or self._stored_mapping())
        self._rows: ParquetRows | None = None

    def names(self) -> list[str]:
        return [f"{row['episode_index']:06d}" for row in self._episodes]

    def digest(self, key: str) -> str:
        return digest_of(self._digest, key)

    def read(self, key: str, report: Report) -> Episode:
        row = next(row for row in self._episodes if row["episode_index"] == int(key))
        with self._sound():
            self._check_room(row)
            columns = self._columns(row)
            self._check_lengths(columns, int(row["length"]))
            meta = self._meta(row, columns)
        unheard = Report() if self._own else report
        foreign = Foreign(
            self.root, columns, float(self._info["fps"]), meta, bookkeeping=_BOOKKEEPING
        )
        episode = to_episode(foreign, self._mapping, unheard)
        if self._own:
            for name in episode.fields:
                report.note("carried", name, name)
        return episode

    @contextmanager
    def _sound(self) -> Iterator[None]:
        """Whatever is missing from the tables, or no table at all, is said of the data set."""
        try:
            yield
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            ArithmeticError,
            import_arrow().ArrowException,
        ) as e:
            got = f"{type(e).__name__}: {str(e).partition(chr(10))[0]}"
            raise EpisodeError(str(self.root), "a sound data set", got, code="E610") from None

    @cached_property
    def _digest(self) -> str:
        return digest_of_folder(self.root)

    @cached_property
    def _episodes(self) -> list[dict[str, Any]]:
        """The rows of the table of episodes, without the statistics."""
        rows: list[dict[str, Any]] = []
        for path in sorted((self.root / "meta/episodes").glob("*/*.parquet")):
            table = ParquetRows(self._inside(path), _MOST_META)
            rows += table.to_list(lambda name: not name.startswith("stats/"))
        if not rows:
            raise EpisodeError(str(self.root), "a table of episodes", "none", code="E610")
        return rows

    @cached_property
    def _instructions(self) -> dict[int, str]:
        """Number of a task -> its text, which parquet holds as the index of a data frame."""
        table = ParquetRows(self._inside(self.root / "meta/tasks.parquet"), _MOST_META)
        found = {}
        for row in table.to_list(lambda name: True):
            texts = [value for value in row.values() if isinstance(value, str)]
            if len(texts) != 1:
                where = str(self.root / "meta/tasks.parquet")
                raise EpisodeError(where, "one text a row", f"{len(texts)}", code="E610")
            found[int(row["task_index"])] = texts[0]
        return found

    @cached_property
    def _metas(self) -> list[dict[str, Any]]:
        path = self._inside(self.root / EPISODES_META, _MOST_META)
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def _read_info(self) -> dict[str, Any]:
        info = read_json(self._inside(self.root / INFO, MAX_META_BYTES))
        where = str(self.root / INFO)
        if not isinstance(info, dict) or not isinstance(info.get("features"), dict):
            raise EpisodeError(where, "an object with features", "something else", code="E610")
        version = str(info.get("codebase_version"))
        if not version.startswith("v3."):
            mend = "Bring it to v3.0 with LeRobot's own convert_dataset_v21_to_v30."
            raise EpisodeError(where, "codebase_version v3.0", version, mend, code="E610")
        if not isinstance(info.get("fps"), int | float) or not info["fps"] > 0:
            raise EpisodeError(where, "fps above 0", repr(info.get("fps")), code="E610")
        return info

    def _stored_mapping(self) -> MappingConfig:
        path = self.root / MAPPING
        if path.is_file():
            content = read_json(self._inside(path, MAX_META_BYTES))
            with self._sound():
                return MappingConfig.model_validate(content["mapping"])
        known = ", ".join(
            f"{name} ({', '.join(_named(feature))})" if _named(feature) else name
            for name, feature in self._info["features"].items()
            if name not in _BOOKKEEPING
        )
        raise ConfigError(
            str(self.root),
            "a mapping: which columns are which arm's joint positions and targets",
            "none beside the data",
            f"Give one with --mapping FILE (docs/your_robot.md). There are: {known}.",
            code="E606",
        )

    def _columns(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        table = self._data(row)
        columns: dict[str, np.ndarray] = {}
        for name in table.column_names:
            kind = self._info["features"].get(name, {}).get("dtype")
            columns[name] = (
                self._pictures(table[name], name) if kind == "image" else to_numpy(table[name])
            )
        for name, feature in self._info["features"].items():
            if feature.get("dtype") == "video":
                columns[name] = self._video(row, name)
        texts = self._instructions
        columns["instruction"] = np.array([texts[int(t)] for t in columns["task_index"]])
        return columns

    def _data(self, row: dict[str, Any]) -> Any:
        path = self._place(
            self._info["data_path"],
            chunk_index=int(row["data/chunk_index"]),
            file_index=int(row["data/file_index"]),
        )
        if self._rows is None or self._rows.path != path:
            self._rows = ParquetRows(path)
        return self._rows.of_episode(int(row["episode_index"]))

    def _place(self, template: str, **values: Any) -> Path:
        """A path as ``info.json`` spells it. Not by str.format, which can be told to do more."""

        def filled(match: re.Match[str]) -> str:
            width = int(match[2] or 0)
            return str(values[match[1]]).zfill(width)

        path = self.root / re.sub(r"\{(\w+)(?::0?(\d)d)?\}", filled, str(template))
        return self._inside(path)

    def _inside(self, path: Path, limit: int | None = None) -> Path:
        """``path``, if it is a file inside the data set, links followed, and not too large."""
        if not _is_below(path, self.root):
            mend = "Copy the data with what their links lead to (cp -rL), if you trust them."
            expected = "a file inside the data set"
            raise EpisodeError(str(path), expected, "a way out of it", mend, code="E611")
        if not path.is_file():
            raise InputError(str(path), "a file of the data set", "nothing there")
        if limit is not None and path.stat().st_size > limit:
            got = str(path.stat().st_size)
            raise EpisodeError(str(path), f"at most {limit} bytes", got, code="E609")
        return path

    def _check_room(self, row: dict[str, Any]) -> None:
        """Refuse an episode whose pictures cannot be held, before any of it is read."""
        length = int(row["length"])
        if length < 1:
            raise EpisodeError(str(self.root), "episodes with steps", f"{length}", code="E610")
        shapes = [
            feature["shape"]
            for feature in self._info["features"].values()
            if feature.get("dtype") in ("video", "image")
        ]
        size = length * sum(math.prod(int(n) for n in shape) for shape in shapes)
        if size > MAX_BYTES:
            where = f"{self.root}: episode {row['episode_index']}"
            raise EpisodeError(where, f"at most {MAX_BYTES} bytes", str(size), code="E609")

    def _video(self, row: dict[str, Any], name: str) -> np.ndarray:
        path = self._place(
            self._info["video_path"],
            video_key=name,
            chunk_index=int(row[f"videos/{name}/chunk_index"]),
            file_index=int(row[f"videos/{name}/file_index"]),
        )
        first, fps = float(row[f"videos/{name}/from_timestamp"]), float(self._info["fps"])
        return read_frames(path, first, int(row["length"]), fps, MAX_BYTES)

    def _pictures(self, column: Any, name: str) -> np.ndarray:
        where = f"{self.root}: {name}"

        def contents() -> Iterator[bytes]:
            for cell in column.to_pylist():
                content = cell.get("bytes") if isinstance(cell, dict) else None
                if content is None:
                    raise EpisodeError(where, "pictures inside the table", "a path", code="E611")
                yield content

        return decode_pictures(contents(), ("PNG", "JPEG"), where, MAX_BYTES)

    def _check_lengths(self, columns: dict[str, np.ndarray], length: int) -> None:
        for name, values in columns.items():
            if len(values) != length:
                got = f"{len(values)}"
                where = f"{self.root}: {name}"
                raise EpisodeError(where, f"{length} rows", got, code="E610")

    def _meta(self, row: dict[str, Any], columns: dict[str, np.ndarray]) -> dict[str, Any]:
        if self._own and row["episode_index"] < len(self._metas):
            return dict(self._metas[row["episode_index"]])
        instruction = str(columns["instruction"][0])
        number = f"episode-{row['episode_index']:06d}"
        return {"task": slug(instruction), "episode_id": number, "instruction": instruction}


def _is_below(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links that lead to themselves
        return False


def _named(feature: dict[str, Any]) -> list[str]:
    names = feature.get("names")
    if isinstance(names, dict):
        names = next((value for value in names.values() if isinstance(value, list)), None)
    return [str(name) for name in names] if isinstance(names, list) else []
