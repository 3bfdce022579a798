"""One picture per task: every camera, a row each, in every phase of the expert.

    python benchmarks/task_pictures.py [lift handoff ...] [--seed 0] [--out docs]

writes docs/task_NAME.png.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from teamvla.config import Project
from teamvla.sim import make_env
from teamvla.sim.cameras import RayRenderer
from teamvla.sim.tasks import TaskConfig

TASKS = ("lift", "handoff", "drawer", "sort", "recall")
CAMERAS = ("overview", "rgb_a", "rgb_b", "rgb_wrist_a", "rgb_wrist_b", "rgb_top")
SIZE = 112  # pixels of a camera's picture
SAMPLES = 3  # rays along each side of a pixel
GAP, TITLE, NAMES = 4, 20, 84  # pixels between pictures, above and beside them
INK, PAPER = (40, 44, 52), (255, 255, 255)
LATE = 0.8  # of a phase, when it is shown


def played(name: str, seed: int) -> Iterator[tuple[str, Any]]:
    """The phase and the world, after each step of the expert's episode."""
    small = [f"task.camera.{side}=8" for side in ("height", "width")]
    env: Any = make_env(Project.load(name, small).section("task", TaskConfig))
    observation, _ = env.reset(seed=seed)
    expert, over = env.expert(), False
    while not over:
        command = np.concatenate(expert.act(observation))
        phase = expert.phase
        observation, _, ended, truncated, _ = env.step(command)
        yield phase, env.world
        over = ended or truncated


def moments(phases: list[str]) -> dict[int, str]:
    """Step -> the phase that is shown then: each once, where it first occurs."""
    shown: dict[int, str] = {}
    start = 0
    for step in range(1, len(phases) + 1):
        if step == len(phases) or phases[step] != phases[start]:
            if phases[start] not in shown.values():
                shown[start + int(LATE * (step - 1 - start))] = phases[start]
            start = step
    return shown


def picture(name: str, seed: int) -> Image.Image:
    shown = moments([phase for phase, _ in played(name, seed)])
    step_by = SIZE + GAP
    sheet = Image.new(
        "RGB", (NAMES + len(shown) * step_by, TITLE + len(CAMERAS) * step_by - GAP), PAPER
    )
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, camera in enumerate(CAMERAS):
        middle = TITLE + row * step_by + SIZE // 2
        pen.text((NAMES - GAP, middle), camera, INK, font, anchor="rm")
    column = 0
    for step, (_, world) in enumerate(played(name, seed)):
        if step not in shown:
            continue
        left = NAMES + column * step_by
        pen.text((left + SIZE // 2, TITLE // 2), shown[step], INK, font, anchor="mm")
        renderer = RayRenderer(world, SIZE, SIZE, True, SAMPLES)
        for row, camera in enumerate(CAMERAS):
            view = Image.fromarray(renderer.render(camera))
            sheet.paste(view, (left, TITLE + row * step_by))
        column += 1
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tasks", nargs="*", default=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs")
    given = parser.parse_args()
    for name in given.tasks:
        path = given.out / f"task_{name}.png"
        picture(name, given.seed).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
