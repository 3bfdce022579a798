"""HDF5 files of strangers: what is read is bounded, and never leads out of the file.

Links (soft and external), virtual data sets, external storage, objects and references
are refused. Every data set's size is known, and limited, before it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.data.formats.joined import Joined, kept_meta
from teamvla.data.formats.mapping import MappingConfig
from teamvla.data.formats.output import filling
from teamvla.data.npz import MAX_META_BYTES, Episode
from teamvla.data.ragged import OFFSETS, Ragged
from teamvla.data.zipcontainer import MAX_BYTES
from teamvla.errors import EpisodeError, InputError, MissingDependencyError
from teamvla.files import canonical_json

OWN = "teamvla"
_MOST_ENTRIES = 10_000
_DEEPEST = 8


def import_h5py() -> Any:
    """h5py; MissingDependencyError without the extra."""
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError.for_extra("h5py", "hdf5") from None
    return h5py


@contextmanager
def opened(path: Path) -> Iterator[Hdf5File]:
    """An HDF5 file for reading; whatever the library stumbles over names the file."""
    h5py = import_h5py()
    if not path.is_file():
        raise InputError(str(path), "an HDF5 file", "nothing there")
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield Hdf5File(path, file)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        got = str(error).partition("\n")[0]
        raise EpisodeError(str(path), "a sound HDF5 file", got, code="E610") from None


@contextmanager
def created(path: Path) -> Iterator[Any]:
    """A new HDF5 file, as h5py has it; OSError at the end if the disk did not take it all."""
    with filling(path) as output, import_h5py().File(output, "w", track_order=False) as file:
        yield file


class Hdf5File:
    """The data sets of an open file by their paths, links refused."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._file, self._h5py = path, file, import_h5py()

    def names(self, below: str = "") -> list[str]:
        """Names in a group, sorted; empty if there is none."""
        if below and not self.has(below):
            return []
        return sorted(self._group(below))

    def has(self, name: str) -> bool:
        """Whether there is an entry of this path."""
        group, places = self._file, name.strip("/").split("/")
        for depth, part in enumerate(places):
            if not isinstance(group, self._h5py.Group) or part not in group:
                return False
            self._refuse_link(group, part, "/".join(places[: depth + 1]))
            group = group[part]
        return True

    def data_sets(self, below: str = "") -> list[str]:
        """Paths of all data sets below a group."""
        return list(self._walk(below, 0))

    def attributes(self, name: str = "") -> dict[str, Any]:
        """Texts, numbers and flags among the attributes of an entry."""
        entry = self._entry(name) if name else self._file
        found = {}
        for key in list(entry.attrs)[:_MOST_ENTRIES]:
            value = entry.attrs[key]
            value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            value = value.item() if isinstance(value, np.generic) else value
            if isinstance(value, str | int | float | bool):
                found[str(key)] = value
        return found

    def read(self, name: str, limit: int = MAX_BYTES) -> np.ndarray:
        """A data set of numbers as an array."""
        entry = self._entry(name)
        where = f"{self.path}: {name}"
        if not isinstance(entry, self._h5py.Dataset):
            raise EpisodeError(where, "a data set", "a group", code="E604")
        if entry.is_virtual or entry.external:
            got = "one that lies in other files"
            raise EpisodeError(where, "a data set inside the file", got, code="E607")
        if entry.dtype.kind not in "fiub" or entry.dtype.itemsize > 8:
            raise EpisodeError(where, "numbers", str(entry.dtype), code="E608")
        if entry.size * entry.dtype.itemsize > limit:
            got = f"{entry.size * entry.dtype.itemsize}"
            raise EpisodeError(where, f"at most {limit} bytes", got, code="E609")
        return np.asarray(entry[()])

    def read_names(self, name: str) -> list[bytes]:
        """A data set of fixed-width bytes as a list."""
        entry = self._entry(name)
        if not isinstance(entry, self._h5py.Dataset) or entry.is_virtual or entry.external:
            where = f"{self.path}: {name}"
            raise EpisodeError(where, "a data set inside the file", "something else", code="E607")
        if entry.dtype.kind != "S" or entry.size * entry.dtype.itemsize > MAX_META_BYTES:
            got = str(entry.dtype)
            raise EpisodeError(f"{self.path}: {name}", "short texts", got, code="E608")
        return [bytes(value) for value in np.asarray(entry[()]).ravel()]

    def read_text(self, name: str) -> str:
        """A data set of bytes as text."""
        content = self.read(name, MAX_META_BYTES)
        return content.astype(np.uint8).tobytes().decode("utf-8")

    def _walk(self, below: str, depth: int) -> Iterator[str]:
        if depth > _DEEPEST:
            raise EpisodeError(str(self.path), f"at most {_DEEPEST} levels", "more", code="E609")
        group = self._group(below)
        if len(group) > _MOST_ENTRIES:
            expected = f"at most {_MOST_ENTRIES} entries a group"
            raise EpisodeError(str(self.path), expected, str(len(group)), code="E609")
        for name in sorted(group):
            place = f"{below}/{name}".strip("/")
            if isinstance(self._entry(place), self._h5py.Group):
                yield from self._walk(place, depth + 1)
            else:
                yield place

    def _group(self, name: str) -> Any:
        entry = self._entry(name) if name else self._file
        if not isinstance(entry, self._h5py.Group):
            raise EpisodeError(f"{self.path}: {name}", "a group", "a data set", code="E604")
        return entry

    def _entry(self, name: str) -> Any:
        if not self.has(name):
            known = ", ".join(self.names())
            got, mend = "none", f"There are: {known}."
            raise EpisodeError(str(self.path), f"an entry {name!r}", got, mend, code="E604")
        return self._file[name]

    def _refuse_link(self, group: Any, part: str, place: str) -> None:
        link = group.get(part, getlink=True)
        if not isinstance(link, self._h5py.HardLink):
            got = type(link).__name__
            raise EpisodeError(f"{self.path}: {place}", "no links", got, code="E607")


