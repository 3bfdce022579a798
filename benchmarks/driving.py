"""How well a vehicle drives without one of its sensors, trained anew without it.

    python benchmarks/driving.py ROW [ROW ...] [--out runs/driving]
    python benchmarks/driving.py --table

All rows learn ``configs/train_driving.yaml`` for as many steps from the same recordings, and
are asked the same in every situation: where the expert would drive from what it sees (ADE and
FDE of the waypoints, on recordings of other episodes), and to drive themselves. As with
``benchmarks/results.py``, whose way to train a row this is, what is finished is not repeated.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from results import Bench, Row, Stopped, _read

from teamvla.config import Project
from teamvla.data.dataloader import MultiTaskDataset
from teamvla.data.torch_loader import to_tensors
from teamvla.evaluation.baselines import expert
from teamvla.evaluation.policies import PolicyFromCheckpoint
from teamvla.evaluation.statistics import wilson_interval
from teamvla.evaluation.suites import OpenActor, Suite
from teamvla.files import write_json
from teamvla.interrupts import graceful_stop
from teamvla.models.loading import load_policy
from teamvla.record import RecordConfig, Recorder, record
from teamvla.rollout import Tick, rollout, run_episodes
from teamvla.sim.driving.env import DrivingEnv
from teamvla.sim.driving.verdict import judge
from teamvla.sim.tasks import TaskConfig

CONFIG = "train_driving"
SITUATIONS = ("clear", "night", "fog", "crossing", "occlusion")
WITHOUT = {
    "all": (),
    "no_cameras": ("model.vision=null",),
    "no_lidar": ("model.sensors.points=null",),
    "no_radar": ("model.sensors.radar=null",),
    "no_imu": ("model.sensors.imu=null",),
}
ROWS = {
    name: Row(name.replace("_", " "), ("driving",), CONFIG, overrides=more)
    for name, more in WITHOUT.items()
}
#: every so many steps of a recording are asked about
_EVERY = 5
_HERTZ = 20


def situated(name: str) -> TaskConfig:
    """The task in one situation."""
    return Project.load(CONFIG, [f"task.situation={name}"]).section("task", TaskConfig)


@dataclass(frozen=True)
class OpenDrives:
    """Opens what drives one episode; picklable."""

    suite: Suite
    actor: OpenActor

    def __call__(self) -> Callable[[int], dict[str, Any]]:
        env = self.suite.open()
        return partial(self.drive, env, self.actor(env))

    def drive(self, env: Any, actor: Any, index: int) -> dict[str, Any]:
        """Success, collision and the way driven, km, of an episode."""
        speeds: list[float] = []

        def on_tick(tick: Tick) -> None:
            speeds.append(float(tick.observation["ego"][0]))

        outcome = rollout(env, actor, self.suite.reset_seed(index), on_tick=on_tick)
        assert isinstance(env, DrivingEnv)
        return {
            "success": outcome.success,
            "collision": judge(env.world).collision,
            "km": sum(speeds) / _HERTZ / 1000,
        }


@dataclass(frozen=True)
class Driving(Bench):
    """The rows of this file."""

    test_episodes: int = 20

    def _evaluate(self, folder: Path, row: Row, result: dict[str, Any]) -> None:
        checkpoint = folder / result["checkpoint"]
        for situation in SITUATIONS:
            found = result["evaluations"].setdefault(situation, {})
            if "ade" not in found:
                found |= self._foreseen(checkpoint, situation)
                write_json(folder / "row.json", result)
            if found.get("episodes", 0) < self.episodes:
                found |= self.drives(PolicyFromCheckpoint(checkpoint), situation)
                write_json(folder / "row.json", result)
            print(f"{folder.name:12}{situation:12}{_line(found)}", flush=True)

    def drives(self, actor: OpenActor, situation: str) -> dict[str, Any]:
        """What becomes of episodes in a situation."""
        opened = OpenDrives(Suite(situated(situation), seed=0), actor)
        runs = run_episodes(opened, range(self.episodes), workers=self.workers, stop=self.stop)
        trials = list(runs)
        if len(trials) < self.episodes:
            raise Stopped
        successes = sum(trial["success"] for trial in trials)
        collisions, km = sum(t["collision"] for t in trials), sum(t["km"] for t in trials)
        return {
            "successes": successes,
            "episodes": len(trials),
            "interval_95": list(wilson_interval(successes, len(trials))),
            "collisions": collisions,
            "km": km,
            "succeeded": [bool(trial["success"]) for trial in trials],
        }

    def _foreseen(self, checkpoint: Path, situation: str) -> dict[str, Any]:
        """Errors of the predicted waypoints, m, and of going on at the present velocity."""
        data = self._recordings(situation)
        policy, _ = load_policy(checkpoint)
        predicted: list[list[np.ndarray]] = []
        steady: list[list[np.ndarray]] = []
        ends = np.cumsum(data.index.episodes["num_steps"][data.episodes])
        for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
            batch = to_tensors(data.__getitems__(list(range(start, end, _EVERY))))
            with torch.inference_mode():
                waypoints = policy.predict_trajectory(batch["observations"], batch["language"])
            target = batch["targets"]["trajectory"]
            predicted.append(_errors(waypoints, target))
            speed = batch["observations"]["state"][:, :1]
            times = torch.arange(1, target.shape[1] + 1) * _spacing()
            ahead = torch.stack([speed * times, torch.zeros_like(speed * times)], dim=-1)
            steady.append(_errors(ahead, target))
        figures = {"ade": predicted, "steady_ade": steady}
        return {
            name.replace("ade", kind): _mean([episode[at] for episode in found])
            for name, found in figures.items()
            for at, kind in enumerate(("ade", "fde"))
        }

    def _recordings(self, situation: str) -> MultiTaskDataset:
        """Episodes of the expert, without noise, which no row has learned from."""
        folder = self.data / f"test-{situation}"
        config = Project.load(CONFIG, ["record.noise.signals={}"]).section("record", RecordConfig)
        record(
            Recorder(situated(situation), config, folder, 1), self.test_episodes,
            workers=self.workers, stop=self.stop,
        )  # fmt: skip
        if self.stop():
            raise Stopped
        return MultiTaskDataset({"roots": [str(folder)], "split": "all", "shuffle": False})


def _spacing() -> float:
    return float(situated("clear").model_dump()["trajectory"]["spacing_s"])


def _errors(predicted: torch.Tensor, target: torch.Tensor) -> list[np.ndarray]:
    """Distances of waypoints [B,W,2], m, by step: their mean, and that of the last."""
    away = (predicted - target).norm(dim=-1)
    return [away.mean(1).numpy(), away[:, -1].numpy()]


def _mean(episodes: Sequence[np.ndarray]) -> list[float]:
    """Mean over episodes of their means, and half its 95 % interval (normal)."""
    means = np.array([steps.mean() for steps in episodes])
    return [float(means.mean()), float(1.96 * means.std(ddof=1) / np.sqrt(len(means)))]


def _line(found: dict[str, Any]) -> str:
    share = 100 * found["ade"][0] / found["steady_ade"][0]
    return (
        f"ADE {_error('ade', found)}, FDE {_error('fde', found)} m, {share:.0f} % of constant "
        f"velocity; {_route_success(found)}; {found['collisions']} collisions in "
        f"{found['km']:.1f} km"
    )


def _table(out: Path) -> str:
    """Markdown: a table for each figure, a line per row and a column per situation."""
    rows = {name: (_read(out / name / "row.json") or {"evaluations": {}}) for name in ROWS}
    found = {name: _with_total(row["evaluations"]) for name, row in rows.items()}
    found = {name: situations for name, situations in found.items() if situations}
    lines = []
    for figure, cell in _FIGURES.items():
        columns = (*SITUATIONS, "together")
        lines += [f"| {figure} | {' | '.join(columns)} |", "| --- " * (1 + len(columns)) + "|"]
        shown = {name.replace("_", " "): (cell, seen) for name, seen in found.items()}
        if figure in _STEADY and found:  # the same for every row
            shown["constant velocity"] = (_STEADY[figure], next(iter(found.values())))
        for name, (say, seen) in shown.items():
            cells = (say(seen[column]) if column in seen else "" for column in columns)
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _with_total(situations: dict[str, Any]) -> dict[str, Any]:
    """Besides ``together``, once every situation is finished."""
    if any("episodes" not in situations.get(name, {}) for name in SITUATIONS):
        return {name: found for name, found in situations.items() if "episodes" in found}
    each = [situations[name] for name in SITUATIONS]
    total: dict[str, Any] = {
        name: sum(found[name] for found in each)
        for name in ("successes", "episodes", "collisions", "km")
    }
    total["interval_95"] = wilson_interval(total["successes"], total["episodes"])
    for kind in ("ade", "fde", "steady_ade", "steady_fde"):
        means, halves = np.array([found[kind] for found in each]).T
        total[kind] = (means.mean(), np.linalg.norm(halves) / len(halves))
    return {**situations, "together": total}


def _error(kind: str, found: dict[str, Any]) -> str:
    return f"{found[kind][0]:.2f} ± {found[kind][1]:.2f}"


def _route_success(found: dict[str, Any]) -> str:
    low, high = (round(100 * bound) for bound in found["interval_95"])
    return f"{found['successes']}/{found['episodes']} [{low}, {high}]"


def _collisions_per_km(found: dict[str, Any]) -> str:
    """With a 95 % interval of their rate, as of a Poisson variable (square roots, +-0.98)."""
    count, km = found["collisions"], found["km"]
    low = max(0.0, math.sqrt(count) - 0.98) ** 2 / km
    high = (math.sqrt(count + 1) + 0.98) ** 2 / km
    return f"{count / km:.1f} [{low:.1f}, {high:.1f}]"


#: heading of a table -> what its cells say of a row in a situation
_FIGURES: dict[str, Callable[[dict[str, Any]], str]] = {
    "ADE, m": partial(_error, "ade"),
    "FDE, m": partial(_error, "fde"),
    "route success": _route_success,
    "collisions per km": _collisions_per_km,
}
_STEADY = {"ADE, m": partial(_error, "steady_ade"), "FDE, m": partial(_error, "steady_fde")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join([*ROWS, "expert"]))
    parser.add_argument("--table", action="store_true", help="Markdown of what is finished")
    parser.add_argument("--out", type=Path, default=Path("runs/driving"))
    parser.add_argument("--data", type=Path, help="recordings; OUT/data")
    parser.add_argument("--demonstrations", type=int, default=200)
    parser.add_argument("--episodes", type=int, default=50, help="of a situation")
    parser.add_argument("--workers", type=int, default=1, help="processes that drive")
    given = parser.parse_args()
    if unknown := [name for name in given.rows if name not in (*ROWS, "expert")]:
        parser.error(f"no row {', '.join(unknown)}; there are: {', '.join(ROWS)}, expert")
    with graceful_stop() as stop:
        bench = Driving(given.out, given.data or given.out / "data", 0, given.demonstrations,
                        given.episodes, given.workers, lambda: bool(stop))  # fmt: skip
        try:
            for name in given.rows:
                if name in ROWS:
                    bench.run(name, ROWS[name])
                else:
                    for situation in SITUATIONS:
                        found = bench.drives(expert, situation)
                        print(f"expert      {situation:12}{found['successes']}/{found['episodes']}")
        except Stopped:
            print("stopped; run it again to go on")
            sys.exit(stop.exit_code)
    if given.table:
        print(_table(given.out))


if __name__ == "__main__":
    main()
