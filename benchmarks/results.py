"""Success in closed loop of policies that are trained here, a row of the result tables at a time.

    python benchmarks/results.py ROW [ROW ...] [--out runs/results] [--workers 2]
    python benchmarks/results.py --list
    python benchmarks/results.py --table

A row is whole in itself: it records the demonstrations of its tasks where they are missing,
trains one policy, and plays the same 100 unseen initial states as all other rows. Stopped or
killed it goes on where it was when it is called again; what is finished is not repeated. Rows
may run at the same time, one training on one thread. Files of a row, below ``--out``:

    ROW/plan.json      settings, epochs, ms of a training step
    ROW/train/         the run, as ``teamvla train`` leaves it
    ROW/row.json       what came of it
    controls/TASK.json expert, doing nothing and nearest neighbour, shared by all rows

Rows with a budget time 20 steps first; as many epochs as fill its minutes of processor time
are then trained, all with one schedule.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from costs import chunk_milliseconds
from filelock import FileLock
from results_conditions import CONDITIONS
from results_tables import tables

import teamvla
from teamvla.config import Project
from teamvla.data import find_episodes
from teamvla.evaluation.baselines import DoNothing, expert
from teamvla.evaluation.neighbours import NearestNeighbour
from teamvla.evaluation.statistics import wilson_interval
from teamvla.evaluation.suites import OpenActor, Score, Suite, evaluate, seen_alike
from teamvla.files import read_json, write_json
from teamvla.interrupts import graceful_stop
from teamvla.models.loading import load_policy
from teamvla.record import RecordConfig, Recorder, record
from teamvla.sim.tasks import TaskConfig
from teamvla.train.bc_trainer import train
from teamvla.train.runs import open_run, resume_run, settled, start_run

#: laid over the configuration of every row
COMMON = ("trainer.threads=1",)
#: of rows that are compared at equal time: the last weights count, nothing is spent on ranking
LAST = ("trainer.rollout_every=0",)
#: task -> the shipped recipe of a policy for it alone
RECIPES = {
    "lift": "train_bc",
    "handoff": "train_handoff",
    "drawer": "train_drawer",
    "sort": "train_bc",
}
FOUR = tuple(RECIPES)
HEADS = {
    "mlp": ("model.head.type=mlp",),
    "gaussian": ("model.head.type=gaussian",),
    "diffusion": ("model.head.type=diffusion", "model.head.denoiser=mlp"),
    "diffusion_transformer": ("model.head.type=diffusion", "model.head.denoiser=transformer"),
    "flow": ("model.head.type=flow",),
    "transformer_continuous": ("model.head.type=transformer", "model.head.output=continuous"),
    "transformer_binned": ("model.head.type=transformer", "model.head.output=binned"),
    "act": ("model.head.type=act",),
    "masked": (
        "model.head.type=masked",
        "model.head.num_bins=64",
        "model.head.bin_blur=1.5",
        "model.head.temperature=0",
        "model.head.num_inference_steps=4",
    ),
}
DEMONSTRATIONS = 100


@dataclass(frozen=True)
class Row:
    """A policy to train, and what it is asked.

    ``minutes`` of processor time decide the epochs, unless it is None. ``asked`` are pairs of
    a task and a condition of ``CONDITIONS``; ``controls`` are played on every task. ``model`` is
    a configuration whose policy takes the place of that of ``config``.
    """

    about: str
    tasks: tuple[str, ...] = ("lift",)
    config: str = "train_bc"
    model: str = ""
    overrides: tuple[str, ...] = ()
    minutes: float | None = None
    asked: tuple[tuple[str, str], ...] = ()
    controls: bool = False

    @property
    def evaluations(self) -> tuple[tuple[str, str], ...]:
        return tuple((task, "") for task in self.tasks) + self.asked

    def setting(self, task: str) -> TaskConfig:
        """The task as the configuration has it; one for another task gives its cameras."""
        project = Project.load(self.config)
        if project.section("task", TaskConfig).task_name != task:
            project = seen_alike(Project.load(task), project)
        return project.section("task", TaskConfig)


def _rows() -> dict[str, Row]:
    words = (("sort", "blanked instruction"), ("sort", "other instruction"))
    rows = {
        task: Row("one task", (task,), config, controls=True,
                  asked=((task, "black pictures"), *(words if task == "sort" else ())))
        for task, config in RECIPES.items()
    }  # fmt: skip
    rows["multi"] = Row("four tasks, chosen by words", FOUR, "train_multi", asked=words)
    arms = {
        "single_brain": ("one network for both arms", "model/single_brain", ()),
        "msg_passing": ("a network for each arm, messages", "model/msg_passing", ()),
        "cut": ("the same, messages cut", "model/msg_passing", ("model.messages=false",)),
    }
    for name, (about, model, more) in arms.items():
        rows[f"messages/{name}"] = Row(about, ("drawer",), "train_drawer", model, (*LAST, *more), 8)
    for name, choice in HEADS.items():
        rows[f"heads/{name}"] = Row(f"head {name}", overrides=(*LAST, *choice), minutes=5)
        rows[f"handoff_heads/{name}"] = Row(
            f"head {name}", ("handoff",), "train_handoff", "", (*LAST, *choice), 10
        )
    for name in ("bc", "vla", "act", "diffusion_policy"):
        rows[f"policies/{name}"] = Row(
            f"policy {name}", model=f"model/{name}", overrides=LAST, minutes=10
        )
    return rows


ROWS = _rows()


class Stopped(Exception):
    """A signal came; what is done is kept."""


@dataclass(frozen=True)
class Bench:
    """Where and how rows are run."""

    out: Path
    data: Path
    seed: int
    demonstrations: int
    episodes: int
    workers: int
    stop: Callable[[], bool]

    def run(self, name: str, row: Row) -> dict[str, Any]:
        """What came of a row; finished parts are taken as they are."""
        folder = self.out / name
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            for task in row.tasks:
                self._demonstrate(row, task)
            plan = self._plan(folder, row)
            result = _read(folder / "row.json") or {"name": name, **plan}
            if "training" not in result:
                result |= self._train(folder, row, plan)
                write_json(folder / "row.json", result)
            self._evaluate(folder, row, result)
        if row.controls:
            for task in row.tasks:
                self._controls(row, task)
        return result

    def _demonstrate(self, row: Row, task: str) -> None:
        folder = self._root(row, task)
        self.data.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if folder.is_dir() and len(list(find_episodes(folder))) >= self.demonstrations:
                return
            config = Project.load(row.config).section("record", RecordConfig)
            recorder = Recorder(row.setting(task), config, folder, 0)
            record(recorder, self.demonstrations, workers=self.workers, stop=self.stop)
        if self.stop():
            raise Stopped

    def _plan(self, folder: Path, row: Row) -> dict[str, Any]:
        """Settings of a row and its epochs, as they were first settled.

        A row whose settings have changed since must not go on with the old training.
        """
        settings: dict[str, Any] = json.loads(json.dumps(asdict(row)))
        for free in ("about", "asked", "controls"):
            settings.pop(free)
        settings |= {"seed": self.seed, "demonstrations": self.demonstrations}
        plan = _read(folder / "plan.json")
        if plan is None:
            plan = settings | self._pace(row, self._project(row))
            write_json(folder / "plan.json", plan)
        elif changed := [key for key in settings if plan.get(key) != settings[key]]:
            raise SystemExit(
                f"{folder} was begun with other settings ({', '.join(changed)}): "
                "remove it, or choose another --out."
            )
        return plan

    def _project(self, row: Row) -> Project:
        project = Project.load(row.config)
        if project.section("task", TaskConfig).task_name != row.tasks[0]:
            project = project.transplant("task", seen_alike(Project.load(row.tasks[0]), project))
        if row.model:
            project = project.transplant("model", Project.load(row.model))
        project = project.override([*COMMON, *row.overrides]).with_session(seed=self.seed)
        roots = [str(self._root(row, task)) for task in row.tasks]
        # An index in the first root would take the place of that task's own.
        index = str(self.data / ".indexes" / "+".join(row.tasks)) if len(roots) > 1 else None
        return project.replace("dataset", roots=roots, index=index)

    def _root(self, row: Row, task: str) -> Path:
        """Where demonstrations lie; those seen by other cameras than the task's own, apart."""
        own = row.setting(task) == Project.load(task).section("task", TaskConfig)
        return self.data / (task if own else f"{task}-{row.config}")

    def _pace(self, row: Row, project: Project) -> dict[str, Any]:
        """``epochs`` and ``ms_per_step`` of processor time, measured on a throwaway training."""
        with TemporaryDirectory() as folder:
            run = open_run(settled(project), Path(folder))
        run.learner.policy.train()
        took = []
        for batch in islice(_endless(run.train_loader), 23):
            began = time.process_time()
            run.learner.step(batch)
            took.append(time.process_time() - began)
            if self.stop():
                raise Stopped
        step = statistics.median(took[3:])
        epochs = run.config.epochs
        if row.minutes is not None:
            epochs = max(1, round(60 * row.minutes / step / len(run.train_loader)))
        return {"epochs": epochs, "ms_per_step": round(1e3 * step, 2)}

    def _train(self, folder: Path, row: Row, plan: dict[str, Any]) -> dict[str, Any]:
        where, project = folder / "train", self._project(row)
        project = project.replace("trainer", epochs=plan["epochs"])
        roots = [str(self._root(row, task)) for task in row.tasks]
        resumed = (where / "config.yaml").exists()
        run = resume_run(where, roots=roots) if resumed else start_run(project, where)
        spent = _read(folder / "sessions.json") or {"wall_s": 0.0, "cpu_s": 0.0}
        began = (time.perf_counter(), time.process_time())
        try:
            finished = train(run, self.stop)
        finally:
            spent["wall_s"] += time.perf_counter() - began[0]
            spent["cpu_s"] += time.process_time() - began[1]
            write_json(folder / "sessions.json", spent)
        if not finished:
            raise Stopped
        ranked = bool(run.config.rollout_every)
        checkpoint = run.checkpoints / ("best.ckpt" if ranked else "last.ckpt")
        return {
            "checkpoint": str(checkpoint.relative_to(folder)),
            "training": {
                "minutes": run.state.seconds / 60,
                "minutes_with_validation": spent["wall_s"] / 60,
                "minutes_cpu": spent["cpu_s"] / 60,
                "steps": run.state.step,
            },
            "parameters": sum(p.numel() for p in run.learner.policy.parameters()),
            "ms_per_chunk": self._chunk_ms(checkpoint, row.setting(row.tasks[0])),
            "evaluations": {},
            "versions": {"teamvla": teamvla.__version__, "torch": str(torch.__version__),
                         "python": platform.python_version(), "machine": platform.machine()},
        }  # fmt: skip

    @staticmethod
    def _chunk_ms(checkpoint: Path, task: TaskConfig) -> float:
        policy, _ = load_policy(checkpoint)
        env = Suite(task).open()
        observation, info = env.reset(seed=0)
        seen = {**observation, "instruction": info["instruction"]}
        took = chunk_milliseconds(lambda: policy.predict_action_chunk(seen), 50)
        env.close()
        return round(statistics.median(took), 2)

    def _evaluate(self, folder: Path, row: Row, result: dict[str, Any]) -> None:
        checkpoint = folder / result["checkpoint"]
        for task, condition in row.evaluations:
            name = f"{task}, {condition}" if condition else task
            if _covers(result["evaluations"].get(name), self.episodes):
                continue
            score = self._play(row.setting(task), CONDITIONS[condition](checkpoint), name)
            result["evaluations"][name] = score
            write_json(folder / "row.json", result)

    def _controls(self, row: Row, task: str) -> None:
        path = self.out / "controls" / f"{task}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        nearest = NearestNeighbour(self._root(row, task))
        actors: dict[str, OpenActor] = {
            "expert": expert, "doing nothing": DoNothing, "nearest neighbour": nearest,
        }  # fmt: skip
        with FileLock(f"{path}.lock"):
            scores = _read(path) or {}
            for name, actor in actors.items():
                if not _covers(scores.get(name), self.episodes):
                    scores[name] = self._play(row.setting(task), actor, f"{task}, {name}")
                    write_json(path, scores)

    def _play(self, task: TaskConfig, actor: OpenActor, name: str) -> dict[str, Any]:
        suite = Suite(task, seed=0)
        score = evaluate(
            suite, actor, self.episodes, workers=self.workers, name=name, stop=self.stop
        )
        if score.episodes < self.episodes:
            raise Stopped
        print(f"{name:32}{score}", flush=True)
        return _summary(score)


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _read(path: Path) -> Any:
    return read_json(path) if path.exists() else None


