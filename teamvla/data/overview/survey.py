"""Counting what a set of recordings holds, one episode in memory at a time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.contract import Arm, Contract
from teamvla.data.fields import meaning_in
from teamvla.data.npz import EpisodeFile
from teamvla.data.overview.spread import Spread
from teamvla.data.parallel import in_order
from teamvla.data.specs import describe
from teamvla.data.validation import Fault, Finding, validate_roots
from teamvla.data.validation.run import files_below
from teamvla.errors import InputError, SchemaError
from teamvla.logs import progress

_WIDEST = 64  # numbers a step; wider fields are pictures or sensors, not joints
_TEXTS = 1000  # different instructions a group keeps; a count of the rest is kept


@dataclass(frozen=True)
class Facts:
    """What the survey takes from one episode.

    Attributes:
        fields: name -> dtype and shape of one step, as text.
        numbers: name -> float columns [T, D] narrow enough to be counted.
    """

    path: Path
    meta: Mapping[str, Any]
    bytes: int
    fields: dict[str, str]
    numbers: dict[str, np.ndarray]


@dataclass(frozen=True)
class Take:
    """An episode in a few words: what the choice of pictures needs."""

    path: Path
    success: bool
    steps: int


@dataclass
class Group:
    """The episodes of one task under one contract (``None`` where files carry none).

    Attributes:
        takes: every episode, in the order of the files.
        instructions: text -> episodes.
        fields: name -> dtype and shape of one step -> episodes.
        spreads: field and its numbers a step -> what its columns hold.
        software: name and version -> episodes.
    """

    task: str
    contract: Contract | None
    takes: list[Take] = field(default_factory=list)
    bytes: int = 0
    instructions: Counter[str] = field(default_factory=Counter)
    other_instructions: int = 0
    fields: dict[str, Counter[str]] = field(default_factory=dict)
    spreads: dict[tuple[str, int], Spread] = field(default_factory=dict)
    software: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def episodes(self) -> int:
        return len(self.takes)

    @property
    def successes(self) -> int:
        return sum(take.success for take in self.takes)

    @property
    def steps(self) -> int:
        return sum(take.steps for take in self.takes)

    @property
    def seconds(self) -> float | None:
        """Recorded time, from the contract's rate; ``None`` without a contract."""
        return None if self.contract is None else self.steps / self.contract.control_hz

    @property
    def delta(self) -> bool:
        """Whether an action is a way to go from the measured position."""
        return self.contract is not None and str(self.contract.action).startswith("delta")

    @property
    def lengths(self) -> tuple[int, float, int]:
        """Shortest, median and longest episode, in steps."""
        lengths = [take.steps for take in self.takes]
        return min(lengths), float(np.median(lengths)), max(lengths)

    @property
    def arms(self) -> list[str]:
        """Names of the arms: the contract's, else those of fields called ``q_*``."""
        if self.contract is not None:
            return [arm.name for arm in self.contract.arms]
        return sorted(name.removeprefix("q_") for name in self.fields if name.startswith("q_"))

    def arm(self, name: str) -> Arm | None:
        """The contract's arm of that name."""
        arms = self.contract.arms if self.contract is not None else ()
        return next((arm for arm in arms if arm.name == name), None)

    def spread(self, name: str) -> Spread | None:
        """What a field holds; of its most frequent width if that varies."""
        found = [spread for (field, _), spread in self.spreads.items() if field == name]
        return max(found, key=lambda spread: sum(one.count for one in spread.columns), default=None)

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON data."""
        shortest, median, longest = self.lengths
        return {
            "task": self.task,
            "contract": None if self.contract is None else self.contract.to_dict(),
            "contract_digest": None if self.contract is None else self.contract.digest,
            "episodes": self.episodes,
            "successes": self.successes,
            "steps": self.steps,
            "seconds": self.seconds,
            "length": {"min": shortest, "median": median, "max": longest},
            "bytes": self.bytes,
            "instructions": dict(self.instructions.most_common()),
            "fields": {name: dict(kinds) for name, kinds in sorted(self.fields.items())},
            "columns": {
                name: spread.to_dict()
                for name in sorted({name for name, _ in self.spreads})
                if (spread := self.spread(name)) is not None
            },
            "software": [[*named, episodes] for named, episodes in sorted(self.software.items())],
        }

    def add(self, facts: Facts) -> None:
        """Count one episode."""
        meta = facts.meta
        self.takes.append(Take(facts.path, bool(meta["success"]), int(meta["num_steps"])))
        self.bytes += facts.bytes
        self._add_instruction(str(meta["instruction"]))
        self.software.update(_software(meta))
        for name, kind in facts.fields.items():
            self.fields.setdefault(name, Counter())[kind] += 1
        for name, values in facts.numbers.items():
            key = (name, values.shape[1])
            if key not in self.spreads:
                self.spreads[key] = Spread(values.shape[1])
            self.spreads[key].add(values)

    def _add_instruction(self, text: str) -> None:
        if text in self.instructions or len(self.instructions) < _TEXTS:
            self.instructions[text] += 1
        else:
            self.other_instructions += 1


@dataclass(frozen=True)
class Overview:
    """What a set of recordings holds.

    Attributes:
        roots: where they lie.
        groups: by task and contract, sorted by task.
        files: how many episode files there are, readable or not.
        findings: of ``validate``; of reading alone if ``validated`` is false.
        read_s: time that reading took, s.
    """

    roots: tuple[Path, ...]
    groups: tuple[Group, ...]
    files: int
    findings: tuple[Finding, ...]
    validated: bool
    read_s: float

    @property
    def episodes(self) -> int:
        """Episodes that could be read."""
        return sum(group.episodes for group in self.groups)


def survey(
    roots: Iterable[str | Path], *, workers: int | None = None, validate: bool = True
) -> Overview:
    """Look at every episode below ``roots``; a root may also be a single file.

    Pictures are not read. A damaged episode becomes a finding and is left out.

    Args:
        roots: folders of episodes.
        workers: threads; the overview is the same for any number.
        validate: whether to look for everything ``teamvla validate`` finds, too.

    Raises:
        InputError: a root is missing or holds no episode.
    """
    folders = tuple(map(Path, roots))
    paths = list(dict.fromkeys(path for root in folders for path in files_below(root)))
    groups, damaged = _Groups(), []
    started = time.perf_counter()
    with progress("stats", len(paths), "episode") as bar:
        for facts in in_order(look, paths, workers):
            if isinstance(facts, Finding):
                damaged.append(facts)
            else:
                groups.add(facts)
            bar.advance()
    elapsed = time.perf_counter() - started
    findings = validate_roots(folders, workers=workers).findings if validate else ()
    found = merged((one for one in findings if one.level != "info"), damaged)
    return Overview(folders, groups.sorted(), len(paths), found, validate, elapsed)


def merged(findings: Iterable[Finding], more: Iterable[Finding]) -> tuple[Finding, ...]:
    """``findings`` and those of ``more`` whose file has none of that code yet, by file."""
    known = list(findings)
    seen = {(finding.path, finding.code) for finding in known}
    known += [finding for finding in more if (finding.path, finding.code) not in seen]
    return tuple(sorted(known, key=lambda finding: str(finding.path)))


class _Groups:
    """The groups so far."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str], Group] = {}

    def add(self, facts: Facts) -> None:
        try:
            contract, digest, _ = meaning_in(facts.meta)
        except SchemaError:  # validate says what is wrong with it
            contract, digest = None, None
        task = str(facts.meta["task"])
        key = (task, digest or "")
        if key not in self._groups:
            self._groups[key] = Group(task, contract)
        self._groups[key].add(facts)

    def sorted(self) -> tuple[Group, ...]:
        return tuple(self._groups[key] for key in sorted(self._groups))


