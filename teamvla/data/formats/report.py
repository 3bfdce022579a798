"""What became of every part of the data in a conversion: nothing is dropped in silence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Fate = Literal["carried", "aside", "added", "changed", "lost"]
#: fate -> what it means, in the order of a report
FATES: dict[Fate, str] = {
    "lost": "not in the output",
    "changed": "in the output with other values",
    "added": "in the output, not said by the source",
    "aside": "in the output where only teamvla looks",
    "carried": "in the output, as the format has it",
}


@dataclass(frozen=True)
class Note:
    """The fate of one part of the data.

    Attributes:
        fate: one of :data:`FATES`.
        what: the part, by its name in the source.
        into: its name in the output, or nothing.
        why: why it is not simply carried.
        episodes: in how many episodes that was so.
    """

    fate: Fate
    what: str
    into: str
    why: str
    episodes: int = 1


class Report:
    """The notes of one conversion; notes that say the same are counted, not repeated."""

    def __init__(self) -> None:
        self._notes: dict[tuple[str, str, str, str], Note] = {}

    def note(self, fate: Fate, what: str, into: str = "", why: str = "") -> None:
        """Say what became of ``what`` in one more episode."""
        key = (fate, what, into, why)
        known = self._notes.get(key)
        episodes = known.episodes + 1 if known else 1
        self._notes[key] = Note(fate, what, into, why, episodes)

    def settle(self, fate: Fate, what: str, into: str, why: str, episodes: int) -> None:
        """Say it of many episodes at once, with figures over all of them."""
        self._notes[fate, what, into, why] = Note(fate, what, into, why, episodes)

    def notes(self) -> list[Note]:
        """All notes, the losses first."""
        order = list(FATES)
        return sorted(self._notes.values(), key=lambda n: (order.index(n.fate), n.what, n.into))

    def of(self, fate: Fate) -> dict[str, Note]:
        """The notes of one fate by what they are about."""
        return {note.what: note for note in self.notes() if note.fate == fate}

    def merge(self, other: Report, leave_out: Fate) -> None:
        """Take over the notes of another part of the same conversion, but for those of one fate."""
        for key, note in other._notes.items():
            if note.fate == leave_out:
                continue
            known = self._notes.get(key)
            count = note.episodes + (known.episodes if known else 0)
            self._notes[key] = replace(note, episodes=count)

    def to_dict(self) -> list[dict[str, Any]]:
        """The notes as JSON data."""
        return [asdict(note) for note in self.notes()]

    @classmethod
    def from_dict(cls, notes: list[dict[str, Any]]) -> Report:
        """The report that :meth:`to_dict` gave."""
        report = cls()
        for note in notes:
            report.settle(note["fate"], note["what"], note["into"], note["why"], note["episodes"])
        return report

    def lines(self) -> Iterator[str]:
        """The notes as the lines of a table."""
        rows = [(n.fate, n.what, n.into or "-", str(n.episodes), n.why) for n in self.notes()]
        head = ("", "source", "output", "episodes", "why")
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(4)]
        for row in [head, *rows]:
            cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
            yield "  ".join([*cells, row[4]]).rstrip()
