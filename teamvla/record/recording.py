"""A set of episodes: which of them, by how many workers, and what became of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Self

from teamvla.errors import ConfigError, SimulationError
from teamvla.files import check_folder
from teamvla.logs import progress
from teamvla.record.recorder import NO_SUCCESS, Recorded, Recorder, reason
from teamvla.rollout import run_episodes

Executor = Literal["processes", "ray"]


@dataclass(frozen=True)
class Shard:
    """Part ``index`` of ``count`` of a recording: the episodes whose number is that mod count."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """``i/n`` with 0 <= i < n; ConfigError for anything else."""
        first, _, second = text.partition("/")
        if not (first.isdecimal() and second.isdecimal()):
            raise ConfigError("--shard", "i/n such as 0/4", repr(text))
        shard = cls(int(first), int(second))
        if shard.index >= shard.count:
            raise ConfigError(
                "--shard", f"0/{shard.count} to {max(shard.count - 1, 0)}/{shard.count}", text,
                "Shards count from 0: start an array with --array=0-(n-1).",
            )  # fmt: skip
        return shard

    def episodes(self, total: int) -> range:
        """Its share of the episodes 0 .. total - 1."""
        return range(self.index, total, self.count)


@dataclass
class Recording:
    """The sum of a recording.

    Attributes:
        kept: the episodes that are there now, and were asked for.
        failures: how many attempts failed, by the reason.
        new_steps: made by this run.
    """

    kept: list[Recorded] = field(default_factory=list)
    attempts: int = 0
    successes: int = 0
    steps: int = 0
    new_steps: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False

    @property
    def broken(self) -> int:
        """Attempts that were dropped because the expert or the simulator could not go on."""
        return self.failures.total() - self.failures[NO_SUCCESS]

    def count(self, one: Recorded) -> None:
        self.failures.update(one.failures)
        self.attempts += len(one.failures)
        self.new_steps += one.steps
        if one.path is None:
            return
        self.attempts += 1
        self.successes += one.outcome.success
        if not one.outcome.success:
            self.failures[reason(one.outcome)] += 1
        self.kept.append(one)
        self.steps += one.outcome.steps


def record(
    recorder: Recorder,
    episodes: int,
    *,
    shard: Shard = Shard(),
    workers: int = 1,
    executor: Executor = "processes",
    stop: Callable[[], bool] = lambda: False,
) -> Recording:
    """Record the episodes 0 .. ``episodes`` - 1, or a shard of them; those that are there count.

    Raises:
        InputError: an episode of other settings is in the way, or a file.
        EpisodeWriteError: the disk is full.
        SimulationError: the expert fails too often to get there.
    """
    check_folder(recorder.out)
    asked = shard.episodes(episodes)
    total, missing = Recording(), []
    for index in asked:
        if (one := recorder.existing(index)) is not None:
            total.count(one)
        else:
            missing.append(index)
    with progress(f"record {recorder.task_name}", len(asked), "episode") as bar:
        bar.continue_at(len(total.kept))
        for one in _fresh(recorder, missing, workers, executor, stop):
            total.count(one)
            if one.path is None:
                raise _given_up(recorder, total, one)
            bar.advance(success=f"{total.successes}/{total.attempts}")
    total.interrupted = len(total.kept) < len(asked)
    total.kept.sort(key=lambda one: one.index)
    return total


def _fresh(
    recorder: Recorder,
    missing: list[int],
    workers: int,
    executor: Executor,
    stop: Callable[[], bool],
) -> Iterator[Recorded]:
    if not missing:
        return iter(())
    workers = min(workers, len(missing))
    return run_episodes(recorder, missing, workers=workers, stop=stop)


def _given_up(recorder: Recorder, total: Recording, one: Recorded) -> SimulationError:
    return SimulationError(
        f"task {recorder.task_name}, episode {one.index}",
        "an expert that mostly succeeds",
        f"{total.successes} successes in {total.attempts} attempts; "
        f"the last {len(one.failures)} failed, at last: {one.failures[-1]}",
        "Lower record.noise.sigma or the randomisation, or mend the expert.",
    )
