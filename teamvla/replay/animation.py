"""An episode as an animated picture: all cameras side by side, with what is being done."""

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
_GAP = 4
_MOST_FRAMES = 200
_LAST_MS = 1000
_INK, _PAPER = (40, 44, 52), "white"


def cameras_of(episode: Episode) -> list[str]:
    """The fields that are pictures, uint8[T, H, W, 3], in the order of the contract."""
    told = episode.meta.get("contract", {}).get("cameras", [])
    order = [camera["field"] for camera in told]
    pictures = [
        name
        for name, array in episode.fields.items()
        if not isinstance(array, Ragged)
        and array.dtype == np.uint8
        and array.ndim == 4
        and array.shape[3] == 3
    ]
    places = {name: place for place, name in enumerate(order)}
    return sorted(pictures, key=lambda name: (places.get(name, len(places)), name))


def animation(episode: Episode) -> bytes:
    """An animated WebP at the episode's own pace; a long one leaves out frames.

    Raises:
        InputError: the episode has no pictures.
    """
    cameras = cameras_of(episode)
    if not cameras:
        raise InputError(str(episode.path), "pictures to show", "none", "Give --no-picture.")
    every = math.ceil(episode.num_steps / _MOST_FRAMES)
    hz = float(episode.meta.get("contract", {}).get("control_hz", 20.0))
    shown = range(0, episode.num_steps, every)
    frames = [_frame(episode, cameras, step, step / hz) for step in shown]
    pace = [round(1000 * every / hz)] * (len(frames) - 1) + [_LAST_MS]
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
    canvas = Image.new("RGB", (width, _BAND + max(one.height for one in pictures)), _PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(14)
    left = 0
    for picture in pictures:
        canvas.paste(picture, (left, _BAND))
        left += picture.width + _GAP
    draw.text((4, 4), _caption(episode.fields, step, seconds), fill=_INK, font=font)
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
