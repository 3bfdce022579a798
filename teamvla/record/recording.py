"""A set of episodes: which of them, by how many workers, and what became of them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Self

from teamvla.errors import ConfigError, SimulationError
from teamvla.files import check_folder
from teamvla.logs import Progress, progress
from teamvla.record.recorder import MAX_EPISODES, NO_SUCCESS, Recorded, Recorder, reason
from teamvla.record.room import Room
from teamvla.rollout import run_episodes

LOG = logging.getLogger(__name__)
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
        if shard.count < 1:
            raise ConfigError("--shard", "i/n with at least one part", repr(text))
        if shard.index >= shard.count:
            raise ConfigError(
                "--shard", f"0/{shard.count} to {shard.count - 1}/{shard.count}", text,
                "Shards count from 0: start an array with --array=0-(n-1).",
            )  # fmt: skip
        return shard

    def episodes(self, total: int) -> range:
        """Its share of the episodes 0 .. total - 1."""
        return range(self.index, total, self.count)


#: one shard, all of it
WHOLE = Shard()


@dataclass
class Recording:
    """The sum of a recording.

    Attributes:
        kept: the episodes that are there now, and were asked for.
        failures: how many attempts failed, by the reason.
        given_up: numbers of the episodes at which every attempt broke off.
        new_steps: made by this run.
    """

    kept: list[Recorded] = field(default_factory=list)
    attempts: int = 0
    successes: int = 0
    steps: int = 0
    new_steps: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    given_up: list[int] = field(default_factory=list)
    interrupted: bool = False

    @property
    def success_rate(self) -> float:
        """Of all attempts; 0 without any."""
        return self.successes / self.attempts if self.attempts else 0.0

    @property
    def broken(self) -> int:
        """Attempts that were dropped because the expert or the simulator could not go on."""
        return self.failures.total() - self.failures[NO_SUCCESS]

    @property
    def is_hopeless(self) -> bool:
        """Whether an episode was given up, and no attempt at any came to an end."""
        return bool(self.given_up) and self.broken == self.attempts

    def count(self, one: Recorded) -> None:
        self.failures.update(one.failures)
        self.attempts += len(one.failures)
        self.new_steps += one.steps
        if one.path is None:
            self.given_up.append(one.index)
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
    shard: Shard = WHOLE,
    workers: int | None = None,
    executor: Executor = "processes",
    stop: Callable[[], bool] = lambda: False,
) -> Recording:
    """Record the episodes 0 .. ``episodes`` - 1, or a shard of them; those that are there count.

    An episode at which every attempt breaks off is given up. If all attempts at all episodes
    broke off until then, the recording ends there: ``is_hopeless``.

    Args:
        recorder: what to record, and into which folder.
        shard: several may be recorded into one folder at once.
        workers: processes; 1 by default, and all processors of a Ray cluster.
        executor: ``processes`` of this machine or ``ray``, a cluster that runs already.
        stop: polled before an episode starts; those under way are finished.

    Raises:
        ConfigError: more episodes than a seed has, or an expert that cannot be had.
        InputError: an episode of other settings is in the way, or a file; or the disk has too
            little room.
        EpisodeWriteError: the disk is full.
        SimulationError: the expert goes on to the end, and too often without success.
    """
    if not 1 <= episodes <= MAX_EPISODES:
        raise ConfigError("--episodes", f"1 to {MAX_EPISODES}", str(episodes))
    check_folder(recorder.out)
    asked = shard.episodes(episodes)
    there = [one for index in asked if (one := recorder.existing(index)) is not None]
    found = {one.index for one in there}
    missing = [index for index in asked if index not in found]
    total = Recording()
    for one in there:
        total.count(one)
    if missing:
        with progress(f"record {recorder.task_name}", len(asked), "episode") as bar:
            bar.continue_at(len(there))
            on_step = _Steps(bar, total)
            run = partial(_run, recorder, missing, workers, executor, stop, on_step)
            _count_all(recorder, total, bar, _checked_for_room(recorder, there, missing, run))
    done = len(total.kept) + len(total.given_up)
    total.interrupted = done < len(asked) and not total.is_hopeless
    total.kept.sort(key=lambda one: one.index)
    return total


class _Steps:
    """Shows the steps of the episode under way: a long one would look like one that hangs."""

    def __init__(self, bar: Progress, total: Recording) -> None:
        self._bar, self._total = bar, total
        self._before, self._steps = 0, 0

    def __call__(self) -> None:
        if self._before != self._total.attempts:
            self._before, self._steps = self._total.attempts, 0
        self._steps += 1
        self._bar.advance(0, steps=str(self._total.new_steps + self._steps))


def _count_all(
    recorder: Recorder, total: Recording, bar: Progress, results: Iterator[Recorded]
) -> None:
    for one in results:
        total.count(one)
        if one.path is None and NO_SUCCESS in one.failures:
            raise _without_success(recorder, total, one)
        if total.is_hopeless:
            return
        bar.advance(success=f"{total.successes}/{total.attempts}", steps=str(total.new_steps))


def _checked_for_room(
    recorder: Recorder,
    there: list[Recorded],
    missing: list[int],
    run: Callable[[], Iterator[Recorded]],
) -> Iterator[Recorded]:
    """Run what is missing; the disk is measured against what is there, else the first episode."""
    room = Room(recorder.out, len(missing))
    path = next((one.path for one in there), None)
    if path is not None:
        room.require(path)
    else:
        env, _ = recorder.open_env()  # what is wrong with it shows before any worker starts
        with closing(env):
            room.announce(env)
            if recorder.config.noise.sigma and not recorder.is_noisy(env):
                told = "%s: no noise is laid over its commands, which are no joint positions"
                LOG.info(told, recorder.task_name)
    for done, one in enumerate(run(), 1):
        yield one
        if path is None and one.path is not None and done < len(missing):
            path = one.path
            room.require(path, done)


def _run(
    recorder: Recorder,
    missing: list[int],
    workers: int | None,
    executor: Executor,
    stop: Callable[[], bool],
    on_step: Callable[[], None],
) -> Iterator[Recorded]:
    if executor == "processes":
        workers = min(workers or 1, len(missing))
        open_worker = recorder if workers > 1 else partial(recorder, on_step)
        return run_episodes(open_worker, missing, workers=workers, stop=stop)
    from teamvla.record.ray_cluster import run_on_ray

    # Nodes have current folders of their own.
    shared = replace(recorder, out=recorder.out.absolute())
    return run_on_ray(shared, missing, workers=workers, stop=stop)


def _without_success(recorder: Recorder, total: Recording, one: Recorded) -> SimulationError:
    return SimulationError(
        f"task {recorder.task_name}, episode {one.index}",
        "an expert that mostly succeeds",
        f"{total.successes} successes in {total.attempts} attempts; "
        f"the last {len(one.failures)} failed, at last: {one.failures[-1]}",
        "Lower record.noise or the randomisation, mend the expert, or record what fails as well "
        "(--keep-failures).",
    )
