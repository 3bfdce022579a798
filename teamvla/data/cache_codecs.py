"""How the cache stores pictures: as they are, or as JPEG (smaller, lossy, on request).

Either codec turns the pictures of an episode into rows of one array file. ``raw`` has a
row per step. ``jpeg`` has a row per byte, and a second file says where each picture begins.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

#: pictures that one thread decodes at a time
_PIECE = 8


@dataclass(frozen=True)
class Pictures:
    """The pictures of one episode as a codec stores them."""

    rows: np.ndarray  # raw: uint8 [T,V,H,W,C]; jpeg: uint8 [bytes]
    lengths: np.ndarray | None = None  # jpeg: int64 [T*V], bytes of each picture


def encode_jpeg(pictures: np.ndarray, quality: int) -> Pictures:
    """Compress uint8 [T,V,H,W,3], picture by picture (chroma at half the resolution)."""
    import simplejpeg

    blobs = [
        simplejpeg.encode_jpeg(np.ascontiguousarray(picture), quality, "RGB", "420")
        for picture in pictures.reshape(-1, *pictures.shape[2:])
    ]
    lengths = np.array([len(blob) for blob in blobs], np.int64)
    return Pictures(np.frombuffer(b"".join(blobs), np.uint8), lengths)


def decode_jpeg(pieces: list[np.ndarray], out: np.ndarray) -> None:
    """Decode picture i into ``out[i]``; several threads, as the decoder lets go of the GIL.

    Raises:
        ValueError: a picture is damaged or of another size.
    """
    starts = range(0, len(pieces), _PIECE)
    if len(starts) == 1:
        return _decode(pieces, out)
    parts = [(pieces[at : at + _PIECE], out[at : at + _PIECE]) for at in starts]
    for _ in _pool.get().map(lambda part: _decode(*part), parts):
        pass
    return None


def _decode(pieces: list[np.ndarray], out: np.ndarray) -> None:
    import simplejpeg

    for piece, target in zip(pieces, out, strict=True):
        try:
            picture = simplejpeg.decode_jpeg(piece.data, "RGB", buffer=target)
        except ValueError as error:
            raise ValueError(f"a picture that cannot be decoded ({error})") from None
        if picture.shape != target.shape:
            raise ValueError("a picture of another size")


class _Pool:
    """Threads of this process; a forked one has none of its parent's and gets its own."""

    def __init__(self) -> None:
        self._owner, self._threads = -1, None

    _threads: ThreadPoolExecutor | None

    def get(self) -> ThreadPoolExecutor:
        if self._threads is None or self._owner != os.getpid():
            count = len(os.sched_getaffinity(0))
            self._owner, self._threads = os.getpid(), ThreadPoolExecutor(count, "jpeg")
        return self._threads


_pool = _Pool()
