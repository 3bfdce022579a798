"""Runs anything with ``reset`` and ``act`` in an environment.

Recording, evaluation and checkpoint selection all go through :func:`rollout`, one
episode, and :func:`run_episodes`, many of them on several workers. What an episode
does depends on its own seed alone, so results are the same for any worker count.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

Observation = dict[str, Any]
T = TypeVar("T")


class Actor(Protocol):
    """A policy as the rollout sees it: learned, scripted or random."""

    def reset(self) -> None:
        """Forget the last episode; the environment has been reset before."""

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        """One command per arm, float32[joints + 1] each, gripper last, in contract units."""


class Environment(Protocol):
    """The part of a Gymnasium environment that a rollout uses."""

    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, Any]]: ...

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]: ...


@dataclass(frozen=True)
class Tick:
    """One control tick: what was seen, what was commanded from it, and what came of it."""

    index: int
    observation: Observation
    action: Sequence[np.ndarray]
    reward: float
    success: bool


@dataclass(frozen=True)
class Outcome:
    """How one episode ended. ``steps`` is the steps to success where it succeeded."""

    success: bool
    steps: int
    reward: float


def rollout(
    env: Environment,
    actor: Actor,
    reset_seed: int,
    *,
    perturb: Callable[[np.ndarray], np.ndarray] | None = None,
    on_reset: Callable[[Observation], None] | None = None,
    on_tick: Callable[[Tick], None] | None = None,
) -> Outcome:
    """Run one episode until the environment ends it.

    Args:
        reset_seed: decides the initial state (``teamvla.seeds.reset_seed``).
        perturb: changes the joined command on its way to the environment; what
            ``on_tick`` sees is the clean command.
        on_reset: sees the first observation, with ``instruction`` and ``task`` in it.
        on_tick: sees every tick.
    """
    observation, info = env.reset(seed=reset_seed)
    words: Observation = {key: info[key] for key in ("instruction", "task") if key in info}
    actor.reset()
    if on_reset is not None:
        on_reset({**observation, **words})
    total, steps, ended, truncated = 0.0, 0, False, False
    while not (ended or truncated):
        seen = {**observation, **words}
        action = actor.act(seen)
        joined = np.concatenate(action)
        observation, reward, ended, truncated, info = env.step(
            joined if perturb is None else perturb(joined)
        )
        if on_tick is not None:
            on_tick(Tick(steps, seen, action, float(reward), bool(info["success"])))
        total += float(reward)
        steps += 1
    return Outcome(ended, steps, total)


def run_episodes(
    open_worker: Callable[[], Callable[[int], T]],
    indices: Iterable[int],
    *,
    workers: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[T]:
    """Run episodes ``indices`` and yield their results in that order.

    Args:
        open_worker: called once in each worker process (it is pickled; in the calling process when
            ``workers`` is 1); returns the function that runs one episode.
        workers: number of processes.
        stop: polled before an episode starts; episodes under way are finished.
    """
    if workers <= 1:
        run = open_worker()
        for index in indices:
            if stop():
                return
            yield run(index)
        return
    # Forking a process that has threads (torch has) may deadlock, so workers start afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _open_in_process, (open_worker,)) as pool:
        yield from _in_order(pool, list(indices), workers, stop)


def _in_order(
    pool: ProcessPoolExecutor, indices: list[int], workers: int, stop: Callable[[], bool]
) -> Iterator[Any]:
    """Keep the workers busy without running far ahead of a stop."""
    waiting: list[Future[Any]] = []
    upcoming = iter(indices)
    for index in upcoming:
        waiting.append(pool.submit(_run_in_process, index))
        if len(waiting) >= 2 * workers:
            yield waiting.pop(0).result()
        if stop():
            break
    for future in waiting:
        if not (stop() and future.cancel()):
            yield future.result()


_run: Callable[[int], Any] | None = None


def _open_in_process(open_worker: Callable[[], Callable[[int], Any]]) -> None:
    global _run
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to stop
    _run = open_worker()


def _run_in_process(index: int) -> Any:
    assert _run is not None
    return _run(index)