def _covers(score: dict[str, Any] | None, episodes: int) -> bool:
    return score is not None and score["episodes"] >= episodes


def _summary(score: Score) -> dict[str, Any]:
    """A score in short; ``failed`` names the initial states, so that rows can be paired."""
    return {
        "successes": score.successes,
        "episodes": score.episodes,
        "interval_95": list(wilson_interval(score.successes, score.episodes)),
        "mean_steps_to_success": score.mean_steps_to_success,
        "failed": [trial.index for trial in score.trials if not trial.success],
        "broken": score.broken,
    }


def _adjusted(row: Row, minutes: float | None, epochs: int | None) -> Row:
    """A row for a quick try."""
    if epochs is not None:
        overrides = (*row.overrides, f"trainer.epochs={epochs}")
        return replace(row, minutes=None, overrides=overrides)
    return row if minutes is None else replace(row, minutes=minutes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("rows", nargs="*", metavar="ROW", help="see --list")
    parser.add_argument("--list", action="store_true", help="what there is to run")
    parser.add_argument("--table", action="store_true", help="Markdown of what is finished")
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--data", type=Path, help="demonstrations in DATA/TASK; OUT/data")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    parser.add_argument("--demonstrations", type=int, default=DEMONSTRATIONS, help="of a task")
    parser.add_argument("--episodes", type=int, default=100, help="initial states")
    parser.add_argument("--workers", type=int, default=1, help="processes that play")
    parser.add_argument("--minutes", type=float, help="of processor time, for a quick try")
    parser.add_argument("--epochs", type=int, help="for a quick try")
    given = parser.parse_args()
    if unknown := [name for name in given.rows if name not in ROWS]:
        parser.error(f"no row {', '.join(unknown)}; there are: {', '.join(ROWS)}")
    if given.list:
        for name, row in ROWS.items():
            budget = f", {row.minutes:.0f} min" if row.minutes else ""
            print(f"{name:40}{row.about} ({', '.join(row.tasks)}{budget})")
    with graceful_stop() as stop:
        data = given.data or given.out / "data"
        bench = Bench(given.out, data, given.seed, given.demonstrations, given.episodes,
                      given.workers, lambda: bool(stop))  # fmt: skip
        try:
            for name in given.rows:
                bench.run(name, _adjusted(ROWS[name], given.minutes, given.epochs))
        except Stopped:
            print("stopped; run it again to go on")
            sys.exit(stop.exit_code)
    if given.table:
        print(tables(given.out, list(ROWS), FOUR))


if __name__ == "__main__":
    main()