# What other readers do not look at: the group ``teamvla``.


def write_own(group: Any, episode: Episode, joined: Joined, mapping: MappingConfig) -> None:
    """Put the metadata, the mapping and the fields without a place into ``group``."""
    own = group.create_group(OWN)
    said = {"meta": kept_meta(episode), "mapping": mapping.model_dump(mode="json")}
    for name, value in said.items():
        own[name] = np.frombuffer(canonical_json(value), np.uint8)
    texts = {}
    for name, values in joined.rest.items():
        if isinstance(values, Ragged):
            _write_ragged(own, name, values)
            continue
        stored = as_stored(values)
        if stored is None:
            continue
        if values.dtype.kind == "U":
            texts[name] = values.dtype.str
        own.create_dataset(f"fields/{name}", data=stored, track_times=False)
    varying = episode.fields["instruction"]
    if len(set(varying.tolist())) > 1:
        own.create_dataset("fields/instruction", data=as_stored(varying), track_times=False)
        texts["instruction"] = varying.dtype.str
    own["texts"] = np.frombuffer(canonical_json(texts), np.uint8)


def _write_ragged(own: Any, name: str, values: Ragged) -> None:
    own.create_dataset(f"fields/{name}", data=values.values, track_times=False)
    own.create_dataset(f"fields/{name}{OFFSETS}", data=values.offsets, track_times=False)


def has_place(values: Any) -> bool:
    """Whether :func:`write_own` can put a field into a file."""
    return isinstance(values, Ragged) or as_stored(values) is not None


def as_stored(values: Any) -> np.ndarray | None:
    """Numbers as they are, texts as their code points; None for what HDF5 does not hold so."""
    if not isinstance(values, np.ndarray):
        return None
    if values.dtype.kind == "U":
        wide = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"))
        return wide.view("<u4").reshape(len(values), -1)
    return values if values.dtype.kind in "fiub" else None


def read_own(
    file: Hdf5File, below: str
) -> tuple[dict[str, Any], MappingConfig, dict[str, Any]] | None:
    """Metadata, mapping and fields that :func:`write_own` left; None if it did not."""
    own = f"{below}/{OWN}".strip("/")
    if not file.has(f"{own}/mapping"):
        return None
    meta, mapping, texts = (
        json.loads(file.read_text(f"{own}/{name}")) for name in ("meta", "mapping", "texts")
    )
    fields: dict[str, Any] = {}
    for name in file.names(f"{own}/fields"):
        values = file.read(f"{own}/fields/{name}")
        if name in texts:
            values = np.ascontiguousarray(values).view(f"<U{values.shape[1]}")[:, 0]
        fields[name] = values
    for name in [name for name in fields if name.endswith(OFFSETS)]:
        offsets, field = fields.pop(name), name.removesuffix(OFFSETS)
        fields[field] = _ragged(f"{file.path}: {own}/fields/{field}", fields[field], offsets)
    return meta, MappingConfig.model_validate(mapping), fields


def _ragged(where: str, values: np.ndarray, offsets: np.ndarray) -> Ragged:
    """Steps of different lengths; EpisodeError unless the offsets cut ``values`` into them."""
    rising = offsets.ndim == 1 and len(offsets) > 1 and bool((np.diff(offsets) >= 0).all())
    if not rising or offsets.dtype != np.int64 or offsets[0] != 0 or offsets[-1] != len(values):
        raise EpisodeError(where, "offsets of its steps", "others", code="E610")
    return Ragged(values, offsets)
