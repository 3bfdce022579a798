"""Writing a LeRobot data set, version 3.0, episode by episode."""

from __future__ import annotations

import io
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.data.formats.base import ConvertConfig, Source
from teamvla.data.formats.joined import Joined, join, kept_meta, mapping_of
from teamvla.data.formats.lerobot import (
    CAMERA,
    EPISODES_META,
    INFO,
    MAPPING,
    OWN,
    PLACES,
    SUCCESS,
    fits,
    fps_of,
)
from teamvla.data.formats.lerobot_statistics import Statistics, episode_statistics
from teamvla.data.formats.mapping import Passed
from teamvla.data.formats.output import Output, filling
from teamvla.data.formats.report import Report
from teamvla.data.formats.tables import (
    from_numpy,
    hugging_face,
    import_arrow,
    import_parquet,
    pandas_index,
)
from teamvla.data.formats.video import VideoWriter, import_av, video_info
from teamvla.data.npz import Episode
from teamvla.errors import SchemaError
from teamvla.files import canonical_json, write_json
from teamvla.logs import progress

_CHUNK = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA, _VIDEO = f"data/{_CHUNK}.parquet", f"videos/{{video_key}}/{_CHUNK}.mp4"
_EPISODES = f"meta/episodes/{_CHUNK}.parquet"
_CHUNK_FILES, _DATA_MB, _VIDEO_MB = 1000, 100, 200
_BOOKKEEPING = {
    "timestamp": "float32", "frame_index": "int64", "episode_index": "int64", "index": "int64",
    "task_index": "int64",
}  # fmt: skip


def write_lerobot(source: Source, folder: Path, config: ConvertConfig) -> None:
    """Write every episode of ``source`` as one data set.

    Raises:
        SchemaError: the episodes differ in contract or fields.
        ConfigError: the encoder does not take the pictures.
    """
    quiet = Report()
    with ExitStack() as open_files, progress("write", len(source.names()), "episode") as bar:
        writer = None
        for key in source.names():
            episode = source.read(key, quiet)
            joined = join(episode)
            if writer is None:
                writer = _Writer(folder, config, episode, joined)
                open_files.callback(writer.close_files)
            writer.add(episode, joined)
            bar.advance()
        if writer is not None:
            writer.finish()


class _Files:
    """Numbers of chunk and file, which go up when a file has reached its size."""

    def __init__(self, limit_mb: float) -> None:
        self._limit, self._number = limit_mb * (1 << 20), 0

    @property
    def numbers(self) -> dict[str, int]:
        chunk, file = divmod(self._number, _CHUNK_FILES)
        return {"chunk_index": chunk, "file_index": file}

    def is_full(self, output: Output) -> bool:
        return output.size >= self._limit

    def advance(self) -> None:
        self._number += 1


class _Table:
    """A parquet table in files of a limited size."""

    def __init__(self, folder: Path, template: str) -> None:
        self._folder, self._template = folder, template
        self._files = _Files(_DATA_MB)
        self._writer: Any = None
        self._output: Output | None = None

    def next_file(self) -> dict[str, int]:
        """The numbers of the file that the next rows go to."""
        if self._output is not None and self._files.is_full(self._output):
            self.close()
            self._files.advance()
        return self._files.numbers

    def add(self, table: Any) -> dict[str, int]:
        """Append rows; the numbers of the file that took them."""
        numbers = self.next_file()
        if self._output is None:
            self._output = Output(self._folder / self._template.format(**numbers))
            parquet = import_parquet()
            self._writer = parquet.ParquetWriter(self._output, table.schema, compression="snappy")
        self._writer.write_table(table)
        self._output.check()
        return numbers

    def close(self) -> None:
        if self._output is not None:
            output, self._output = self._output, None
            self._writer.close()
            output.close()
            output.check()


