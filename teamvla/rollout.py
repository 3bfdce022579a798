"""Runs anything with ``reset`` and ``act`` in an environment.

Recording, evaluation and checkpoint selection all go through :func:`rollout`, one
episode, and :func:`run_episodes`, many of them on several workers. What an episode
does depends on its own seed alone, so results are the same for any worker count.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Protocol, SupportsFloat, TypeVar

import numpy as np

from teamvla.errors import SimulationError, TeamVLAError
from teamvla.interrupts import held_back

LOG = logging.getLogger(__name__)
Observation = dict[str, Any]
T = TypeVar("T")


class Actor(Protocol):
    """A policy as the rollout sees it: learned, scripted or random."""

    def reset(self) -> None:
        """Forget the last episode; the environment has been reset before."""

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        """One command per arm, float32[joints + 1] each, gripper last, in contract units.

        Behind them comes one value per action signal of the contract.
        """


class Environment(Protocol):
    """The part of a Gymnasium environment that a rollout uses."""

    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, Any]]: ...

    def step(
        self, action: np.ndarray
    ) -> tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]: ...


@dataclass(frozen=True)
class Tick:
    """One control tick: what was seen, what was commanded from it, and what came of it.

    ``info`` is the environment's, as it came with the observation.
    """

    index: int
    observation: Observation
    action: Sequence[np.ndarray]
    reward: float
    success: bool
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How one episode ended.

    Attributes:
        success: whether the environment ended it as one.
        steps: taken; to success, where it succeeded.
        reward: summed.
        failure: what the simulator or an expert could not go on with, if that ended it.
    """

    success: bool
    steps: int
    reward: float
    failure: str | None = None


def rollout(
    env: Environment,
    actor: Actor,
    reset_seed: int,
    *,
    perturb: Callable[[np.ndarray], np.ndarray] | None = None,
    on_reset: Callable[[Observation], None] | None = None,
    on_tick: Callable[[Tick], None] | None = None,
) -> Outcome:
    """Run one episode until the environment ends it, or nobody can go on.

    Args:
        reset_seed: decides the initial state (``teamvla.seeds.reset_seed``).
        perturb: changes the joined command on its way to the environment; what
            ``on_tick`` sees is the clean command.
        on_reset: sees the first observation, with ``instruction`` and ``task`` in it.
        on_tick: sees every tick.
    """
    observation, info = env.reset(seed=reset_seed)
    words = _words(info)
    actor.reset()
    if on_reset is not None:
        on_reset({**observation, **words})
    total, steps, over = 0.0, 0, False
    while not over:
        seen, before = {**observation, **words}, info
        try:
            action = actor.act(seen)
            joined = np.concatenate([np.ravel(part) for part in action])
            observation, reward, ended, truncated, info = env.step(
                joined if perturb is None else perturb(joined)
            )
        except SimulationError as error:  # an unreachable target, NaN, physics that diverged
            return Outcome(False, steps, total, str(error))
        over = ended or truncated
        if on_tick is not None:
            on_tick(Tick(steps, seen, action, float(reward), bool(info["success"]), before))
        words |= _words(info)
        total += float(reward)
        steps += 1
    return Outcome(ended and bool(info["success"]), steps, total)


def _words(info: Mapping[str, Any]) -> Observation:
    return {key: info[key] for key in ("instruction", "task") if key in info}


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
            ``workers`` is 1); returns the function that runs one episode. If that has a ``close``,
            it is called when the worker ends.
        workers: number of processes.
        stop: polled before an episode starts; episodes under way are finished.
    """
    if workers <= 1:
        run = open_worker()
        try:
            for index in indices:
                if stop():
                    return
                yield run(index)
        finally:
            close_worker(run)
        return
    yield from _in_processes(open_worker, list(indices), workers, stop)


def close_worker(run: Callable[[int], Any]) -> None:
    """Let go of what a worker holds, if it has a ``close``; what fails then spoils no result."""
    try:
        getattr(run, "close", lambda: None)()
    except Exception as error:
        LOG.debug("a worker could not be closed: %s: %s", type(error).__name__, error)


def _in_processes(
    open_worker: Callable[[], Callable[[int], T]],
    indices: list[int],
    workers: int,
    stop: Callable[[], bool],
) -> Iterator[T]:
    # Forking a process that has threads (torch has) may deadlock, so workers start afresh.
    context = multiprocessing.get_context("spawn")
    lifeline, held = context.Pipe(duplex=False)
    with held_back():
        pool = ProcessPoolExecutor(workers, context, _open_in_process, (open_worker, lifeline))
    try:
        yield from _in_order(pool, indices, workers, stop)
        pool.shutdown()
    except Exception as error:
        if isinstance(error, BrokenProcessPool):
            held.close()  # the other workers are of no use any more
            raise _a_worker_died(workers) from None
        pool.shutdown(cancel_futures=True)
        raise
    finally:
        # Where the caller leaves early, workers end with what they are at: see _end_with.
        held.close()
        lifeline.close()
        pool.shutdown(wait=False, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, indices: list[int], workers: int, stop: Callable[[], bool]
) -> Iterator[Any]:
    """Keep the workers busy without running far ahead of a stop."""
    waiting: list[Future[Any]] = []
    upcoming = iter(indices)
    for index in upcoming:
        with held_back():  # what is submitted may start a process; the parent decides on stops
            waiting.append(pool.submit(_run_in_process, index))
        if len(waiting) >= 2 * workers:
            yield waiting.pop(0).result()
        if stop():
            break
    for future in waiting:
        if not (stop() and future.cancel()):
            yield future.result()


def _a_worker_died(workers: int) -> TeamVLAError:
    return TeamVLAError(
        f"{workers} worker processes",
        "all of them to live",
        "one that was killed",
        "If memory ran out, use fewer --workers.",
    )


_run: Callable[[int], Any] | None = None


def _open_in_process(open_worker: Callable[[], Callable[[int], Any]], lifeline: Connection) -> None:
    global _run
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    try:
        _run = open_worker()
        atexit.register(close_worker, _run)
    except Exception as error:  # told by the first episode; here it would only be printed
        _run = partial(_fail, error)


def _end_with(lifeline: Connection) -> None:
    """End this worker with the parent, or when the parent lets go of it: no worker is orphaned."""
    with suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)


def _fail(error: Exception, index: int) -> Any:
    raise error


def _run_in_process(index: int) -> Any:
    assert _run is not None
    return _run(index)
