"""``teamvla eval``: closed-loop rollouts of a checkpoint, or of anything else that acts."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teamvla.cli.console import Result, Style
from teamvla.cli.options import (
    Config,
    Device,
    EnvId,
    Seed,
    Set,
    TaskName,
    Workers,
    command_line,
    load_task,
    out_option,
    stands_alone,
)
from teamvla.errors import ConfigError
from teamvla.files import check_folder, write_json
from teamvla.interrupts import graceful_stop

LOG = logging.getLogger(__name__)
#: reasons of episodes that broke off that are printed
_SHOWN = 3

if TYPE_CHECKING:
    from teamvla.config import Project
    from teamvla.evaluation.comparison import Comparison
    from teamvla.evaluation.suites import OpenActor, Score, Suite


def evaluate(
    checkpoint: Annotated[
        Path | None, typer.Argument(metavar="[CKPT]", help="A checkpoint file.")
    ] = None,
    actor: Annotated[
        str | None,
        typer.Option(
            "--actor",
            metavar="NAME",
            help="In place of a checkpoint: expert, nothing, random or MODULE:CLASS.",
        ),
    ] = None,
    task: TaskName = None,
    env: EnvId = None,
    perturb: Annotated[
        list[str] | None,
        typer.Option(
            "--perturb",
            metavar="NAME[=STRENGTH]",
            help="Play the same states again, made harder; repeatable, A+B is both at once, "
            "all is each that fits, alone.",
        ),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", "-n", min=1, help="Initial states to try.")
    ] = None,
    seed: Seed = None,
    workers: Workers = None,
    out: Annotated[
        Path | None,
        out_option("a folder beside the checkpoint, named after task, seed, number and changes"),
    ] = None,
    device: Device = None,
    min_success: Annotated[
        float | None,
        typer.Option("--min-success", min=0, max=1, help="Exit with 1 if the rate is lower."),
    ] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures/--no-pictures",
            help="Draw a contact sheet and an animation, if there is a report.",
        ),
    ] = True,
    config: Config = None,
    set_: Set = None,
) -> Result:
    """Roll a checkpoint out from a fixed list of unseen initial states.

    The states are never shared with recording or with the ranking of checkpoints,
    and results do not depend on the number of workers. Without --task, --env and --config it
    is the task that the checkpoint was trained for. An actor that raises, or commands no
    finite numbers, fails that episode and gives exit code 1; where it does so under a
    perturbation alone, it is counted only. Physics that diverges is a failed episode.
    """
    who, project, where = _who(checkpoint, actor, (task, env, config), device, set_)
    asked = {"config": config, "env": env, "perturb": perturb or [], "overrides": set_ or []}
    plan = _plan(who, project, where, checkpoint, actor, asked, episodes, seed, workers, out)
    if not pictures:
        plan = replace(plan, pictures=0)
    with graceful_stop() as stop:
        outcome = plan.run(lambda: bool(stop))
    data = {**outcome.data, "min_success": min_success}
    if outcome.score.episodes < plan.episodes or len(outcome.compared) < len(plan.changes):
        again = command_line(
            "eval", *([] if checkpoint is None else [checkpoint]), actor=actor, task=task,
            env=env, perturb=perturb, episodes=episodes, seed=seed, workers=workers, out=out,
            device=device, min_success=min_success, config=config, set_=set_,
        )  # fmt: skip
        return Result(
            "teamvla.eval/1",
            data | {"out": None},
            human=lambda style: f"{style.bold('stopped')}   {outcome.score}; no report was written",
            next_command=again if pictures else f"{again} --no-pictures",
            exit_code=stop.exit_code,
        )
    return Result(
        "teamvla.eval/1",
        data,
        human=lambda style: _text(style, outcome, data),
        next_command=command_line("ckpt-inspect", checkpoint) if checkpoint else None,
        exit_code=stop.exit_code or int(_failed(outcome.score, min_success)),
    )


@dataclass(frozen=True)
class Outcome:
    """What an evaluation found; ``compared`` holds a row per perturbation."""

    score: Score
    compared: dict[str, Comparison]
    data: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """An evaluation that can be run: who plays, where, how often, and what is made harder."""

    actor: OpenActor
    suite: Suite
    changes: dict[str, dict[str, float]]
    episodes: int
    workers: int
    pictures: int
    folder: Path | None
    facts: dict[str, Any]

    def run(self, stop: Callable[[], bool]) -> Outcome:
        """Play every episode; the numbers are written before the pictures, which take time."""
        from teamvla.evaluation.comparison import Comparison
        from teamvla.evaluation.suites import evaluate as evaluate_closed_loop

        def play(suite: Suite, name: str) -> Score:
            return evaluate_closed_loop(
                suite, self.actor, self.episodes, workers=self.workers, name=name, stop=stop
            )

        score, compared = play(self.suite, "evaluate"), {}
        for name, strengths in self.changes.items():
            if stop():
                break
            harder = play(replace(self.suite, perturbations=tuple(strengths.items())), name)
            if harder.episodes == self.episodes:
                compared[name] = Comparison(score, harder)
        data = self.facts | score.to_dict() | {"out": None, "pictures": {}}
        data["perturbations"] = {
            name: {"strengths": self.changes[name], **one.to_dict()}
            for name, one in compared.items()
        }
        if score.episodes == self.episodes and len(compared) == len(self.changes):
            self._write(score, data, stop)
        return Outcome(score, compared, data)

    def _write(self, score: Score, data: dict[str, Any], stop: Callable[[], bool]) -> None:
        from teamvla.evaluation.pictures import choose, film, remove_pictures, save_pictures

        if self.folder is None:
            return
        data["out"] = str(self.folder)
        remove_pictures(self.folder)
        write_json(self.folder / "report.json", data)
        if self.pictures:
            chosen = choose(score, self.pictures)
            films = film(self.suite, self.actor, chosen, workers=self.workers, stop=stop)
            if not stop():
                data["pictures"] = save_pictures(films, self.folder)
                write_json(self.folder / "report.json", data)


def _plan(
    who: OpenActor, project: Project, where: Project, checkpoint: Path | None, actor: str | None,
    asked: dict[str, Any], episodes: int | None, seed: int | None, workers: int | None,
    out: Path | None,
) -> Plan:  # fmt: skip
    from teamvla.evaluation.suites import EvaluationConfig, Suite
    from teamvla.sim.tasks import TaskConfig

    config = project.section("evaluation", EvaluationConfig)
    suite = Suite(where.section("task", TaskConfig), 0 if seed is None else seed)
    changes = _changes(asked["perturb"], suite)
    episodes, name = episodes or config.episodes, suite.task.task_name
    if out is None and checkpoint is not None:
        stem = f"eval_{checkpoint.stem}_{name}_s{suite.seed}_n{episodes}"
        out = checkpoint.parent / f"{stem}{_mark(asked)}"
    folder = None if out is None else check_folder(out)
    facts: dict[str, Any] = {"checkpoint": str(checkpoint) if checkpoint else None, "actor": actor}
    facts |= {"task": name, "seed": suite.seed, **asked}
    return Plan(
        who, suite, changes, episodes, workers or config.workers, config.pictures, folder, facts
    )


def _mark(asked: dict[str, Any]) -> str:
    """What tells an evaluation under other settings from the plain one of the same task."""
    if not any(asked.values()):
        return ""
    return "_" + sha256(json.dumps(asked, sort_keys=True).encode("utf-8")).hexdigest()[:6]


def _who(
    checkpoint: Path | None, actor: str | None, chosen: tuple[str | None, str | None, str | None],
    device: str | None, set_: list[str] | None,
) -> tuple[OpenActor, Project, Project]:  # fmt: skip
    """Who acts, the configuration of the evaluation, and that of the task.

    ``chosen`` are --task, --env and --config.
    """
    from teamvla.evaluation.policies import NamedActor, PolicyFromCheckpoint

    if actor is not None:
        others = {"a checkpoint": checkpoint, "--device": device}
        expected = "no checkpoint and no --device beside it"
        stands_alone("--actor", expected, "Give one of both.", others)
        named, project = NamedActor(actor), load_task(*chosen, set_)
        return named, project, project
    if checkpoint is None:
        raise ConfigError("eval", "a checkpoint, or --actor", "neither", "See teamvla eval -h.")
    from teamvla.models.device import resolve_device

    on = str(resolve_device("cpu" if device is None else device))
    policy = PolicyFromCheckpoint(checkpoint, on, tuple(set_ or ()))
    project = policy.project()
    where = _where(project, chosen, set_)
    _warn_of_unseen_task(policy.tasks(), where)
    return policy, project, where


def _where(
    project: Project, chosen: tuple[str | None, str | None, str | None], set_: list[str] | None
) -> Project:
    """The configuration of the task that a checkpoint's policy is asked to do.

    A task that is named alone is seen through the policy's own cameras.
    """
    from teamvla.evaluation.suites import seen_alike

    task, env, config = chosen
    if env is not None or config is not None:
        return load_task(*chosen, set_)
    return project if task is None else seen_alike(load_task(*chosen), project).override(set_ or ())


def _warn_of_unseen_task(shown: Sequence[str], where: Project) -> None:
    from teamvla.sim.tasks import TaskConfig

    name = where.section("task", TaskConfig).task_name
    if shown and name not in shown:
        LOG.warning("the policy never saw the task %s: its data show %s", name, ", ".join(shown))


def _changes(asked: list[str], suite: Suite) -> dict[str, dict[str, float]]:
    """Strengths of each row, by what was asked for.

    Raises:
        ConfigError: a perturbation does not fit, which is told before the first episode.
    """
    from teamvla.sim.perturbations import (
        PERTURBATIONS,
        fitting,
        parse_perturbations,
        perturbed,
    )

    if not asked:
        return {}
    with closing(suite.open()) as env:
        all_that_fit = fitting(env)
        rows = [name for text in asked for name in (all_that_fit if text == "all" else [text])]
        changes = {name: parse_perturbations(name) for name in rows}
        for strengths in changes.values():
            perturbed(env, strengths)
    if "all" in asked and (others := [n for n in PERTURBATIONS if n not in all_that_fit]):
        LOG.info("left out of all, because they do not fit: %s", ", ".join(others))
    return changes


def _failed(score: Score, minimum: float | None) -> bool:
    return score.broken > 0 or _below(score, minimum)


def _below(score: Score, minimum: float | None) -> bool:
    return minimum is not None and score.success_rate < minimum


def _text(style: Style, outcome: Outcome, data: dict[str, Any]) -> str:
    score, minimum = outcome.score, data["min_success"]
    verdict = style.red if _below(score, minimum) else style.green
    lines = [
        f"{style.bold('task')}      {data['task']}",
        f"{style.bold('success')}   {verdict(str(score))}",
    ]
    if minimum is not None:
        lines.append(f"{style.bold('asked')}     at least {100 * minimum:.1f} %")
    if score.mean_steps_to_success is not None:
        lines.append(
            f"{style.bold('steps')}     {score.mean_steps_to_success:.1f} to success, on average"
        )
    if score.mean_return is not None:
        lines.append(f"{style.bold('return')}    {score.mean_return:.2f} on average")
    failures = Counter(trial.failure for trial in score.trials if trial.failure)
    for said, count in failures.most_common(_SHOWN):
        lines.append(style.red(f"broke off {count} x: {said}"))
    lines += _table(style, outcome)
    if data["actor"] == "expert" and outcome.compared:
        lines.append(
            style.dim(
                "the expert reads no words and sees no pictures: spoiling them does not change it"
            )
        )
    if data["out"]:
        lines.append(f"{style.bold('report')}    {Path(data['out']) / 'report.json'}")
    else:
        lines.append(style.dim("no report: give --out DIR"))
    lines += [f"{style.bold('picture')}   {path}" for path in data["pictures"].values()]
    return "\n".join(lines)


def _table(style: Style, outcome: Outcome) -> list[str]:
    """A row per perturbation, each against the same states without it."""
    if not outcome.compared:
        return []
    width = max(map(len, outcome.compared))
    head = f"{'perturbation':<{max(width, 12)}}  success  change  95 % interval   lost  won      p"
    lines = ["", style.bold(head)]
    for name, one in outcome.compared.items():
        low, high = one.interval
        change = f"{100 * one.difference:+6.1f}  {100 * low:+6.1f}..{100 * high:+6.1f}"
        counts = f"{one.lost:>5}{one.gained:>5}{one.p_value:>7.3f}"
        row = f"{name:<{max(width, 12)}}  {100 * one.score.success_rate:6.1f}  {change}  {counts}"
        lines.append(style.red(row) if high < 0 else row)
    return [*lines, ""]
