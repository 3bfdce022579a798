"""Single ``.npy`` arrays: headers read by a strict pattern, never evaluated, never unpickled."""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

import numpy as np

from teamvla.data.schema import storable
from teamvla.data.zipcontainer import MAX_BYTES, MemberStream, refuse
from teamvla.errors import EpisodeError

_MAX_DIMS, _MAX_HEADER = 8, 4096
_MAGIC = b"\x93NUMPY"
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[a-zA-Z?]\d{0,6})', 'fortran_order': (False|True), "
    rb"'shape': \(((?:\d{1,12}, ?)*(?:\d{1,12},?)?)\), ?\} *\n?"
)
_BLOCK = 1 << 20
_PICKLED = (
    "pickled objects, as in version 1, which `teamvla convert` rewrites without executing any"
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
    found, content = _header(stream, size, where)
    descr = found[1].decode("ascii")
    if "O" in descr:
        raise EpisodeError(where, "numbers or text", _PICKLED, code="E223")
    info = ArrayInfo(_dtype(descr, where), _shape(found[3], where), found[2] == b"True")
    if info.nbytes != content:
        raise refuse(where, f"{info.nbytes} bytes of content", f"room for {content}", "E225")
    return info


def read_pickle(
    stream: MemberStream, size: int, where: str
) -> tuple[tuple[int, ...], bytearray] | None:
    """Shape and pickle of an array of objects; ``None`` for an array of anything else.

    The pickle's checksum is checked, nothing in it is looked at.
    """
    found, content = _header(stream, size, where)
    if b"O" not in found[1]:
        return None
    shape, pickle = _shape(found[3], where), bytearray(content)
    stream.read_into(memoryview(pickle))
    stream.finish()
    return shape, pickle


def _header(stream: MemberStream, size: int, where: str) -> tuple[re.Match[bytes], int]:
    """The parts of the header, and how many bytes follow it."""
    start = stream.read(min(10, size))
    if len(start) < 10 or start[:6] != _MAGIC or start[6] not in (1, 2, 3) or start[7]:
        raise refuse(where, "a .npy array", "other bytes", "E221")
    length, extra = struct.unpack("<H", start[8:])[0], 0
    if start[6] > 1:
        length, extra = struct.unpack("<I", start[8:] + stream.read(2))[0], 2
    content = size - 10 - extra - length
    if length > _MAX_HEADER or content < 0:
        raise refuse(where, f"a header up to {_MAX_HEADER} bytes", str(length), "E227")
    found = _HEADER.fullmatch(stream.read(length))
    if found is None:
        raise refuse(where, "a canonical .npy header", "another text", "E222")
    return found, content


def read_array(stream: MemberStream, size: int, where: str) -> np.ndarray:
    """The whole array, its checksum and its values' bit patterns checked."""
    info = read_header(stream, size, where)
    content = np.empty(info.nbytes, np.uint8)
    stream.read_into(content.data)
    stream.finish()
    flat = content.view(info.dtype)
    if not values_are_legal(flat):
        raise refuse(where, f"values of {info.dtype}", "other bit patterns", "E226")
    return flat.reshape(info.shape, order="F" if info.fortran else "C")


def _shape(text: bytes, where: str) -> tuple[int, ...]:
    shape = tuple(int(size) for size in text.replace(b" ", b"").split(b",") if size)
    # Empty dimensions count as one: their product must not hide what the others claim.
    if len(shape) > _MAX_DIMS or math.prod(max(1, n) for n in shape) > MAX_BYTES:
        raise refuse(where, f"at most {MAX_BYTES} values", f"shape {shape}", "E228")
    return shape


def _dtype(descr: str, where: str) -> np.dtype:
    try:
        dtype = np.dtype(descr)
    except TypeError:
        dtype = np.dtype(object)
    if not storable(dtype):
        raise refuse(where, "a dtype of numbers or text", descr, "E224")
    return dtype


def values_are_legal(flat: np.ndarray) -> bool:
    """NumPy trusts booleans to be 0 or 1 and texts to be code points; a file may lie."""
    if flat.size == 0 or flat.dtype.kind not in "bU":
        return True
    if flat.dtype.kind == "b":
        return bool(flat.view(np.uint8).max() <= 1)
    points = flat.view(np.dtype(np.uint32).newbyteorder(flat.dtype.byteorder))
    blocks = range(0, points.size, _BLOCK)  # comparing makes copies: keep them small
    return all(_are_code_points(points[at : at + _BLOCK]) for at in blocks)


def _are_code_points(points: np.ndarray) -> bool:
    low, high = _SURROGATES
    return bool(points.max() <= _LAST_CODE_POINT and not ((points >= low) & (points <= high)).any())