class _Camera:
    """The mp4 files of one camera."""

    def __init__(
        self, folder: Path, key: str, fps: float, size: tuple[int, int], config: ConvertConfig
    ) -> None:
        self._folder, self._key, self._size, self._config = folder, key, size, config
        self._fps = Fraction(fps).limit_denominator(10_000)
        self._files = _Files(_VIDEO_MB)
        self._video: VideoWriter | None = None

    def add(self, pictures: np.ndarray) -> dict[str, Any]:
        """Append an episode; where and when it stands."""
        if self._video is not None and self._files.is_full(self._video.output):
            self.close()
            self._files.advance()
        if self._video is None:
            path = self._folder / _VIDEO.format(video_key=self._key, **self._files.numbers)
            self._video = VideoWriter(path, self._fps, self._size, self._config)
        first = self._video.num_frames
        self._video.add(pictures)
        times = {
            "from_timestamp": float(first / self._fps),
            "to_timestamp": float(self._video.num_frames / self._fps),
        }
        return {f"videos/{self._key}/{k}": v for k, v in {**self._files.numbers, **times}.items()}

    def close(self) -> None:
        if self._video is not None:
            video, self._video = self._video, None
            video.close()

    def info(self) -> dict[str, Any]:
        """Facts of the first file."""
        first = {"chunk_index": 0, "file_index": 0}
        return video_info(self._folder / _VIDEO.format(video_key=self._key, **first))


class _Writer:
    def __init__(
        self, folder: Path, config: ConvertConfig, episode: Episode, joined: Joined
    ) -> None:
        self._folder, self._config, self._fps = folder, config, fps_of(joined)
        self._digest = joined.contract.digest
        self._robot = joined.contract.embodiment
        self.features = _features(joined, config)
        self._mapping = self._made_mapping(joined)
        self._data, self._episodes = _Table(folder, _DATA), _Table(folder, _EPISODES)
        self._cameras = {}
        if config.images == "video":
            import_av()
            for name, rows in joined.pictures.items():
                size = (rows.shape[1], rows.shape[2])
                self._cameras[name] = _Camera(folder, CAMERA + name, self._fps, size, config)
        self._tasks: dict[str, int] = {}
        self._statistics = Statistics()
        self._num_episodes = self._num_frames = 0
        self._metas = Output(folder / EPISODES_META)

    def _made_mapping(self, joined: Joined) -> dict[str, Any]:
        fields = {
            name: Passed(field=OWN + name, dtype=_stored_dtype(values), shape=values.shape[1:])
            for name, values in joined.rest.items()
            if fits(values)
        }
        cameras = {name: CAMERA + name for name in joined.pictures}
        success = Passed(field=SUCCESS)
        return mapping_of(joined, PLACES, cameras, fields, success).model_dump(mode="json")

    def add(self, episode: Episode, joined: Joined) -> None:
        """Append one episode to every file."""
        if joined.contract.digest != self._digest or self._features_of(joined) != self.features:
            expected = "the contract and the fields of the first episode"
            mend = "Convert data of one contract into one data set."
            raise SchemaError(str(episode.path), expected, "others", mend, code="E614")
        columns = self._columns(episode, joined)
        where = self._data.add(self._table(columns, joined.pictures))
        places = {f"data/{key}": number for key, number in where.items()}
        for name, camera in self._cameras.items():
            places |= camera.add(joined.pictures[name])
        pictures = {CAMERA + name: rows for name, rows in joined.pictures.items()}
        known = {name: rows for name, rows in columns.items() if not name.startswith(OWN)}
        statistics = episode_statistics({**known, **pictures})
        self._statistics.add(statistics)
        self._add_row(episode, places, statistics)
        self._metas.write(canonical_json(kept_meta(episode)) + b"\n")
        self._num_episodes += 1
        self._num_frames += episode.num_steps

    def _features_of(self, joined: Joined) -> dict[str, dict[str, Any]]:
        return _features(joined, self._config)

    def _columns(self, episode: Episode, joined: Joined) -> dict[str, np.ndarray]:
        steps = np.arange(episode.num_steps)
        tasks = [self._task(str(text)) for text in episode.fields["instruction"]]
        own = {OWN + n: _storable(v) for n, v in joined.rest.items() if fits(v)}
        return {
            PLACES.state: joined.state,
            PLACES.actions: joined.actions,
            SUCCESS: episode.fields["success"],
            **own,
            "timestamp": (steps / self._fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(len(steps), self._num_episodes),
            "index": steps + self._num_frames,
            "task_index": np.array(tasks),
        }

    def _task(self, text: str) -> int:
        return self._tasks.setdefault(text, len(self._tasks))

    def _table(self, columns: dict[str, np.ndarray], pictures: dict[str, np.ndarray]) -> Any:
        arrow = import_arrow()
        arrays = {name: from_numpy(values) for name, values in columns.items()}
        if self._config.images == "png":
            for name, rows in pictures.items():
                kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
                cells = [{"bytes": _png(row), "path": f"{n:06d}.png"} for n, row in enumerate(rows)]
                arrays[CAMERA + name] = arrow.array(cells, kind)
        table = arrow.table({n: arrays[n] for n in self.features if n in arrays})
        return table.replace_schema_metadata(hugging_face(self.features))

    def _add_row(
        self, episode: Episode, places: dict[str, Any], statistics: dict[str, dict[str, Any]]
    ) -> None:
        texts = dict.fromkeys(str(text) for text in episode.fields["instruction"])
        row = {
            "episode_index": self._num_episodes,
            "tasks": list(texts),
            "length": episode.num_steps,
            **places,
            "dataset_from_index": self._num_frames,
            "dataset_to_index": self._num_frames + episode.num_steps,
            **{
                f"stats/{n}/{k}": v for n, figures in statistics.items() for k, v in figures.items()
            },
            **{f"meta/episodes/{k}": v for k, v in self._episodes.next_file().items()},
        }
        self._episodes.add(import_arrow().Table.from_pylist([row]))

    def close_files(self) -> None:
        """Close whatever is open, also after an error."""
        with ExitStack() as closing:
            closing.callback(self._metas.check)
            for close in (self._metas.close, self._data.close, self._episodes.close):
                closing.callback(close)
            for camera in self._cameras.values():
                closing.callback(camera.close)

    def finish(self) -> None:
        """Write what describes all episodes."""
        self.close_files()
        for name, camera in self._cameras.items():
            self.features[CAMERA + name]["info"] = camera.info()
        write_json(self._folder / INFO, self._info())
        write_json(self._folder / "meta/stats.json", self._statistics.total())
        write_json(self._folder / MAPPING, {"version": 1, "mapping": self._mapping})
        index = "__index_level_0__"
        table = import_arrow().table({"task_index": [*self._tasks.values()], index: [*self._tasks]})
        table = table.replace_schema_metadata(pandas_index(index))
        with filling(self._folder / "meta/tasks.parquet") as file:
            import_parquet().write_table(table, file)

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": "v3.0",
            "robot_type": self._robot,
            "total_episodes": self._num_episodes,
            "total_frames": self._num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": _CHUNK_FILES,
            "data_files_size_in_mb": _DATA_MB,
            "video_files_size_in_mb": _VIDEO_MB,
            "fps": self._fps,
            "splits": {"train": f"0:{self._num_episodes}"},
            "data_path": _DATA,
            "video_path": _VIDEO if self._cameras else None,
            "features": self.features,
        }


