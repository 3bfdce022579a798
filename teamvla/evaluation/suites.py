"""Closed-loop evaluation on a fixed list of initial states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from teamvla import seeds
from teamvla.config import Settings
from teamvla.evaluation.statistics import show_rate, wilson_interval
from teamvla.logs import progress
from teamvla.rollout import Actor, rollout, run_episodes
from teamvla.sim import RobotEnv, make_env
from teamvla.sim.perturbations import perturbed
from teamvla.sim.tasks import TaskConfig

#: makes the actor that plays in one worker's environment; picklable if workers > 1
OpenActor = Callable[[RobotEnv], Actor]


class EvaluationConfig(Settings):
    """Section ``evaluation``."""

    episodes: int = Field(default=100, gt=0, description="Initial states to try.")
    workers: int = Field(default=1, gt=0, description="Processes; results are the same.")
    baselines: int = Field(default=20, gt=0, description="States per baseline in the quickstart.")
    pictures: int = Field(default=6, ge=0, description="Episodes shown in the contact sheet.")


@dataclass(frozen=True)
class Trial:
    """One episode of an evaluation.

    ``index`` names its initial state within the suite; ``failure`` says what the simulator could
    not go on with, if that ended it.
    """

    index: int
    success: bool
    steps: int
    reward: float
    failure: str | None = None


@dataclass(frozen=True)
class Suite:
    """A fixed list of initial states: (task, seed, domain) and the indices 0, 1, 2, ...

    ``perturbations`` are pairs of name and strength, all at once. They change no initial
    state beyond what they are named after.
    """

    task: TaskConfig
    seed: int = 0
    domain: seeds.Domain = seeds.Domain.EVALUATE
    perturbations: tuple[tuple[str, float], ...] = ()

    def open(self, render_mode: str | None = None) -> RobotEnv:
        """The environment to play in."""
        return perturbed(make_env(self.task, render_mode), dict(self.perturbations))

    def reset_seed(self, index: int) -> int:
        return seeds.reset_seed(self.seed, self.domain, index)


@dataclass(frozen=True)
class Score:
    """The result of one actor on a suite."""

    trials: tuple[Trial, ...]

    @property
    def episodes(self) -> int:
        return len(self.trials)

    @property
    def successes(self) -> int:
        return sum(trial.success for trial in self.trials)

    @property
    def success_rate(self) -> float:
        return self.successes / self.episodes if self.trials else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the success rate."""
        return wilson_interval(self.successes, self.episodes)

    @property
    def mean_steps_to_success(self) -> float | None:
        steps = [trial.steps for trial in self.trials if trial.success]
        return sum(steps) / len(steps) if steps else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "success_rate": self.success_rate,
            "successes": self.successes,
            "episodes": self.episodes,
            "interval_95": list(self.interval),
            "mean_steps_to_success": self.mean_steps_to_success,
            "trials": [asdict(trial) for trial in self.trials],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Score:
        return cls(tuple(Trial(**trial) for trial in data["trials"]))

    def __str__(self) -> str:
        return show_rate(self.successes, self.episodes)


@dataclass(frozen=True)
class _Worker:
    suite: Suite
    open_actor: OpenActor

    def __call__(self) -> Callable[[int], Trial]:
        env = self.suite.open()
        actor = self.open_actor(env)

        def run(index: int) -> Trial:
            outcome = rollout(env, actor, self.suite.reset_seed(index))
            return Trial(index, **asdict(outcome))

        return run


def evaluate(
    suite: Suite,
    open_actor: OpenActor,
    episodes: int,
    *,
    workers: int = 1,
    name: str = "evaluate",
    stop: Callable[[], bool] = lambda: False,
) -> Score:
    """Play the suite's first ``episodes`` initial states; shorter if ``stop`` turns true."""
    trials: list[Trial] = []
    workers = min(workers, episodes)
    with progress(name, episodes, "episode") as bar:
        worker = _Worker(suite, open_actor)
        for trial in run_episodes(worker, range(episodes), workers=workers, stop=stop):
            trials.append(trial)
            wins = sum(one.success for one in trials)
            bar.advance(success=f"{wins}/{len(trials)}")
    return Score(tuple(trials))
