"""The packed cache: arrays in which a step is a row and an action chunk is a plain slice.

    images.npy    uint8   [rows, V, H, W, C]   the cameras of a step side by side
    state.npy     float32 [rows, S]
    language.npy  int32   [rows]               number of the instruction
    actions.npy   float32 [rows + episodes * (max_chunk - 1), A]
    instructions.json

Behind each episode ``actions`` repeats the last action ``max_chunk - 1`` times, so that
``actions[first_action + t :][:chunk]`` never reaches into the next episode.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from teamvla.data.manifest import map_array
from teamvla.data.packing import Packed
from teamvla.errors import InputError
from teamvla.files import naming, read_json, write_json


class ArrayFile:
    """A ``.npy`` file of a known number of rows, written block by block.

    Plain writes, not a memory map: on a full disk a write fails, a mapped page kills
    the process.
    """

    def __init__(self, path: Path, rows: int) -> None:
        self.path, self.rows, self._written = path, rows, 0
        self._file = path.open("wb")

    def append(self, block: np.ndarray) -> None:
        """Add rows; the first block decides dtype and shape of a row."""
        block = np.ascontiguousarray(block)
        with naming(self.path):
            if not self._written:
                descr = np.lib.format.dtype_to_descr(block.dtype)
                shape = (self.rows, *block.shape[1:])
                header = {"descr": descr, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(self._file, header)
            self._file.write(block.data)
        self._written += len(block)

    def close(self) -> None:
        """Make the file durable."""
        assert self._written == self.rows, f"{self.path}: {self._written} of {self.rows} rows"
        with naming(self.path), self._file as file:
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *problem: object) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(OSError):  # what went wrong first is what matters
                self._file.close()


class CacheWriter:
    """Writes the cache of ``episodes`` episodes and ``rows`` steps, in order."""

    def __init__(self, folder: Path, rows: int, episodes: int, max_chunk: int) -> None:
        self.folder, self._padding = folder, max_chunk - 1
        self._numbers: dict[str, int] = {}
        folder.mkdir(parents=True)
        self._files = ExitStack()
        padded = rows + episodes * self._padding
        sizes = {"images": rows, "state": rows, "language": rows, "actions": padded}
        self._arrays = {
            name: self._files.enter_context(ArrayFile(folder / f"{name}.npy", size))
            for name, size in sizes.items()
        }

    def append(self, packed: Packed) -> None:
        """Add one episode."""
        numbers = [self._numbers.setdefault(t, len(self._numbers)) for t in packed.instructions]
        padded = np.pad(packed.actions, ((0, self._padding), (0, 0)), mode="edge")
        self._arrays["images"].append(packed.images)
        self._arrays["state"].append(packed.state)
        self._arrays["language"].append(np.array(numbers, np.int32))
        self._arrays["actions"].append(padded)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._files.__exit__(kind, error, trace)
        if kind is None:
            write_json(self.folder / "instructions.json", list(self._numbers))


class Cache:
    """The arrays, mapped read-only; ``images`` and the rest as the module's docstring says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = map_array(folder / "images.npy")
        self.state = map_array(folder / "state.npy")
        self.language = map_array(folder / "language.npy")
        self.actions = map_array(folder / "actions.npy")
        self.instructions: list[str] = read_json(folder / "instructions.json")

    @property
    def nbytes(self) -> int:
        arrays = (self.images, self.state, self.language, self.actions)
        return sum(array.nbytes for array in arrays)

    def packed(self, first_row: int, first_action: int, num_steps: int) -> Packed:
        """One episode, as it was put in."""
        steps = slice(first_row, first_row + num_steps)
        numbers = self.language[steps]
        if not 0 <= numbers.min() <= numbers.max() < len(self.instructions):
            raise InputError(
                str(self.folder), f"numbers below {len(self.instructions)} in language.npy",
                "others", "It is damaged; build it anew with `teamvla index --rebuild`.",
            )  # fmt: skip
        return Packed(
            self.images[steps],
            self.state[steps],
            self.actions[first_action : first_action + num_steps],
            [self.instructions[number] for number in numbers.tolist()],
        )