def _features(joined: Joined, config: ConvertConfig) -> dict[str, dict[str, Any]]:
    names = list(joined.names)
    vector = {"dtype": "float32", "shape": [len(names)], "names": names}
    features: dict[str, dict[str, Any]] = {
        PLACES.state: dict(vector),
        PLACES.actions: dict(vector),
    }
    for name, rows in joined.pictures.items():
        features[CAMERA + name] = {
            "dtype": "video" if config.images == "video" else "image",
            "shape": list(rows.shape[1:]),
            "names": ["height", "width", "channels"],
        }
    features[SUCCESS] = {"dtype": "bool", "shape": [1], "names": None}
    for name, values in joined.rest.items():
        if fits(values):
            features[OWN + name] = _feature(_storable(values))
    scalars = {n: {"dtype": d, "shape": [1], "names": None} for n, d in _BOOKKEEPING.items()}
    return {**features, **scalars}


def _feature(values: np.ndarray) -> dict[str, Any]:
    dtype = "string" if values.dtype.kind == "U" else str(values.dtype)
    return {"dtype": dtype, "shape": [int(np.prod(values.shape[1:]))], "names": None}


def _storable(values: np.ndarray) -> np.ndarray:
    """One list a step at most: LeRobot casts deeper ones, which not all readers undo."""
    return values if values.ndim == 1 else values.reshape(len(values), -1)


def _stored_dtype(values: np.ndarray) -> str | None:
    return None if values.dtype.kind == "U" else str(values.dtype)


def _png(picture: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=1)
    return file.getvalue()
