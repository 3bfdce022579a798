"""Compressed pictures of strangers: their size is known, and limited, before they are decoded."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np

from teamvla.errors import EpisodeError


def decode_pictures(
    contents: Iterable[bytes], kinds: tuple[str, ...], where: str, limit: int
) -> np.ndarray:
    """Pictures of one size as uint8[T,H,W,3].

    Args:
        contents: the compressed pictures.
        kinds: what they may be, as Pillow names it (``PNG``, ``JPEG``).
        where: for messages.
        limit: bytes that all of them may take.

    Raises:
        EpisodeError: one cannot be decoded, is of another size, or there are too many.
    """
    pictures: list[np.ndarray] = []
    room = limit
    for content in contents:
        pictures.append(_decoded(content, kinds, where, room))
        room -= pictures[-1].nbytes
        if pictures[-1].shape != pictures[0].shape:
            expected, got = (f"{p.shape[1]} x {p.shape[0]}" for p in (pictures[0], pictures[-1]))
            raise EpisodeError(where, f"pictures of {expected}", got, code="E605")
    if not pictures:
        raise EpisodeError(where, "pictures", "none", code="E610")
    return np.stack(pictures)


def _decoded(content: bytes, kinds: tuple[str, ...], where: str, room: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=kinds) as picture:
            if picture.width * picture.height * 3 > room:
                got = f"one more of {picture.width} x {picture.height}"
                raise EpisodeError(where, "no more bytes than fit", got, code="E609")
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        expected = f"a {' or '.join(kinds)}"
        raise EpisodeError(where, expected, str(error), code="E615") from None
