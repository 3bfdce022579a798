"""``teamvla eval``: closed-loop rollouts of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from teamvla.cli.console import Result, Style
from teamvla.cli.options import Checkpoint, Device, Seed, Set, Workers, command_line, out_option
from teamvla.files import check_folder, write_json
from teamvla.interrupts import graceful_stop

if TYPE_CHECKING:
    from teamvla.evaluation.suites import Score


def evaluate(
    checkpoint: Checkpoint,
    episodes: Annotated[
        int | None, typer.Option("--episodes", "-n", min=1, help="Initial states to try.")
    ] = None,
    seed: Seed = None,
    workers: Workers = None,
    out: Annotated[Path | None, out_option("a folder beside the checkpoint")] = None,
    device: Device = None,
    min_success: Annotated[
        float | None,
        typer.Option("--min-success", min=0, max=1, help="Exit with 1 if the rate is lower."),
    ] = None,
    set_: Set = None,
) -> Result:
    """Roll a checkpoint out from a fixed list of unseen initial states.

    The states are never shared with recording or with the ranking of checkpoints,
    and results do not depend on the number of workers.
    """
    from teamvla.evaluation.pictures import choose, film, remove_pictures, save_pictures
    from teamvla.evaluation.policies import PolicyFromCheckpoint
    from teamvla.evaluation.suites import EvaluationConfig, Suite
    from teamvla.evaluation.suites import evaluate as evaluate_closed_loop
    from teamvla.models.device import resolve_device
    from teamvla.sim.tasks import TaskConfig

    where = str(resolve_device("cpu" if device is None else device))
    actor = PolicyFromCheckpoint(checkpoint, where, tuple(set_ or ()))
    project = actor.project()
    config = project.section("evaluation", EvaluationConfig)
    suite = Suite(project.section("task", TaskConfig), seed if seed is not None else 0)
    episodes = episodes or config.episodes
    folder = check_folder(
        out or checkpoint.parent / f"eval_{checkpoint.stem}_s{suite.seed}_n{episodes}"
    )
    workers = workers or config.workers
    with graceful_stop() as stop:
        score = evaluate_closed_loop(
            suite, actor, episodes, workers=workers, stop=lambda: bool(stop)
        )
        data: dict[str, Any] = {"checkpoint": str(checkpoint), "task": suite.task.name}
        data |= {"seed": suite.seed, **score.to_dict(), "min_success": min_success}
        data |= {"out": str(folder), "pictures": {}}
        if score.episodes < episodes:
            return Result(
                "teamvla.eval/1",
                data | {"out": None},
                human=lambda style: f"{style.bold('stopped')}   {score}; no report was written",
                next_command=command_line(
                    "eval", checkpoint, episodes=episodes, seed=seed, workers=workers, out=out,
                    device=device, min_success=min_success, set_=set_,
                ),
                exit_code=stop.exit_code,
            )  # fmt: skip
        # The numbers are safe before the pictures, which take time and can be made again.
        remove_pictures(folder)
        write_json(folder / "report.json", data)
        if config.pictures:
            chosen = choose(score, config.pictures)
            films = film(suite, actor, chosen, workers=workers, stop=lambda: bool(stop))
            if not stop:
                data["pictures"] = save_pictures(films, folder)
                write_json(folder / "report.json", data)
    return Result(
        "teamvla.eval/1",
        data,
        human=lambda style: _text(style, score, folder, data["pictures"], min_success),
        next_command=command_line("ckpt-inspect", checkpoint),
        exit_code=stop.exit_code or int(_below(score, min_success)),
    )


def _below(score: Score, minimum: float | None) -> bool:
    return minimum is not None and score.success_rate < minimum


def _text(
    style: Style, score: Score, folder: Path, pictures: dict[str, Any], minimum: float | None
) -> str:
    verdict = style.red if _below(score, minimum) else style.green
    lines = [f"{style.bold('success')}   {verdict(str(score))}"]
    if minimum is not None:
        lines.append(f"{style.bold('asked')}     at least {100 * minimum:.1f} %")
    if score.mean_steps_to_success is not None:
        lines.append(
            f"{style.bold('steps')}     {score.mean_steps_to_success:.0f} to success, on average"
        )
    lines.append(f"{style.bold('report')}    {folder / 'report.json'}")
    lines += [f"{style.bold('picture')}   {path}" for path in pictures.values()]
    return "\n".join(lines)
