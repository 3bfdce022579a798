"""The whole path once: record, validate, index, train, evaluate, inspect, report.

Each stage writes down what came of it and what it depended on. Run again, a stage
whose inputs are the same is not repeated.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teamvla.checkpoint import read_header, verify_digest
from teamvla.config import Project
from teamvla.config.differences import differences, listed
from teamvla.data import IndexConfig, build_index, validate_roots
from teamvla.errors import EpisodeError, InputError, SimulationError
from teamvla.evaluation.baselines import (
    DoNothing,
    RandomActions,
    Replay,
    expert,
    median_demonstration,
)
from teamvla.evaluation.pictures import choose, film, save_pictures
from teamvla.evaluation.policies import PolicyFromCheckpoint
from teamvla.evaluation.report import Report, write_report
from teamvla.evaluation.suites import EvaluationConfig, OpenActor, Score, Suite, evaluate
from teamvla.files import canonical_json, duplicate, read_json, write_json
from teamvla.record import RecordConfig, Recorder, record
from teamvla.sim.tasks import TaskConfig
from teamvla.train.bc_trainer import train
from teamvla.train.journal import read_metrics
from teamvla.train.runs import Run, resume_run, start_run

_LOG = logging.getLogger(__name__)
Facts = dict[str, Any]


class Stopped(Exception):
    """A signal ended a stage; what is finished stays."""


@dataclass(frozen=True)
class Quickstart:
    """One quickstart.

    Attributes:
        folder: everything lies in it: ``data/``, ``train/``, ``best.ckpt``, ``report.html``.
        episodes: demonstrations to record.
        eval_episodes: initial states to evaluate on.
        given: the options that ``project`` came from, for the commands in the report.
    """

    folder: Path
    project: Project
    episodes: int = 100
    eval_episodes: int = 100
    workers: int = 2
    given: tuple[str, ...] = ()
    stop: Callable[[], bool] = lambda: False

    @property
    def task(self) -> TaskConfig:
        return self.project.section("task", TaskConfig)

    @property
    def seed(self) -> int:
        return self.project.session.seed

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def best(self) -> Path:
        return self.folder / "best.ckpt"

    def run(self) -> Facts:
        """Do every stage that is not done yet; what came of each, by its name.

        Raises:
            Stopped: ``stop`` turned true before the last stage was finished.
        """
        stages: dict[str, Callable[[], Facts]] = {
            "record": self._record,
            "validate": self._validate,
            "index": self._index,
            "train": self._train,
            "evaluate": self._evaluate,
            "inspect": self._inspect,
            "report": self._report,
        }
        self._claim()
        facts: dict[str, Facts] = {}
        for number, (name, work) in enumerate(stages.items(), 1):
            facts[name], reused = self._stage(name, work)
            said = f"{facts[name]['line']}, {facts[name]['seconds']:.0f} s"
            again = " (done before)" if reused else ""
            _LOG.info("[%d/%d] %-9s %s%s", number, len(stages), name, said, again)
        return facts

    def _settings(self) -> dict[str, Any]:
        """What the data and the training depend on; evaluation may differ from run to run."""
        settings = self.project.resolved()
        for free in ("evaluation", "device", "log_level", "data_root"):
            settings.pop(free, None)
        return {**settings, "episodes": self.episodes}

    def _claim(self) -> None:
        """Write down what the folder is for; InputError if it holds another quickstart."""
        path = self.folder / "settings.json"
        settings = json.loads(canonical_json(self._settings()))
        lines = differences(read_json(path), settings) if path.exists() else []
        if lines:
            raise InputError(
                f"{self.folder} holds a quickstart with other settings:\n{listed(lines)}\n"
                "Choose another --out, or remove the folder."
            )
        write_json(path, settings)

    def _key(self, stage: str) -> str:
        """Digest of all that a stage depends on."""
        depends: list[Any] = [self._settings()]
        if stage in ("evaluate", "report"):
            config = self.project.section("evaluation", EvaluationConfig)
            depends += [config.model_dump(mode="json"), self.eval_episodes]
        return hashlib.sha256(canonical_json(depends)).hexdigest()

    def _stage(self, name: str, work: Callable[[], Facts]) -> tuple[Facts, bool]:
        path, key = self.folder / "stages" / f"{name}.json", self._key(name)
        known = _facts_in(path, key)
        if known is not None:
            return known, True
        if self.stop():
            raise Stopped
        began = time.perf_counter()
        facts = work()
        took = round(time.perf_counter() - began, 2)
        facts = {"seconds": took, **facts, "key": key}
        write_json(path, facts)
        return facts, False

    def _record(self) -> Facts:
        config = self.project.section("record", RecordConfig)
        recorder = Recorder(self.task, config, self.data, self.seed)
        total = record(recorder, self.episodes, workers=self.workers, stop=self.stop)
        if total.interrupted:
            raise Stopped
        if total.given_up:
            where, got = f"episode {total.given_up[0]}", total.failures.most_common(1)[0][0]
            raise SimulationError(where, "an attempt that comes to its end", got)
        line = (
            f"{len(total.kept)} demonstrations, {total.steps} steps; "
            f"the expert succeeded in {total.successes} of {total.attempts}"
        )
        files = [str(one.path) for one in total.kept]
        return {"line": line, "files": files, "steps": total.steps, "episodes": len(total.kept)}

    def _validate(self) -> Facts:
        report = validate_roots([self.data])
        if report.findings:
            first = report.findings[0]
            raise EpisodeError(str(first.path), got=f"{first.message} ({first.code})")
        return {"line": f"{report.episodes} episodes, no findings"}

    def _index(self) -> Facts:
        given = "index" in self.project.source.data
        config = self.project.section("index", IndexConfig) if given else None
        index = build_index([self.data], config=config)
        return {"line": f"{index.num_episodes} episodes, {index.num_steps} steps in the cache"}

    def _train(self) -> Facts:
        run = self._open_training()
        if not train(run, self.stop):
            raise Stopped
        duplicate(run.checkpoints / "best.ckpt", self.best)
        state = run.state
        success = f"{state.best_success:.0%}" if state.best_success is not None else "unranked"
        best = f"best is epoch {state.best_epoch} ({success})"
        line = f"{state.epoch} epochs, {state.step} steps; {best}"
        return {"line": line, "files": [str(self.best)], "seconds": round(state.seconds, 2)}

    def _open_training(self) -> Run:
        folder, roots = self.folder / "train", [str(self.data)]
        if (folder / "config.yaml").exists():
            return resume_run(folder, roots=roots)
        return start_run(self.project.replace("dataset", roots=roots), folder)

    def _evaluate(self) -> Facts:
        suite = Suite(self.task, self.seed)
        config = self.project.section("evaluation", EvaluationConfig)
        policy = PolicyFromCheckpoint(self.best)
        tape = Replay(median_demonstration(self.data))
        plan: dict[str, tuple[OpenActor, int]] = {
            "trained policy": (policy, self.eval_episodes),
            "scripted expert": (expert, config.baselines),
            "the policy, pictures blacked out": (
                PolicyFromCheckpoint(self.best, blind=True),
                config.baselines,
            ),
            "doing nothing": (DoNothing, config.baselines),
            "random actions": (RandomActions, config.baselines),
            "a median demonstration replayed": (tape, config.baselines),
        }
        scores = {
            name: evaluate(
                suite, actor, count, workers=self.workers, name=f"evaluate {name}", stop=self.stop
            )
            for name, (actor, count) in plan.items()
        }
        if any(score.episodes < plan[name][1] for name, score in scores.items()):
            raise Stopped
        chosen = choose(scores["trained policy"], max(1, config.pictures))
        films = film(suite, policy, chosen, workers=self.workers, stop=self.stop)
        if self.stop():
            raise Stopped
        pictures = save_pictures(films, self.folder / "pictures")
        return {
            "line": f"success {scores['trained policy']}",
            "files": list(pictures.values()),
            "pictures": pictures,
            "scores": {name: score.to_dict() for name, score in scores.items()},
        }

    def _inspect(self) -> Facts:
        header = verify_digest(self.best)
        weights = [t for t in header.tensors if t.name.startswith("model.")]
        parameters = sum(tensor.numel for tensor in weights)
        size = header.file_bytes / 1e6
        return {"line": f"{parameters / 1e6:.2f} M parameters, {size:.0f} MB, digest verified"}

    def _report(self) -> Facts:
        facts = {
            name: read_json(self.folder / "stages" / f"{name}.json")
            for name in ("record", "validate", "index", "train", "evaluate", "inspect")
        }
        path = write_report(self.folder / "report.html", self._compose(facts))
        return {"line": str(path), "files": [str(path)]}

    def _compose(self, facts: dict[str, Facts]) -> Report:
        pictures = facts["evaluate"]["pictures"]
        scores = {n: Score.from_dict(s) for n, s in facts["evaluate"]["scores"].items()}
        header = read_header(self.best)
        packages = header.meta["packages"]
        seconds = {name: f"{fact['seconds']:.0f} s" for name, fact in facts.items()}
        return Report(
            title=f"Two arms learn to {self.task.name}",
            lead=f"A policy trained on {facts['record']['episodes']} scripted demonstrations, "
            "from pictures, joint angles and an instruction.",
            note="All start from one fixed list of initial states, none of which was recorded or "
            "used to choose the checkpoint. The dark line is the Wilson interval.",
            scores=scores,
            metrics=read_metrics(self.folder / "train" / "metrics.jsonl"),
            contact_sheet=Path(pictures["contact_sheet.png"]).read_bytes(),
            animation=Path(pictures["rollouts.webp"]).read_bytes(),
            tables={
                "Stages": [(n, f"{f['line']} ({seconds[n]})") for n, f in facts.items()],
                "Made with": [
                    ("checkpoint", f"{self.best} (sha256 {header.sha256[:16]}...)"),
                    ("machine", f"{platform.system()} {platform.machine()}"),
                    ("packages", ", ".join(f"{n} {v}" for n, v in packages.items())),
                ],
            },
            commands=self.commands(),
        )

    def commands(self) -> list[str]:
        """The commands that do the same by hand."""
        run = self.folder / "by-hand"
        best = run / "checkpoints" / "best.ckpt"
        seed = ["--seed", self.seed]
        workers = ["--workers", self.workers]
        recorded = ["--task", self.task.name, "--episodes", self.episodes, "--out", self.data]
        lines: list[list[object]] = [
            ["record", *recorded, *seed, *workers, *self.given],
            ["validate", self.data],
            ["index", self.data],
            ["train", "--data", self.data, "--out", run, *seed, *self.given],
            ["eval", best, "--episodes", self.eval_episodes, *seed, *workers],
            ["ckpt-inspect", best],
        ]
        return [shlex.join(["teamvla", *map(str, line)]) for line in lines]


def _facts_in(path: Path, key: str) -> Facts | None:
    """What a finished stage wrote down, if it depended on the same and its files are there."""
    try:
        known = read_json(path)
    except InputError:  # not finished, or spoilt: then it is done again
        return None
    if not isinstance(known, dict) or known.get("key") != key:
        return None
    return known if all(Path(name).exists() for name in known.get("files", [])) else None
