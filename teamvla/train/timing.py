"""How long a step would take on this machine, from the operations that a trace of it has.

Each distinct operation is run by itself, on tensors of its shapes that are made for it and let go
at once: a few of all sizes first, then those that take most. When the time for this is over, what
is left is reckoned from what was measured. Nothing of the policy is there.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from teamvla.train.ema import WeightAverage
from teamvla.train.schedulers import OptimizerConfig, make_optimizer
from teamvla.train.tracing import Call, TensorShape

#: measured of an operation, unless its time is over sooner
_RUNS, _RUNS_S = 3, 0.02
#: bytes that a processor's core keeps near itself, and more
_CACHED = 8 << 20
#: batches are read until then, at least one
_BATCH_S = 0.5
#: operations of each kind that are measured first
_SIZES = 8
#: by less work it cannot be told what work takes: a call takes as long without any
_LEAST_WORK = {"view": math.inf, "plain": 1 << 16, "product": 1e7}
#: operations with larger tensors are reckoned, bytes
_LARGEST = 2 << 30
#: parameters of the pieces that updates are measured on, and of each tensor of them
_UPDATED, _PIECE = 1 << 21, 1 << 17


@dataclass(frozen=True)
class Timing:
    """Seconds of a step.

    Attributes:
        seconds: of all operations.
        measured: share of them that was measured operation by operation.
        kept: bytes that matrix products leave behind, for good: oneDNN compiles code for each
            shape, in bf16 half a megabyte. 0 where that cannot be seen, as without glibc.
    """

    seconds: float
    measured: float
    kept: int = 0


def time_calls(calls: Mapping[Call, int], budget_s: float = 4.0) -> Timing:
    """Seconds of all operations of a trace together.

    Args:
        calls: how often each is called.
        budget_s: after so long the rest is reckoned.
    """
    ends = time.perf_counter() + budget_s
    seconds: dict[Call, float] = {}

    kept: dict[Call, int] = {}

    def measure(call: Call) -> None:
        # Of a long one there is a run to warm up and one that counts.
        left = ends - time.perf_counter()
        if call not in seconds and call.nbytes <= _LARGEST and 2 * costs(call) < left:
            before = _held() if call.kind == "product" else 0
            taken = _time_call(call)
            if taken is not None:
                seconds[call] = taken
                if call.kind == "product":
                    kept[call] = _held() - before

    costs = _Costs({})
    for call in _of_all_sizes(calls):
        measure(call)
        costs = _Costs(seconds)
    for call in sorted(calls, key=lambda call: -calls[call] * costs(call)):
        measure(call)
    costs = _Costs(seconds)
    measured = sum(calls[call] * taken for call, taken in seconds.items())
    reckoned = sum(calls[call] * costs(call) for call in calls if call not in seconds)
    total = measured + reckoned + sum(calls.values()) * _overhead()
    products = sum(call.kind == "product" for call in calls)
    each = sum(kept.values()) / max(1, len(kept))
    return Timing(total, measured / total if total else 1.0, max(0, int(products * each)))


def _of_all_sizes(calls: Iterable[Call]) -> list[Call]:
    """A few calls of each kind, from the smallest to the largest."""
    found: list[Call] = []
    for kind in _LEAST_WORK:
        those = sorted((call for call in calls if call.kind == kind), key=_work)
        count = min(_SIZES, len(those))
        found += [those[n * (len(those) - 1) // max(1, count - 1)] for n in range(count)]
    return sorted(found, key=lambda call: call.nbytes)


class _Costs:
    """What calls cost by those that were measured: so much each, and so much for their work.

    Work is floating point operations of products, bytes of the others; views have none.
    """

    def __init__(self, seconds: Mapping[Call, float]) -> None:
        self._each: dict[str, float] = {}
        # An operation's own rate goes before that of its kind.
        self._rates: dict[object, float] = {}
        for kind in _LEAST_WORK:
            those = {call: taken for call, taken in seconds.items() if call.kind == kind}
            small = sorted(those, key=_work)[: max(3, len(those) // 4)]
            each = self._each[kind] = _median(those[call] for call in small)
            worth = sorted((c for c in those if _work(c) >= _LEAST_WORK[kind]), key=_work)
            rates = {call: max(0.0, those[call] - each) / _work(call) for call in worth}
            self._rates[kind] = _median(rates[call] for call in worth[len(worth) // 2 :])
            for func in {call.func for call in worth}:
                self._rates[func] = _median(rates[call] for call in worth if call.func is func)

    def __call__(self, call: Call) -> float:
        """Seconds of one call; what nothing is known of is taken for nothing."""
        rate = self._rates.get(call.func, self._rates[call.kind])
        return self._each[call.kind] + rate * _work(call)


def _work(call: Call) -> int:
    return {"view": 0, "product": call.flops, "plain": call.nbytes}[call.kind]


def _median(values: Iterable[float]) -> float:
    """Single odd operations do not move it; 0 of none."""
    return median(ordered) if (ordered := list(values)) else 0.0


def _held() -> int:
    """Bytes of this process that are no file's, without what was let go; 0 if it cannot be told."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        status = Path("/proc/self/status").read_text()
    except (AttributeError, OSError, TypeError):
        return 0
    lines = (line.split() for line in status.splitlines() if line.startswith("RssAnon:"))
    return next((int(words[1]) << 10 for words in lines), 0)


