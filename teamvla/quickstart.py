"""The whole path once: record, validate, index, train, evaluate, inspect, report.

Each stage writes down what came of it and what it depended on. Run again, a stage
whose inputs are the same is not repeated.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teamvla.checkpoint import read_header, verify_digest
from teamvla.config import Project
from teamvla.data import build_index, validate_roots
from teamvla.errors import EpisodeError, InputError
from teamvla.evaluation.baselines import DoNothing, RandomActions, expert
from teamvla.evaluation.pictures import choose, film, save_pictures
from teamvla.evaluation.policies import PolicyFromCheckpoint
from teamvla.evaluation.report import Report, write_report
from teamvla.evaluation.suites import EvaluationConfig, OpenActor, Score, Suite, evaluate
from teamvla.files import canonical_json, duplicate, read_json, write_json
from teamvla.record import RecordConfig, Recorder, record
from teamvla.sim.tasks import TaskConfig
from teamvla.train.bc_trainer import train
from teamvla.train.journal import read_metrics
from teamvla.train.runs import Run, resume_run, settled, start_run

_LOG = logging.getLogger(__name__)
Facts = dict[str, Any]


#: what may change between the sittings of one training
_FREE = ("device", "log_level", "data_root", "record", "evaluation")


class Stopped(Exception):
    """A signal ended a stage; what is finished stays."""


@dataclass(frozen=True)
class Quickstart:
    """One quickstart.

    Attributes:
        folder: everything lies in it: ``data/``, ``train/``, ``best.ckpt``, ``report.html``.
        episodes: demonstrations to record.
        eval_episodes: initial states to evaluate on.
    """

    folder: Path
    project: Project
    episodes: int = 100
    eval_episodes: int = 100
    workers: int = 2
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
        facts: dict[str, Facts] = {}
        key = ""
        for number, (name, work) in enumerate(stages.items(), 1):
            key = self._key(name, key)
            facts[name], reused = self._stage(name, key, work)
            said = f"{facts[name]['line']}, {facts[name]['seconds']:.0f} s"
            again = " (done before)" if reused else ""
            _LOG.info("[%d/%d] %-9s %s%s", number, len(stages), name, said, again)
        return facts

    def _key(self, stage: str, before: str) -> str:
        """Digest of all that a stage depends on."""
        settings = {**self.project.resolved(), "stage": stage, "before": before}
        counts = [self.episodes, self.eval_episodes]
        return hashlib.sha256(canonical_json([settings, counts])).hexdigest()

    def _stage(self, name: str, key: str, work: Callable[[], Facts]) -> tuple[Facts, bool]:
        path = self.folder / "stages" / f"{name}.json"
        known = _facts_in(path, key)
        if known is not None:
            return known, True
        if self.stop():
            raise Stopped
        began = time.perf_counter()
        facts = work()
        facts = {**facts, "key": key, "seconds": round(time.perf_counter() - began, 2)}
        write_json(path, facts)
        return facts, False

    def _record(self) -> Facts:
        config = self.project.section("record", RecordConfig)
        recorder = Recorder(self.task, config, self.data, self.seed)
        total = record(recorder, self.episodes, workers=self.workers, stop=self.stop)
        if total.interrupted:
            raise Stopped
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
        index = build_index([self.data])
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
        return {"line": line, "files": [str(self.best)], "state": state.to_dict()}

    def _open_training(self) -> Run:
        """The training in the folder, continued; InputError if it is one of other settings."""
        folder, roots = self.folder / "train", [str(self.data)]
        project = self.project.replace("dataset", roots=roots)
        if not (folder / "config.yaml").exists():
            return start_run(project, folder)
        run = resume_run(folder, roots=roots)
        given, wanted = run.meta["config"], settled(project).resolved()
        other = [key for key in wanted if key not in _FREE and given.get(key) != wanted[key]]
        if other:
            raise InputError(
                str(folder),
                "to continue a training with the same settings",
                f"one with other {', '.join(other)}",
                "Choose another --out, or remove it.",
            )
        return run

    def _evaluate(self) -> Facts:
        suite = Suite(self.task, self.seed)
        config = self.project.section("evaluation", EvaluationConfig)
        policy = PolicyFromCheckpoint(self.best)
        plan: dict[str, tuple[OpenActor, int]] = {
            "trained policy": (policy, self.eval_episodes),
            "scripted expert": (expert, config.baselines),
            "the policy, pictures blacked out": (
                PolicyFromCheckpoint(self.best, blind=True),
                config.baselines,
            ),
            "doing nothing": (DoNothing, config.baselines),
            "random actions": (RandomActions, config.baselines),
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
        pictures = save_pictures(film(suite, policy, chosen), self.folder / "pictures")
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
            name: json.loads((self.folder / "stages" / f"{name}.json").read_text())
            for name in ("record", "train", "evaluate", "inspect")
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
            note="Every actor starts from the same fixed initial states, none of which was "
            "recorded or used to choose the checkpoint. The dark line is the Wilson interval.",
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
        return [
            f"teamvla record --task {self.task.name} --episodes {self.episodes} "
            f"--out {self.data} --seed {self.seed} --workers {self.workers}",
            f"teamvla validate {self.data}",
            f"teamvla index {self.data}",
            f"teamvla train --data {self.data} --out {run} --seed {self.seed}",
            f"teamvla eval {run}/checkpoints/best.ckpt --episodes {self.eval_episodes} "
            f"--seed {self.seed} --workers {self.workers}",
            f"teamvla ckpt-inspect {run}/checkpoints/best.ckpt",
        ]


def _facts_in(path: Path, key: str) -> Facts | None:
    """What a finished stage wrote down, if it depended on the same and its files are there."""
    try:
        known = read_json(path)
    except InputError:  # not finished, or spoilt: then it is done again
        return None
    if not isinstance(known, dict) or known.get("key") != key:
        return None
    return known if all(Path(name).exists() for name in known.get("files", [])) else None
