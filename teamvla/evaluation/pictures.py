"""Rollouts to look at: a contact sheet and an animated picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from teamvla.evaluation.suites import OpenActor, Player, Score, Suite
from teamvla.files import publish
from teamvla.logs import progress
from teamvla.rollout import Tick, run_episodes

_SHEET, _ANIMATION = "contact_sheet.png", "rollouts.webp"
#: from one frame of a film to the next, s
_FRAME_S = 0.25
_GAP = 4
_BAND = 40
_GREEN, _RED, _INK = (46, 139, 87), (200, 60, 60), (40, 44, 52)


@dataclass(frozen=True)
class Film:
    """The frames of one episode, uint8[H, W, 3] each, from the first state to the last."""

    index: int
    success: bool
    steps: int
    frames: tuple[np.ndarray, ...]


def choose(score: Score, count: int) -> list[int]:
    """Episodes worth a look: up to half of them failures, the rest the first successes."""
    failures = [trial.index for trial in score.trials if not trial.success][: count // 2]
    successes = [trial.index for trial in score.trials if trial.success]
    return sorted(failures + successes[: count - len(failures)]) or [0]


class _Camera:
    """Films episodes of a suite."""

    def __init__(self, suite: Suite, open_actor: OpenActor) -> None:
        self._player = Player(suite, open_actor, "rgb_array")
        self._every = max(1, round(_FRAME_S * self._player.env.contract.control_hz))

    def __call__(self, index: int) -> Film:
        frames: list[np.ndarray] = []

        def look(_: object = None) -> None:
            frames.append(np.asarray(self._player.env.render()))

        def look_now_and_then(tick: Tick) -> None:
            if (tick.index + 1) % self._every == 0:
                look()

        trial = self._player.play(index, look, look_now_and_then)
        if trial.steps % self._every:
            look()
        return Film(index, trial.success, trial.steps, tuple(frames))

    def close(self) -> None:
        self._player.close()


def film(
    suite: Suite,
    open_actor: OpenActor,
    indices: Sequence[int],
    *,
    workers: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> list[Film]:
    """Play episodes again and keep a frame of the overview camera now and then."""
    camera, films = partial(_Camera, suite, open_actor), []
    workers = min(workers, len(indices))
    with progress("pictures", len(indices), "episode") as bar:
        for one in run_episodes(camera, indices, workers=workers, stop=stop):
            films.append(one)
            bar.advance()
    return films


def contact_sheet(films: Sequence[Film], columns: int = 6) -> bytes:
    """A PNG with one row per episode, time running to the right."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_BAND - 12)
    height, width = films[0].frames[0].shape[:2]
    size = (columns * (width + _GAP) + _GAP, len(films) * (height + _BAND + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, one in enumerate(films):
        top = _GAP + row * (height + _BAND + _GAP)
        verdict = f"success after {one.steps} steps" if one.success else "no success"
        colour = _GREEN if one.success else _RED
        draw.text((_GAP + 2, top + 2), f"episode {one.index}: {verdict}", fill=colour, font=font)
        count = min(columns, len(one.frames))
        picks = np.linspace(0, len(one.frames) - 1, count).round().astype(int)
        for column, pick in enumerate(picks):
            at = (_GAP + column * (width + _GAP), top + _BAND)
            sheet.paste(Image.fromarray(one.frames[pick]), at)
    return _encoded(sheet, "PNG")


def animation(films: Sequence[Film], columns: int = 3, frame_ms: int = 150) -> bytes:
    """An animated WebP with the episodes side by side; the last frames stand for a second."""
    from PIL import Image, ImageDraw

    length = max(len(one.frames) for one in films) + 1000 // frame_ms
    height, width = films[0].frames[0].shape[:2]
    columns = min(columns, len(films))
    rows = -(-len(films) // columns)
    size = (columns * (width + _GAP) - _GAP, rows * (height + _GAP) - _GAP)
    frames = []
    for tick in range(length):
        canvas = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(canvas)
        for place, one in enumerate(films):
            at = ((place % columns) * (width + _GAP), (place // columns) * (height + _GAP))
            canvas.paste(Image.fromarray(one.frames[min(tick, len(one.frames) - 1)]), at)
            ended = tick >= len(one.frames) - 1
            colour = (_GREEN if one.success else _RED) if ended else _INK
            box = (at[0], at[1], at[0] + width - 1, at[1] + height - 1)
            draw.rectangle(box, outline=colour, width=3 if ended else 1)
        frames.append(canvas)
    return _encoded(
        frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=frame_ms, loop=0,
        quality=75, method=2,
    )  # fmt: skip


def remove_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier evaluation: they would contradict its numbers."""
    for name in (_SHEET, _ANIMATION):
        (folder / name).unlink(missing_ok=True)


def save_pictures(films: Sequence[Film], folder: Path) -> dict[str, str]:
    """Write ``contact_sheet.png`` and ``rollouts.webp``; their paths by name."""
    pictures = {_SHEET: contact_sheet(films), _ANIMATION: animation(films)}
    for name, content in pictures.items():
        publish(folder / name, lambda file, content=content: file.write(content), replace=True)  # type: ignore[misc]
    return {name: str(folder / name) for name in pictures}


def _encoded(picture: object, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)  # type: ignore[attr-defined]
    return buffer.getvalue()
