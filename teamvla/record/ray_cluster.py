"""Episodes on a running Ray cluster; the only module that imports Ray."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from teamvla.errors import ConfigError, MissingDependencyError, TeamVLAError
from teamvla.interrupts import SIGNALS
from teamvla.record.recorder import Recorded, Recorder
from teamvla.rollout import close_worker

_START = "Start one with: ray start --head; or name yours in RAY_ADDRESS."
_open: dict[tuple[str, str], Callable[[int], Recorded]] = {}


def run_on_ray(
    recorder: Recorder,
    indices: Iterable[int],
    *,
    workers: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Recorded]:
    """Record episodes on the cluster and yield what became of them, in their order.

    The cluster is the one that RAY_ADDRESS names, else the one that runs on this machine. Its
    nodes need this package and the same view of the folder that is recorded into. An episode
    whose node is lost is recorded again, to the same bytes.

    Args:
        workers: episodes at a time; as many as the cluster has processors by default.
        stop: polled before an episode is handed over; those under way are finished.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: there is no cluster.
    """
    ray = _connect()
    workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    task = ray.remote(num_cpus=1, max_retries=3)(_record)
    shared = ray.put(recorder)
    waiting: deque[Any] = deque()
    try:
        for index in indices:
            waiting.append(task.remote(shared, index))
            if len(waiting) >= 2 * workers:
                yield _result(ray, waiting.popleft())
            if stop():
                break
        while waiting:
            yield _result(ray, waiting.popleft())
    finally:
        for reference in waiting:  # where the caller leaves early
            ray.cancel(reference, force=True)


def _record(recorder: Recorder, index: int) -> Recorded:
    """In a process of the cluster, which keeps its environment for the next episode."""
    key = (recorder.recipe, str(recorder.out))
    if key not in _open:
        for worker in _open.values():
            close_worker(worker)
        _open.clear()
        _open[key] = recorder()
    return _open[key](index)


def _result(ray: Any, reference: Any) -> Recorded:
    try:
        one: Recorded = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        said = str(error).partition("\n")[0]
        raise TeamVLAError("the Ray cluster", "the episode's result", said) from None
    if one.path is not None and not one.path.exists():
        mend = "Record into a folder that every node of the cluster shares with this machine."
        raise ConfigError(str(one.path), "the episode that a node wrote", "nothing here", mend)
    return one


def _connect() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingDependencyError.for_extra("ray", "ray") from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "auto"
        try:
            _require_listener(address)
            with _own_signal_handlers():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except OSError as error:
            said = str(error).partition("\n")[0].rstrip(".")
            raise ConfigError(f"Ray at {address}", "a running cluster", said, _START) from None
    return ray


def _require_listener(address: str) -> None:
    """OSError at once where nobody listens: Ray tries for minutes."""
    host, _, port = address.rpartition(":")
    if host and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Ray installs one of its own for SIGTERM, which would end the recording at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
