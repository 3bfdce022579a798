"""The judgements of one episode: a table of checks, each a function from record to faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from teamvla.data.validation import motion, pictures, signals
from teamvla.data.validation.findings import Fault
from teamvla.data.validation.record import Record
from teamvla.data.validation.thresholds import MIN_STEPS

Check = Callable[[Record], Iterator[Fault]]
CHECKS: dict[str, Check] = {**pictures.CHECKS, **motion.CHECKS, **signals.CHECKS}
"""Main code of a check -> the check; some find a second, related code."""

# What explains a fault leaves nothing for the checks that would see its traces.
_EXPLAINS = {
    "E419": {"W412", "W434"},
    "E420": {"W402", "W412", "W434", "E419"},
    "E437": {"W402", "W401", "W403"},
    "W413": {"W412"},
    "W406": {"W407", "I446"},
    "W409": {"I446"},
}
# The same, for one arm only: a wild value spoils the distances of that arm.
_SPOILS = {"W401": {"W412", "W434"}, "W403": {"W412", "W434"}}


def judge(record: Record) -> list[Fault]:
    """Everything suspicious in one episode; too short ones are not judged."""
    if min(record.steps, record.judged) < MIN_STEPS:
        return []
    found = [fault for check in CHECKS.values() for fault in check(record)]
    told = {code for fault in found for code in _EXPLAINS.get(fault.code, ())}
    spoilt = {(code, _arm(fault)) for fault in found for code in _SPOILS.get(fault.code, ())}
    found = [fault for fault in found if (fault.code, _arm(fault)) not in spoilt]
    return [fault for fault in found if fault.code not in told]


def _arm(fault: Fault) -> str:
    """The arm that a fault's field belongs to."""
    return (fault.field or "").partition("_")[2]
