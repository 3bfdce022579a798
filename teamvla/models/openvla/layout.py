"""Weights under the names of a published model, and back, bit by bit.

A layout is a table of names. One name of theirs may stand for several of ours, stacked along
their first dimension, as packed queries, keys and values are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor, nn

from teamvla.config.differences import listed
from teamvla.errors import ConfigError, InputError
from teamvla.files import publish

#: what may stand in a name of a table, and what it stands for
_HOLES = {"n": r"\d+", "w": "weight|bias", "rest": ".+"}
_SHARD_BYTES = 5 * 10**9
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
Weights = Mapping[str, Tensor]
Named = tuple[str, Tensor]


@dataclass(frozen=True)
class Rename:
    """A row of the table; ``{n}``, ``{w}`` and ``{rest}`` stand for numbers, kinds and anything.

    Attributes:
        theirs: the published name.
        ours: the name(s) here.
        unsqueezed: theirs has no first dimension of 1, which ours has.
    """

    theirs: str
    ours: tuple[str, ...]
    unsqueezed: bool = False


class Layout:
    """Names of a published model for the parts of ours.

    Args:
        table: rows; of those that match a name the first counts.
        ignored: their names, as regular expressions, that have nothing here to stand for.
    """

    def __init__(self, table: Iterable[Rename], ignored: Iterable[str] = ()) -> None:
        self._table = list(table)
        self._theirs = [(_pattern(row.theirs), row) for row in self._table]
        self._ours = [
            (_pattern(n), row, at) for row in self._table for at, n in enumerate(row.ours)
        ]
        self._ignored = [re.compile(expression) for expression in ignored]

    def inward(self, theirs: Iterable[Named], where: str) -> Iterator[Named]:
        """Published tensors under our names, one by one.

        Raises:
            ConfigError: a name that is not in the table.
        """
        for name, tensor in theirs:
            if any(expression.match(name) for expression in self._ignored):
                continue
            row, holes = self._row(name, where)
            tensor = tensor.unsqueeze(0) if row.unsqueezed else tensor
            if len(row.ours) > 1 and (tensor.dim() == 0 or tensor.shape[0] % len(row.ours)):
                expected = f"{name} to be {len(row.ours)} stacked tensors"
                raise ConfigError(where, expected, f"shape {list(tensor.shape)}")
            for ours, piece in zip(row.ours, tensor.chunk(len(row.ours)), strict=True):
                yield ours.format_map(holes), piece

    def outward(self, ours: Weights) -> dict[str, Tensor]:
        """Our tensors under the published names; what the table does not name is left out."""
        pieces: dict[str, dict[int, Tensor]] = {}
        for name, tensor in ours.items():
            for pattern, row, at in self._ours:
                if found := pattern.fullmatch(name):
                    theirs = row.theirs.format_map(found.groupdict())
                    tensor = tensor.squeeze(0) if row.unsqueezed else tensor
                    pieces.setdefault(theirs, {})[at] = tensor
                    break
        return {
            name: parts[0] if len(parts) == 1 else torch.cat([parts[at] for at in sorted(parts)])
            for name, parts in pieces.items()
        }

    def fill(self, model: nn.Module, theirs: Iterable[Named], where: str) -> None:
        """Copy published tensors into a model that the table names all tensors of.

        Raises:
            ConfigError: a tensor is missing, is too much or has another shape.
        """
        own, odd = dict(model.state_dict()), list[str]()
        named = {name for name in own if any(p.fullmatch(name) for p, _, _ in self._ours)}
        for name, tensor in self.inward(theirs, where):
            if name not in named:
                odd.append(f"{name}: nothing here has this name")
            elif own[name].shape != tensor.shape:
                odd.append(f"{name}: {list(tensor.shape)} there, {list(own[name].shape)} here")
            else:
                own[name].copy_(tensor)
            named.discard(name)
        odd += [f"{name}: missing there" for name in sorted(named)]
        if odd:
            raise ConfigError(
                f"{where} holds other tensors than the model needs:\n{listed(odd, 5)}"
            )

    def _row(self, name: str, where: str) -> tuple[Rename, dict[str, str]]:
        for pattern, row in self._theirs:
            if found := pattern.fullmatch(name):
                return row, found.groupdict()
        raise ConfigError(where, "tensors of the published layout", f"one called {name!r}")


def _pattern(name: str) -> re.Pattern[str]:
    text = re.escape(name)
    for hole, expression in _HOLES.items():
        text = text.replace(rf"\{{{hole}\}}", f"(?P<{hole}>{expression})")
    return re.compile(text)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a published model.

    Raises:
        InputError: there is no such folder, or no such file in it.
        ConfigError: it holds no JSON object.
    """
    if not folder.is_dir():
        raise InputError(str(folder), "the folder of a published model", "no such folder")
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: there is no such file. ConfigError: it holds something else.
    """
    if not path.is_file():
        raise InputError(str(path), "a file of a published model", "no such file")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(str(path), "JSON", str(error)) from None
    if not isinstance(data, dict):
        raise ConfigError(str(path), "a JSON object", type(data).__name__)
    return cast(dict[str, Any], data)


def read_weights(folder: Path) -> Iterator[Named]:
    """Name and tensor of everything in a folder's safetensors, one after the other.

    Raises:
        InputError: there are none. ConfigError: a shard is damaged, or outside the folder.
    """
    for path in _shards(folder):
        yield from read_safetensors(path)


def read_safetensors(path: Path) -> Iterator[Named]:
    """Name and tensor of everything in one file."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(str(path), "weights of a published model", "no such file")
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ConfigError(str(path), "safetensors", str(error)) from None


def _shards(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if not index.is_file():
        return [folder / _SINGLE]
    table = read_json(index).get("weight_map")
    names = sorted(set(table.values())) if isinstance(table, dict) else []
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise ConfigError(str(index), "a weight_map to files beside it", "something else")
    return [folder / name for name in names]


def write_weights(folder: Path, theirs: Weights, shard_bytes: int = _SHARD_BYTES) -> None:
    """Write tensors as published models have them: one file, or shards and an index.

    Raises:
        FileExistsError: there are some.
    """
    shards: list[dict[str, Tensor]] = [{}]
    for name, tensor in theirs.items():
        if shards[-1] and _size([*shards[-1].values(), tensor]) > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor.detach().cpu().contiguous()
    count = len(shards)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    for name, shard in zip([_SINGLE] if count == 1 else names, shards, strict=True):
        publish(folder / name, partial(_write_shard, shard))
    if count > 1:
        places = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
        index = {"metadata": {"total_size": _size(theirs.values())}, "weight_map": places}
        write_json(folder / _INDEX, index)


def _write_shard(shard: dict[str, Tensor], file: BinaryIO) -> None:
    from safetensors.torch import save

    file.write(save(shard, {"format": "pt"}))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON object; FileExistsError if there is such a file."""
    publish(path, lambda file: file.write(json.dumps(data, indent=2).encode()))


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
