"""Parquet: columns as NumPy arrays and back, with what LeRobot's readers look for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.data.zipcontainer import MAX_BYTES
from teamvla.errors import EpisodeError, MissingDependencyError

MAX_TABLE_BYTES = MAX_BYTES
_BATCH_BYTES, _BATCH_ROWS = 256 << 20, 4096
#: bytes of a decoded value; those of other types have no fixed size
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


def import_arrow() -> Any:
    """pyarrow; MissingDependencyError without the extra."""
    try:
        import pyarrow
    except ImportError:
        raise MissingDependencyError.for_extra("pyarrow", "lerobot") from None
    return pyarrow


def import_parquet() -> Any:
    """pyarrow's parquet module; MissingDependencyError without the extra."""
    import_arrow()
    import pyarrow.parquet

    return pyarrow.parquet


class ParquetRows:
    """The rows of one parquet file, a row group and a few rows at a time.

    What a group takes when it is decoded is bounded by the file's own figures before it
    is read, and counted while it is. (Encoded runs make a few bytes a million rows.)

    Raises:
        EpisodeError: the file is missing, damaged or too large.
    """

    def __init__(self, path: Path, limit: int = MAX_TABLE_BYTES) -> None:
        self.path, self._limit = path, limit
        parquet = import_parquet()
        with self._sound():
            self._file = parquet.ParquetFile(path, pre_buffer=False)
        self.names: list[str] = self._file.schema_arrow.names
        self._groups = [self._file.metadata.row_group(i) for i in range(self._file.num_row_groups)]

    @cached_property
    def _episodes(self) -> list[set[int]]:
        """For each row group the episodes that it has rows of."""
        found = []
        for number in range(len(self._groups)):
            batches = self._batches(number, ["episode_index"])
            found.append({int(e) for b in batches for e in np.unique(_plain(b, "episode_index"))})
        return found

    def of_episode(self, episode: int) -> Any:
        """The table of the rows whose ``episode_index`` is ``episode``."""
        kept = []
        for number, episodes in enumerate(self._episodes):
            if episode in episodes:
                for batch in self._batches(number, self.names):
                    here = np.flatnonzero(_plain(batch, "episode_index") == episode)
                    kept.append(batch.take(import_arrow().array(here)))
                    self._check(sum(batch.nbytes for batch in kept))
        return import_arrow().Table.from_batches(kept, self._file.schema_arrow)

    def to_list(self, wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
        """All rows of a small table, the columns that are wanted."""
        names, rows, size = [name for name in self.names if wanted(name)], [], 0
        for number in range(len(self._groups)):
            for batch in self._batches(number, names):
                size += batch.nbytes
                self._check(size)
                rows += batch.to_pylist()
        return rows

    def _batches(self, group: int, names: list[str]) -> Iterator[Any]:
        rows = self._rows_at_once(group, names)
        with self._sound():
            yield from self._file.iter_batches(
                rows, row_groups=[group], columns=names, use_threads=False
            )

    def _rows_at_once(self, group: int, names: list[str]) -> int:
        """So many that a batch stays small, whatever a value's size is in the end."""
        largest = 1
        for number in range(self._groups[group].num_columns):
            chunk = self._groups[group].column(number)
            if chunk.path_in_schema.partition(".")[0] not in names:
                continue
            self._check(chunk.num_values * _WIDTHS.get(chunk.physical_type, 0))
            self._check(chunk.total_uncompressed_size)
            largest = max(largest, chunk.total_uncompressed_size)
        return int(np.clip(_BATCH_BYTES // largest, 1, _BATCH_ROWS))

    def _check(self, size: int) -> None:
        if size > self._limit:
            expected = f"at most {self._limit} bytes"
            raise EpisodeError(str(self.path), expected, str(size), code="E609")

    @contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except (OSError, import_arrow().ArrowException) as error:
            got = str(error).partition("\n")[0]
            raise EpisodeError(str(self.path), "a parquet table", got, code="E610") from None


def _plain(batch: Any, name: str) -> np.ndarray:
    return np.asarray(batch.column(name).to_numpy(zero_copy_only=False))


def to_numpy(column: Any) -> np.ndarray:
    """A column of numbers, texts or (nested) lists of one size as an array, time first."""
    arrow = import_arrow()
    kind = column.type
    if arrow.types.is_string(kind) or arrow.types.is_large_string(kind):
        return np.array(column.to_pylist(), dtype=np.str_)
    shape = [len(column)]
    values = column.combine_chunks()
    while arrow.types.is_list(values.type) or arrow.types.is_fixed_size_list(values.type):
        before = len(values)
        values = values.flatten()
        if before and len(values) % before:
            raise EpisodeError("column", "lists of one length", "lists that differ", code="E605")
        shape.append(len(values) // max(1, before))
    return np.asarray(values.to_numpy(zero_copy_only=False)).reshape(shape)


def from_numpy(values: np.ndarray) -> Any:
    """An array, time first, as a column: lists of a fixed size for more than one axis."""
    arrow = import_arrow()
    if values.dtype.kind == "U":
        return arrow.array(values.tolist(), arrow.string())
    flat = arrow.array(np.ascontiguousarray(values).reshape(-1))
    if values.ndim == 1:
        return flat
    return arrow.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))


def pandas_index(index: str) -> dict[bytes, bytes]:
    """Schema metadata that let pandas take the text column ``index`` as the index."""
    columns = [
        ("task_index", "task_index", "int64", "int64"),
        (None, index, "unicode", "object"),
    ]
    described = {
        "index_columns": [index],
        "column_indexes": [
            {
                "name": None,
                "field_name": None,
                "pandas_type": "unicode",
                "numpy_type": "object",
                "metadata": {"encoding": "UTF-8"},
            }
        ],
        "columns": [
            {
                "name": name,
                "field_name": field,
                "pandas_type": pandas,
                "numpy_type": numpy,
                "metadata": None,
            }
            for name, field, pandas, numpy in columns
        ],
        "attributes": {},
        "pandas_version": "2.3.3",
    }
    return {b"pandas": json.dumps(described).encode()}


def hugging_face(features: dict[str, dict[str, Any]]) -> dict[bytes, bytes]:
    """Schema metadata that let the ``datasets`` package know pictures and list sizes."""

    def described(feature: dict[str, Any]) -> dict[str, Any]:
        if feature["dtype"] == "image":
            return {"_type": "Image"}
        value = {"dtype": feature["dtype"], "_type": "Value"}
        if feature["shape"] == [1]:
            return value
        return {"feature": value, "length": feature["shape"][0], "_type": "List"}

    known = {name: described(f) for name, f in features.items() if f["dtype"] != "video"}
    return {b"huggingface": json.dumps({"info": {"features": known}}).encode()}
