"""Single ``.npy`` arrays: headers read by a strict pattern, never evaluated, never unpickled."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

import numpy as np

from teamvla.data.schema import storable
from teamvla.data.zipcontainer import MAX_BYTES, MemberStream, refuse

_MAX_DIMS, _MAX_HEADER = 8, 4096
_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[a-zA-Z?]\d{0,6})', 'fortran_order': (False|True), "
    rb"'shape': \(((?:\d{1,12}, ?)*(?:\d{1,12},?)?)\), ?\} *\n?"
)
_LAST_CODE_POINT, _SURROGATES = 0x10FFFF, (0xD800, 0xDFFF)


@dataclass(frozen=True)
class ArrayInfo:
    """Dtype, shape and memory order of an array that was not read."""

    dtype: np.dtype
    shape: tuple[int, ...]
    fortran: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def npy_pieces(array: np.ndarray) -> tuple[bytes, memoryview]:
    """Header and content of the ``.npy`` file of a C-ordered array."""
    text = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape}, }}"
    padding = -(len(_MAGIC) + 4 + len(text) + 1) % 64
    header = text.encode("ascii") + b" " * padding + b"\n"
    start = _MAGIC + b"\x01\x00" + struct.pack("<H", len(header)) + header
    return start, array.reshape(-1).view(np.uint8).data


def read_header(stream: MemberStream, size: int, where: str) -> ArrayInfo:
    """Dtype and shape of the array whose ``size`` bytes begin here.

    Raises:
        EpisodeError: it is not an array, its header is malformed or does not fit
            ``size``, or its dtype is not one that episodes use.
    """
    start = stream.read(min(10, size))
    if len(start) < 10 or start[:6] != _MAGIC or start[6] not in (1, 2, 3) or start[7]:
        raise refuse(where, "a .npy array", "other bytes", "E221")
    length, extra = struct.unpack("<H", start[8:])[0], 0
    if start[6] > 1:
        length, extra = struct.unpack("<I", start[8:] + stream.read(2))[0], 2
    content = size - 10 - extra - length
    if length > _MAX_HEADER or content < 0:
        raise refuse(where, f"a header up to {_MAX_HEADER} bytes", str(length), "E222")
    info = _parse(stream.read(length), where)
    if info.nbytes != content:
        raise refuse(where, f"{info.nbytes} bytes of content", f"room for {content}", "E225")
    return info


def read_array(stream: MemberStream, size: int, where: str) -> np.ndarray:
    """The whole array, its checksum and its values' bit patterns checked."""
    info = read_header(stream, size, where)
    content = np.empty(info.nbytes, np.uint8)
    stream.read_into(content.data)
    stream.finish()
    flat = content.view(info.dtype)
    if not _values_are_legal(flat):
        raise refuse(where, f"values of {info.dtype}", "other bit patterns", "E226")
    return flat.reshape(info.shape, order="F" if info.fortran else "C")


def _parse(header: bytes, where: str) -> ArrayInfo:
    found = _HEADER.fullmatch(header)
    if found is None:
        raise refuse(where, "a canonical .npy header", "another text", "E222")
    descr = found[1].decode("ascii")
    if "O" in descr:
        got = "pickled objects: it is an older or foreign file, and teamvla never executes those"
        raise refuse(where, "numbers or text", got, "E223")
    shape = tuple(int(size) for size in found[3].replace(b" ", b"").split(b",") if size)
    # Empty dimensions count as one: their product must not hide what the others claim.
    if len(shape) > _MAX_DIMS or math.prod(max(1, n) for n in shape) > MAX_BYTES:
        raise refuse(where, f"at most {MAX_BYTES} values", f"shape {shape}", "E225")
    return ArrayInfo(_dtype(descr, where), shape, found[2] == b"True")


def _dtype(descr: str, where: str) -> np.dtype:
    try:
        dtype = np.dtype(descr)
    except TypeError:
        dtype = np.dtype(object)
    if not storable(dtype):
        raise refuse(where, "a dtype of numbers or text", descr, "E224")
    return dtype


def _values_are_legal(flat: np.ndarray) -> bool:
    """NumPy trusts booleans to be 0 or 1 and texts to be code points; a file may lie."""
    if flat.size == 0:
        return True
    if flat.dtype.kind == "b":
        return bool(flat.view(np.uint8).max() <= 1)
    if flat.dtype.kind != "U":
        return True
    points = flat.view(np.dtype(np.uint32).newbyteorder(flat.dtype.byteorder))
    low, high = _SURROGATES
    return bool(points.max() <= _LAST_CODE_POINT and not ((points >= low) & (points <= high)).any())