def _overhead() -> float:
    """Seconds that a call of a training step takes beside the operation, on the host."""
    one, length = torch.ones((), requires_grad=True), 64

    def chain() -> None:
        value = one
        for _ in range(length):
            value = value * value
        value.backward()  # type: ignore[no-untyped-call]

    with torch.no_grad():
        alone = _seconds_of(lambda: [one * one for _ in range(length)], torch.device("cpu"))
    # Forward one product, backward two and their sum.
    both = _seconds_of(chain, torch.device("cpu"))
    return max(0.0, both / 4 - alone) / length


def _time_call(call: Call) -> float | None:
    """Seconds of one call; None if it cannot be run by itself."""
    if any(map(_is_workspace, tree_leaves((call.args, call.kwargs)))):
        return None
    try:
        args, kwargs = tree_map(_made, (call.args, call.kwargs))
        device = next(iter(_devices(call)), torch.device("cpu"))
        with torch.no_grad():
            return _seconds_of(lambda: call.func(*args, **kwargs), device)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None  # such as one that asks for what only the real numbers have


def _is_workspace(value: Any) -> bool:
    """Whether it is what one operation leaves for another, in a layout of its own (oneDNN's RNNs).

    Pretended it is empty, and who takes it would read beyond it.
    """
    is_shape = isinstance(value, TensorShape)
    return is_shape and value.dtype == torch.uint8 and 0 in value.shape


def _made(value: Any) -> Any:
    return value.make() if isinstance(value, TensorShape) else value


def _devices(call: Call) -> set[torch.device]:
    values = tree_leaves((call.args, call.kwargs))
    return {value.device for value in values if isinstance(value, TensorShape)}


def _seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of a few runs behind one that warms up: others were held up by something."""
    # With one thread its processor time is what an idle machine would take, and others that run
    # here are not in it. Of several threads it would be their sum.
    single = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.thread_time if single else time.perf_counter
    # In a step the numbers of other operations went through the caches since.
    others = torch.ones(_CACHED >> 2) if device.type == "cpu" else None
    run()
    _wait_for(device)
    taken: list[float] = []
    while len(taken) < _RUNS and sum(taken) < _RUNS_S:
        if others is not None:
            others.add_(1.0)
        started = clock()
        run()
        _wait_for(device)
        taken.append(clock() - started)
    return min(taken)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_update(
    count: int,
    config: OptimizerConfig,
    device: torch.device,
    clip_norm: float,
    ema: tuple[float, int] | None,
) -> float:
    """Seconds of clipping, an optimiser step and averaging, of so many trained parameters.

    Args:
        ema: decay and steps from one average to the next.
    """
    pieces = max(1, min(count, _UPDATED) // _PIECE)
    model = nn.ParameterList(
        nn.Parameter(torch.zeros(_PIECE // 256, 256, device=device)) for _ in range(pieces)
    )
    plain = config.model_copy(update={"groups": ()})
    optimizer = make_optimizer(model, plain)
    average = None if ema is None else WeightAverage(model, ema[0])
    for parameter in model:
        parameter.grad = torch.zeros_like(parameter)

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()

    seconds = _seconds_of(update, device)
    if average is not None and ema is not None:
        seconds += _seconds_of(lambda: average.update(1), device) / ema[1]
    return seconds * count / (pieces * _PIECE)


def time_batch(load: Callable[[], object]) -> float:
    """Seconds of reading one batch, with those of waiting for the disk."""
    taken: list[float] = []
    while len(taken) < _RUNS and sum(taken) < _BATCH_S:
        started = time.perf_counter()
        load()
        taken.append(time.perf_counter() - started)
    return min(taken)


def state_bytes(config: OptimizerConfig, trained: Sequence[Tensor]) -> int:
    """Of what the optimiser keeps about the parameters that it trains."""
    copies = 2 if config.type == "adamw" else int(config.momentum > 0)
    return copies * sum(p.numel() * p.element_size() for p in trained)
