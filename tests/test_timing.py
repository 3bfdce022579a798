"""What a step is told to take, of operations of which only some were measured."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from teamvla.train import timing
from teamvla.train.tracing import Call

ADD, VIEW, MM = torch.ops.aten.add.Tensor, torch.ops.aten.view.default, torch.ops.aten.mm.default
#: seconds of a call, of a byte and of a floating point operation
CALL, BYTE, FLOP = 5e-6, 1e-10, 1e-12


def add(size: int) -> Call:
    one = torch.empty(size, device="meta")
    return Call(ADD, (one, one), {}, one)


def mm(size: int) -> Call:
    one = torch.empty(size, size, device="meta")
    return Call(MM, (one, one), {}, one, 2 * size**3)


def view(size: int) -> Call:
    one = torch.empty(size, device="meta")
    return Call(VIEW, (one, [size]), {}, one)


def true(call: Call) -> float:
    if call.kind == "view":
        return CALL / 5
    return CALL + (call.flops * FLOP if call.flops else call.nbytes * BYTE)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Time goes by as calls are measured, two runs each; gives those that were."""
    measured: list[Call] = []

    def take(call: Call) -> float:
        measured.append(call)
        return true(call)

    def now() -> float:
        return sum(2 * true(call) for call in measured)

    monkeypatch.setattr(timing, "_time_call", take)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=now))
    monkeypatch.setattr(timing, "_overhead", lambda: 0.0)
    return measured


CALLS = (
    {add(100 * n): 1000 for n in range(1, 200)}
    | {add(100_000 * n): 3 for n in range(1, 100)}
    | {view(100_000 * n): 100 for n in range(1, 50)}
    | {mm(50 * n): 2 for n in range(1, 40)}
)
WHOLE = sum(count * true(call) for call, count in CALLS.items())


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_what_is_left_is_reckoned_from_operations_of_all_sizes(clock, share):
    budget = share * sum(2 * true(call) for call in CALLS)
    told = timing.time_calls(CALLS, budget)
    assert told.measured < 0.9
    assert told.seconds == pytest.approx(WHOLE, rel=0.1)
    assert sum(2 * true(call) for call in clock) <= 1.01 * budget


def test_with_time_enough_each_is_measured_once(clock):
    told = timing.time_calls(CALLS, 1e9)
    assert told.seconds == pytest.approx(WHOLE)
    assert told.measured == pytest.approx(1)
    assert len(clock) == len(CALLS) == len({*clock})


def test_one_odd_operation_is_not_taken_for_the_others(clock, monkeypatch):
    odd = Call(torch.ops.aten.sort.default, (torch.empty(4_000_000, device="meta"),), {})
    usual = timing._time_call
    monkeypatch.setattr(timing, "_time_call", lambda call: 1.0 if call == odd else usual(call))
    told = timing.time_calls(CALLS | {odd: 1}, 0.3 * sum(2 * true(call) for call in CALLS))
    assert told.seconds == pytest.approx(1 + WHOLE, rel=0.1)


def test_what_cannot_be_run_by_itself_is_reckoned(clock, monkeypatch):
    usual, without = timing._time_call, add(5_000_000)
    monkeypatch.setattr(timing, "_time_call", lambda call: None if call == without else usual(call))
    told = timing.time_calls(CALLS | {without: 10}, 1e9)
    assert told.seconds == pytest.approx(WHOLE + 10 * true(without), rel=0.01)


def test_an_operation_that_can_be_run_takes_some_time():
    one = torch.empty(1000)
    assert 0 < timing.time_calls({Call(ADD, (one, one), {}, one): 1}).seconds < 1
