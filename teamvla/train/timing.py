"""How long a step would take on this machine, from the operations that a trace of it has.

Each distinct operation is run by itself, on tensors of its shapes that are made for it and let go
at once. When the time for this is over, what is left is reckoned from what was measured, by the
bytes that it is called with. Nothing of the policy is there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from teamvla.train.ema import WeightAverage
from teamvla.train.schedulers import OptimizerConfig, make_optimizer
from teamvla.train.tracing import Call, TensorShape

#: measured of an operation, unless its time is over sooner
_RUNS, _RUNS_S = 3, 0.02
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
    """

    seconds: float
    measured: float


def time_calls(calls: Mapping[Call, int], budget_s: float = 4.0) -> Timing:
    """Seconds of all operations of a trace together.

    Args:
        calls: how often each is called.
        budget_s: after so long the rest, the smaller ones, is reckoned.
    """
    ends = time.perf_counter() + budget_s
    seconds: dict[Call, float] = {}
    for call in sorted(calls, key=lambda call: -call.nbytes):
        if time.perf_counter() > ends:
            break
        if call.nbytes <= _LARGEST and (taken := _time_call(call)) is not None:
            seconds[call] = taken
    measured = sum(calls[call] * taken for call, taken in seconds.items())
    # Small ones cost what a call costs, large ones what their bytes do.
    least = min(seconds.values(), default=0.0)
    known = sum(calls[call] * call.nbytes for call in seconds)
    rate = max(0.0, measured - least * sum(calls[call] for call in seconds)) / max(1, known)
    left = [call for call in calls if call not in seconds]
    reckoned = sum(calls[call] * (least + rate * call.nbytes) for call in left)
    total = measured + reckoned + sum(calls.values()) * _overhead()
    return Timing(total, measured / total if total else 1.0)


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
    try:
        args, kwargs = tree_map(_made, (call.args, call.kwargs))
        device = next(iter(_devices(call)), torch.device("cpu"))
        with torch.no_grad():
            return _seconds_of(lambda: call.func(*args, **kwargs), device)
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None  # such as one that asks for what only the real numbers have


def _made(value: Any) -> Any:
    return value.make() if isinstance(value, TensorShape) else value


def _devices(call: Call) -> set[torch.device]:
    found: set[torch.device] = set()

    def note(value: Any) -> Any:
        if isinstance(value, TensorShape):
            found.add(value.device)
        return value

    tree_map(note, (call.args, call.kwargs))
    return found


def _seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of a few runs behind one that warms up: others were held up by something."""
    run()
    _wait_for(device)
    taken: list[float] = []
    while len(taken) < _RUNS and sum(taken) < _RUNS_S:
        started = time.perf_counter()
        run()
        _wait_for(device)
        taken.append(time.perf_counter() - started)
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
    """Seconds of reading one batch."""
    return _seconds_of(load, torch.device("cpu"))


def state_bytes(config: OptimizerConfig, trained: Sequence[Tensor]) -> int:
    """Of what the optimiser keeps about the parameters that it trains."""
    copies = 2 if config.type == "adamw" else int(config.momentum > 0)
    return copies * sum(p.numel() * p.element_size() for p in trained)
