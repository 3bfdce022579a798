"""An episode as an animated picture: its cameras side by side, with what is being done."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from teamvla.data import Episode, Ragged
from teamvla.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_HEIGHT = 192
_BAND = 26
_LABEL = 18
_GAP = 4
_MOST_FRAMES = 200
_LONGEST_MS = 60_000  # a frame, whatever the episode says of its rate
_LAST_MS = 1000
_INK, _PAPER = (40, 44, 52), "white"


def cameras_of(episode: Episode) -> list[str]:
    """The cameras of the contract; without one all fields uint8[T, H, W, 3]."""
    pictures = [
        name
        for name, array in episode.fields.items()
        if not isinstance(array, Ragged)
        and array.dtype == np.uint8
        and array.ndim == 4
        and array.shape[3] == 3
    ]
    if "contract" not in episode.meta:
        return sorted(pictures)
    told = [camera["field"] for camera in episode.meta["contract"].get("cameras", [])]
    return [name for name in told if name in pictures]


def animation(episode: Episode) -> bytes:
    """An animated WebP at the episode's own pace; a long one leaves out frames.

    Raises:
        InputError: the episode has no pictures.
    """
    cameras = cameras_of(episode)
    if not cameras:
        raise InputError(str(episode.path), "pictures to show", "none")
    every = math.ceil(episode.num_steps / _MOST_FRAMES)
    hz = float(episode.meta.get("contract", {}).get("control_hz", 20.0))
    shown = range(0, episode.num_steps, every)
    frames = [_frame(episode, cameras, step, step / hz) for step in shown]
    pace = [min(_LONGEST_MS, round(1000 * every / hz))] * (len(frames) - 1) + [_LAST_MS]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "WEBP", save_all=True, append_images=frames[1:], duration=pace, loop=0,
        quality=80, method=4,
    )  # fmt: skip
    return buffer.getvalue()


def _frame(episode: Episode, cameras: list[str], step: int, seconds: float) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    pictures = [_enlarged(episode.fields[name][step]) for name in cameras]
    width = sum(one.width + _GAP for one in pictures) - _GAP
    top = _BAND + (_LABEL if len(cameras) > 1 else 0)
    canvas = Image.new("RGB", (width, top + max(one.height for one in pictures)), _PAPER)
    draw, left = ImageDraw.Draw(canvas), 0
    for name, picture in zip(cameras, pictures, strict=True):
        canvas.paste(picture, (left, top))
        if len(cameras) > 1:
            draw.text((left + 4, _BAND), name, fill=_INK, font=ImageFont.load_default(12))
        left += picture.width + _GAP
    caption = _caption(episode.fields, step, seconds)
    draw.text((4, 4), caption, fill=_INK, font=ImageFont.load_default(14))
    return canvas


def _enlarged(picture: np.ndarray) -> Image:
    from PIL import Image

    factor = max(1, _HEIGHT // picture.shape[0])
    size = (picture.shape[1] * factor, picture.shape[0] * factor)
    return Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.NEAREST)


def _caption(fields: dict[str, Any], step: int, seconds: float) -> str:
    phase = f"  {fields['phase'][step]}" if "phase" in fields else ""
    success = "  success" if fields["success"][step] else ""
    return f"{seconds:.2f} s{phase}{success}"
