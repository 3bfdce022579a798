"""Which checkpoint is best: rollouts on initial states that nothing else ever uses."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from teamvla import seeds
from teamvla.config import Project, shipped_configs
from teamvla.contract import Contract
from teamvla.errors import ConfigError, ContractError, MissingDependencyError
from teamvla.evaluation.policies import OnOneThread
from teamvla.evaluation.suites import Score, Suite, evaluate, seen_alike
from teamvla.models.base import Policy
from teamvla.models.losses import LossConfig, require_geometry
from teamvla.sim import make_env
from teamvla.sim.tasks import TASKS, TaskConfig
from teamvla.train.trainer import TrainerConfig

Scores = dict[str, Score]
_LOG = logging.getLogger(__name__)


def ranking_tasks(project: Project) -> list[TaskConfig]:
    """The tasks whose rollouts rank the checkpoints.

    They are those of the configurations that ``trainer.rollout_tasks`` names, seen by the
    cameras of section ``task``; what is said of a task in that section itself holds for it.

    Raises:
        InputError: there is no such configuration.
        ConfigError: one of them is wrong.
    """
    own = project.section("task", TaskConfig)
    names = project.section("trainer", TrainerConfig).rollout_tasks
    if names is None:
        return [own]
    others = [name for name in names if name != own.task_name]
    tasks = {name: seen_alike(Project.load(name), project) for name in others}
    return [tasks[name].section("task", TaskConfig) if name in tasks else own for name in names]


def mean_success(scores: Scores) -> float:
    """The mean of the tasks' success rates, each of as many episodes."""
    return sum(score.success_rate for score in scores.values()) / len(scores)


def rank(
    weights: Policy,
    tasks: Sequence[TaskConfig],
    episodes: int,
    *,
    seed: int,
    epoch: int,
    stop: Callable[[], bool] = lambda: False,
) -> Scores | None:
    """The score of each task by its name; None if it was cut short."""
    actor, scores = OnOneThread(weights.eval()), {}
    for task in tasks:
        suite, name = Suite(task, seed, seeds.Domain.SELECT), task.task_name
        shown = f"{name} rollouts of epoch {epoch}"
        score = evaluate(suite, lambda env: actor, episodes, name=shown, stop=stop)
        if score.episodes < episodes:
            return None
        scores[name] = score
    return scores


def simulated_contract(task: TaskConfig) -> Contract:
    """What the numbers of a task's simulator mean."""
    return make_env(task).contract


def require_simulated(project: Project, contract: Contract, shown: Sequence[str]) -> None:
    """Refuse what cannot be rolled out, naming every setting to change.

    Args:
        project: configuration of the training.
        contract: of its data.
        shown: the tasks in its data.

    Raises:
        ContractError: the data are another robot's.
        ConfigError: the data do not show a task that is to be rolled out.
    """
    flags = ["--set trainer.rollout_every=0"]
    try:
        require_geometry(project.section("loss", LossConfig), contract)
    except ContractError:
        flags += ["--set loss.sync=0", "--set loss.collision=0"]
    mend = f"To train without rollouts: {' '.join(flags)}."
    for task in ranking_tasks(project):
        contract.require(simulated_contract(task), "the data", "the simulator", mend)
        if task.task_name not in shown:
            raise ConfigError(
                "task, whose rollouts rank the checkpoints",
                f"one of the data's: {', '.join(shown)}", task.task_name,
                f"Give --task {' --task '.join(shown)}. {mend}",
            )  # fmt: skip


def other_than_simulated(contract: Contract, task: TaskConfig) -> list[str]:
    """How the data's numbers differ from a task's; nothing where it cannot be made here."""
    try:
        return contract.diff(simulated_contract(task))
    except MissingDependencyError:
        return []


def warn_of_unseen_task(project: Project, contract: Contract, shown: Sequence[str]) -> None:
    """Warn if the task that the checkpoint will name is none of the data's.

    Nothing is said of another robot's data beside one of the simulator's tasks, which nobody
    chose: no task of the simulator is theirs.
    """
    task = project.section("task", TaskConfig)
    name, known = task.task_name, [each for each in shown if each in TASKS]
    if name in shown or (name in TASKS and not known):
        return
    difference = other_than_simulated(contract, task)
    if difference and name in TASKS:
        return
    options = [f"--task {each}" for each in known] or [
        f"--config {each}" for each in shown if each in shipped_configs()
    ]
    _LOG.warning(
        "the data show %s, but the configuration's task is %s%s%s",
        ", ".join(shown), name, f", and differ: {'; '.join(difference)}" if difference else "",
        f": give {' '.join(options)}" if options else "",
    )  # fmt: skip
