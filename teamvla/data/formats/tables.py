"""Parquet: columns as NumPy arrays and back, with what LeRobot's readers look for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.errors import EpisodeError, MissingDependencyError


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


def rows_of(path: Path, wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
    """The rows of a small table; EpisodeError if it is missing or damaged."""
    parquet, arrow = import_parquet(), import_arrow()
    try:
        names = [name for name in parquet.read_schema(path).names if wanted(name)]
        rows: list[dict[str, Any]] = parquet.read_table(path, columns=names).to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise EpisodeError(str(path), "a parquet table", str(error), code="E610") from None
    return rows


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
