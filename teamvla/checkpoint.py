"""The checkpoint container: one safetensors file, readable with or without torch.

Layout: tensors named ``model.*``, ``ema.*``, ``optim.*``, ``rng.*`` and ``probe.*``; in the
header ``__metadata__["teamvla"]`` is a JSON object (configuration, contract,
statistics, training state, provenance) and ``__metadata__["sha256"]`` is the digest
of the whole file with that digest's own 64 characters read as zeros.

Reading the header needs the standard library alone, and no more of the file than
the header: its cost does not grow with the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from teamvla.errors import CheckpointError, InputError
from teamvla.files import canonical_json, check_file, publish

if TYPE_CHECKING:
    import numpy as np

FORMAT_VERSION = 1
_MAX_HEADER = 64 << 20
_ZEROS = "0" * 64
_KEY = b'"sha256":"'
_ITEM_SIZE = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint: its dtype as safetensors names it, shape and size."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself without its tensors being read."""

    path: Path
    meta: dict[str, Any]
    tensors: tuple[TensorInfo, ...]
    sha256: str
    file_bytes: int


def write_checkpoint(
    path: str | Path, meta: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> Path:
    """Publish a checkpoint atomically, replacing an older one of the same name.

    Args:
        path: ``epoch_0007.ckpt``, ``last.ckpt``, ``best.ckpt``, ...
        meta: JSON-able content of the header (NaN is refused).
        tensors: name -> array; the part before the first dot is its section.
    """
    import numpy as np
    from safetensors.numpy import save

    # In the order in which it stands: that of arms and signals means something.
    text = json.dumps(
        {"format_version": FORMAT_VERSION, **meta},
        separators=(",", ":"), allow_nan=False, ensure_ascii=False,
    )  # fmt: skip
    arrays = {name: np.asarray(array, order="C") for name, array in sorted(tensors.items())}
    content = _in_fixed_order(save(arrays, {"teamvla": text, "sha256": _ZEROS}))
    at = _digest_offset(bytes(content[: 8 + _header_length(content)]), Path(path))
    content[at : at + 64] = hashlib.sha256(content).hexdigest().encode("ascii")
    return publish(path, lambda file: file.write(content), replace=True)


def _in_fixed_order(saved: bytes) -> bytearray:
    # safetensors writes its metadata in an order that changes from call to call.
    start = 8 + _header_length(saved)
    header = canonical_json(json.loads(saved[8:start]))
    header += b" " * (-len(header) % 8)
    content = bytearray(struct.pack("<Q", len(header)) + header)
    content += memoryview(saved)[start:]
    return content


def read_header(path: str | Path) -> Header:
    """Read and check the header alone.

    Raises:
        InputError: there is no such file.
        CheckpointError: it is not a teamvla checkpoint, is cut short, or lies about its layout.
    """
    path = Path(path)
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        raw = _read_header_bytes(file, path, size)
    try:
        header = json.loads(raw[8:].decode("utf-8"))
        described = header.pop("__metadata__")
        meta = json.loads(described["teamvla"])
        digest = str(described["sha256"])
        tensors = tuple(_tensor_info(name, entry) for name, entry in sorted(header.items()))
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _refuse(path, "a teamvla checkpoint header", "something else", "C102") from None
    if not isinstance(meta, dict) or meta.get("format_version") != FORMAT_VERSION:
        got = meta.get("format_version") if isinstance(meta, dict) else None
        raise _refuse(path, f"format version {FORMAT_VERSION}", f"{got!r}", "C103")
    if len(raw) + end != size:
        raise _refuse(path, f"{len(raw) + end} bytes", f"{size}: it is cut short or padded", "C104")
    return Header(path, meta, tensors, digest, size)


def verify_digest(path: str | Path) -> Header:
    """Check the digest over the whole file; CheckpointError if a single bit differs."""
    header = read_header(path)
    with _open(Path(path)) as file:
        raw = bytearray(_read_header_bytes(file, header.path, header.file_bytes))
        at = _digest_offset(bytes(raw), header.path)
        raw[at : at + 64] = _ZEROS.encode("ascii")
        digest = hashlib.sha256(raw)
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != header.sha256:
        raise _refuse(
            header.path, f"sha256 {header.sha256[:12]}...", f"{digest.hexdigest()[:12]}...", "C105"
        )
    return header


def read_checkpoint(path: str | Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Verify a checkpoint and read all of it, as NumPy arrays."""
    from safetensors.numpy import load_file

    header = verify_digest(path)
    try:
        return header, load_file(path)
    except Exception as error:  # safetensors raises its own type, outside any hierarchy
        raise _refuse(header.path, "readable tensors", str(error), "C106") from None


def _open(path: Path) -> BinaryIO:
    best = path / "checkpoints" / "best.ckpt"
    if best.is_file():
        got = "the folder of a run"
        raise InputError(str(path), "a checkpoint file", got, f"Did you mean {best}?")
    try:
        check_file(path, "a checkpoint file")
        return path.open("rb")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(str(path), "a checkpoint file", reason) from None


def _header_length(start: bytes | bytearray) -> int:
    return int(struct.unpack("<Q", bytes(start[:8]))[0])


def _read_header_bytes(file: BinaryIO, path: Path, size: int) -> bytes:
    start = file.read(8)
    length = _header_length(start) if len(start) == 8 else 0
    if not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise _refuse(path, "a safetensors header", f"a file of {size} bytes without one", "C101")
    return start + file.read(length)


def _digest_offset(header: bytes, path: Path) -> int:
    at = header.find(_KEY)
    if at < 0 or header.count(_KEY) != 1:
        raise _refuse(path, "one digest in the header", f"{header.count(_KEY)}", "C107")
    return at + len(_KEY)


def _tensor_info(name: str, entry: dict[str, Any]) -> TensorInfo:
    begin, end = entry["data_offsets"]
    shape = tuple(int(n) for n in entry["shape"])
    info = TensorInfo(name, str(entry["dtype"]), shape, end - begin)
    if info.numel * _ITEM_SIZE[info.dtype] != info.nbytes or begin < 0:
        raise ValueError(name)
    return info


def _refuse(path: Path, expected: str, got: str, code: str) -> CheckpointError:
    mend = "Take another copy of it, or train again"
    return CheckpointError(str(path), expected, got, f"{mend}.", code=code)