def look(path: Path) -> Facts | Finding:
    """The facts of one episode, or what keeps it from being read."""
    try:
        with EpisodeFile(path) as file:
            return _facts(file)
    except (SchemaError, InputError) as error:
        return damage(path, error)


def damage(path: Path, error: SchemaError | InputError) -> Finding:
    """The finding of an episode that cannot be read."""
    return Finding.at(path, Fault.of(path, error))


def _facts(file: EpisodeFile) -> Facts:
    texts = {*file.meta.get("json_fields", ())}
    fields, numbers = dict.fromkeys(file.constants, "str"), {}
    for name, (dtype, shape) in file.columns(file.fields).items():
        if not shape or shape[0] != file.num_steps:
            got = str(shape[0]) if shape else "a single value"
            raise file.refuse(f"{file.num_steps} steps", got, "E241", name)
        one = tuple("P" if length < 0 else length for length in shape[1:])
        fields[name] = "JSON" if name in texts else describe(dtype, one)
        narrow = len(shape) <= 2 and 0 < math.prod(shape[1:]) <= _WIDEST
        if dtype.kind == "f" and narrow and name not in file.ragged:
            numbers[name] = file.read(name).reshape(file.num_steps, -1)
    return Facts(file.path, file.meta, file.path.stat().st_size, fields, numbers)


def _software(meta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    named = meta.get("software")
    for name, version in named.items() if isinstance(named, dict) else ():
        yield str(name), str(version)
    source = meta.get("converted")
    if isinstance(source, dict) and "from" in source:
        yield "converted from", str(source["from"])
