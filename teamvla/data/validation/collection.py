"""Judgements over a set of episodes: what is odd only beside the others."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import numpy as np

from teamvla.contract import Contract
from teamvla.data.splits import assign_splits
from teamvla.data.validation.findings import Fault
from teamvla.data.validation.summary import Summary
from teamvla.data.validation.thresholds import (
    LONG,
    MIN_EPISODES,
    MIN_STEPS,
    MINORITY,
    PICTURE_DISTANCE,
    PICTURE_RATIO,
    ROBUST,
    SHORT,
    START,
)

Odd = tuple[Summary, Fault]
Fractions = tuple[float, float]
_WORD = re.compile(r"[^\W\d_]{3,}")
_MOST_LINES, _LONGEST_LINE = 3, 80  # of what differs between two contracts
# Words that say nothing about a task.
_FILLERS = frozenset(
    [
        *("and", "arm", "arms", "both", "for", "from", "hand", "hands", "into", "its", "left"),
        *("now", "off", "one", "onto", "please", "right", "that", "the", "then", "this", "two"),
        *("use", "using", "together", "with", "your"),
    ]
)


def judge_set(episodes: Sequence[Summary], fractions: Fractions) -> list[Odd]:
    """Everything odd about a set.

    Args:
        episodes: summaries, in the order of the files.
        fractions: of validation and test episodes, as ``index`` will split them.
    """
    odd = [*copies(episodes, fractions), *contracts(episodes), *foreign_prompts(episodes)]
    for group in _by_task(episodes):
        for check in TASK_CHECKS.values():
            odd += check(group)
    return odd


def _by_task(episodes: Sequence[Summary]) -> Iterator[list[Summary]]:
    """Episodes of one task and contract: only these can be compared by numbers."""
    groups: dict[tuple[str, str | None], list[Summary]] = defaultdict(list)
    for one in episodes:
        groups[one.task, one.contract].append(one)
    yield from groups.values()


def copies(episodes: Sequence[Summary], fractions: Fractions) -> Iterator[Odd]:
    """Episodes that are another one's copy; worse, if the two fall into different splits."""
    splits = assign_splits([(one.task, one.episode_id) for one in episodes], *fractions)
    first: dict[int, int] = {}
    moves: dict[int, int] = {}
    for number, one in enumerate(episodes):
        twin = first.setdefault(one.content, number)
        # So few steps may be alike by chance, as those of a robot that rests.
        if twin == number and one.motion is not None and one.steps >= MIN_STEPS:
            twin = moves.setdefault(one.motion, number)
        if twin == number or _starts_alike(one, episodes[twin]):
            continue
        what = "columns" if episodes[twin].content == one.content else "motion"
        here, there = splits[number], splits[twin]
        said = f"expected an episode of its own, got the {what} of {_name(episodes[twin], one)}"
        if here == there:
            yield one, Fault("W432", None, None, said)
        else:
            yield one, Fault("E433", None, None, f"{said}: one is in {here}, one in {there}")


def _starts_alike(one: Summary, twin: Summary) -> bool:
    """Whether two resets of a discrete world, which has few starts, may have met the same."""
    if one.reset_seed is None or twin.reset_seed is None:
        return False
    return _is_discrete(one) and one.reset_seed != twin.reset_seed


def _is_discrete(one: Summary) -> bool:
    """Whether it is a world of cells and moves, where nothing is a quantity."""
    meaning = one.meaning
    if meaning is None or meaning.arms:
        return False
    return all(signal.dtype != "float32" for signal in meaning.signals)


def _name(one: Summary, beside: Summary) -> str:
    """How a file is called beside another one."""
    near = one.path.parent == beside.path.parent
    return one.path.name if near else f"{one.path.parent.name}/{one.path.name}"


def contracts(episodes: Sequence[Summary]) -> Iterator[Odd]:
    """More than one contract: said at the first episode of each but the most frequent."""
    counts = Counter(one.contract for one in episodes if one.contract is not None)
    if len(counts) < 2:
        return
    most = counts.most_common(1)[0][0]
    usual = next(one.meaning for one in episodes if one.contract == most)
    seen = {most}
    for one in episodes:
        if one.contract is not None and one.contract not in seen:
            seen.add(one.contract)
            share = f"{counts[one.contract]} of {counts.total()} episodes"
            got = f"another one in {share}: {_differences(usual, one.meaning)}"
            message = f"expected the contract of the others, got {got}. {_apart(one, episodes)}"
            yield one, Fault("W436", None, "contract", message)


def _differences(usual: Contract | None, other: Contract | None) -> str:
    """The first lines of what is not alike, the most frequent contract's first."""
    assert usual is not None
    assert other is not None  # they have digests
    lines = [textwrap.shorten(line, _LONGEST_LINE) for line in usual.diff(other)]
    more = f"; and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else ""
    return "; ".join(lines[:_MOST_LINES]) + more


def _apart(one: Summary, episodes: Sequence[Summary]) -> str:
    """How the episodes of this contract are used without the others."""
    folders = {other.path.parent for other in episodes if other.contract == one.contract}
    others = {other.path.parent for other in episodes if other.contract != one.contract}
    if len(folders) == 1 and not folders & others:
        takes = "validate" if one.meaning is None else "index"
        return f"Use it as a root of its own: {shlex.join(['teamvla', takes, str(*folders)])}"
    return "Put them into a folder of their own"


def foreign_prompts(episodes: Sequence[Summary]) -> Iterator[Odd]:
    """Instructions that belong to another task, or speak of nothing that the others speak of."""
    tasks: dict[str, Counter[str]] = defaultdict(Counter)
    for one in episodes:
        if one.instruction:
            tasks[one.task][one.instruction] += 1
    words = {task: _vocabulary(prompts) for task, prompts in tasks.items()}
    verdicts = {
        (task, prompt): _verdict(task, prompt, tasks, words)
        for task, prompts in tasks.items()
        for prompt in prompts
    }
    for one in episodes:
        verdict = verdicts.get((one.task, one.instruction or ""))
        if verdict:
            message = f"expected an instruction for {one.task}, got {one.instruction!r}: {verdict}"
            yield one, Fault("W429", None, "instruction", message)


def _vocabulary(prompts: Counter[str]) -> Counter[str]:
    """In how many episodes each word occurs."""
    counts: Counter[str] = Counter()
    for prompt, count in prompts.items():
        counts.update(dict.fromkeys(_words(prompt), count))
    return counts


def _words(prompt: str) -> set[str]:
    return set(_WORD.findall(prompt.lower())) - _FILLERS


def _verdict(
    task: str, prompt: str, tasks: dict[str, Counter[str]], words: dict[str, Counter[str]]
) -> str | None:
    here = tasks[task][prompt]
    total = tasks[task].total()
    if here > max(1, MINORITY * total):
        return None
    own = _words(prompt)
    for other, prompts in tasks.items():
        if other != task and prompts[prompt] >= 3 and prompts[prompt] > 5 * here:
            return f"{prompts[prompt]} episodes of {other} say so"
        if other != task and other in own and task not in own:
            return f"it names {other}"
    shared = any(words[task][word] > here for word in own)
    if total >= MIN_EPISODES and own and not shared:
        return f"no word of it occurs in the other {total - here} episodes"
    return None


def failures(group: Sequence[Summary]) -> Iterator[Odd]:
    """Failed attempts among successes, or nothing but failures."""
    failed = [one for one in group if one.success is False]
    if len(failed) == len(group) >= MIN_EPISODES:
        message = f"expected successes, got none in {len(group)} episodes of {group[0].task}"
        yield group[0], Fault("W431", None, "success", message)
    elif 2 * len(failed) < len(group):
        for one in failed:
            got = f"a failure ({len(failed)} of {len(group)} episodes failed)"
            yield one, Fault("W430", None, "success", f"expected a success, got {got}")


def lengths(group: Sequence[Summary]) -> Iterator[Odd]:
    """Episodes far shorter or longer than the others.

    In a discrete world one may begin a move from its goal: of those that succeed none is odd.
    """
    if len(group) < MIN_EPISODES:
        return
    usual = float(np.median([one.steps for one in group]))
    odd = [one for one in group if not SHORT * usual <= one.steps <= LONG * usual]
    odd = [one for one in odd if not (one.success and _is_discrete(one))]
    if len(odd) <= MINORITY * len(group):
        for one in odd:
            message = f"expected about {usual:.0f} steps, got {one.steps}"
            yield one, Fault("W445", None, None, message)


def starts(group: Sequence[Summary]) -> Iterator[Odd]:
    """Joints that start away from where all others start, and stay away: an offset."""
    for arm in sorted({arm for one in group for arm in one.start}):
        having = [one for one in group if arm in one.start]
        shapes = {one.start[arm].shape for one in having}
        if len(having) < MIN_EPISODES or len(shapes) > 1:
            continue
        values = np.stack([one.start[arm] for one in having])  # [E, 2, N]
        usual = np.median(values, axis=0)
        apart = values - usual
        spread = 1.4826 * np.median(np.abs(apart), axis=0)
        wrong = (np.abs(apart) > np.maximum(START, ROBUST * spread)).all(axis=1)  # [E, N]
        rows = np.flatnonzero(wrong.any(axis=1))
        if len(rows) <= MINORITY * len(having):
            for row in rows:
                joint = int(wrong[row].argmax())
                got = f"{values[row, 0, joint]:.3g} at joint {joint}, and as far on average"
                message = f"expected to start near {usual[0, joint]:.3g} rad, got {got}"
                yield having[row], Fault("W435", 0, f"q_{arm}", message)


def flipped_grips(group: Sequence[Summary]) -> Iterator[Odd]:
    """Grippers that start closed where they start open in the others, or the reverse."""
    for arm in sorted({arm for one in group for arm in one.grips}):
        having = [one for one in group if arm in one.grips]
        values = np.array([one.grips[arm] for one in having])
        usual = float(np.median(values))
        rows = np.flatnonzero(np.abs(values - usual) > 0.8)
        if len(having) >= MIN_EPISODES and len(rows) <= MINORITY * len(having):
            for row in rows:
                got = f"{values[row]:.2g} (0 is open, 1 is closed)"
                message = f"expected to start at {usual:.2g} as in the others, got {got}"
                yield having[row], Fault("W422", 0, f"grip_{arm}", message)


def odd_views(group: Sequence[Summary]) -> Iterator[Odd]:
    """First pictures that fit another camera, or fit with red and blue exchanged."""
    names = sorted({name for one in group for name in one.views})
    having = [one for one in group if all(name in one.views for name in names)]
    if len(having) < MIN_EPISODES or not names:
        return
    views = np.stack([[one.views[name] for name in names] for one in having])  # [E, C, 8, 8, 3]
    usual = np.median(views, axis=0)
    plain = _distance(views, usual)
    found = {"W441": _reversed_colours(views, usual, plain, names)}
    found["W414"] = _crossed(views, usual, plain, names)
    for code, odd in found.items():
        if len(odd) <= MINORITY * len(having):
            for row, (field, message) in sorted(odd.items()):
                yield having[row], Fault(code, 0, field, message)


def _reversed_colours(
    views: np.ndarray, usual: np.ndarray, plain: np.ndarray, names: Sequence[str]
) -> dict[int, tuple[str, str]]:
    """Episode -> field and message, for pictures with blue first."""
    fits = _better(_distance(views[..., ::-1], usual), plain)
    message = "expected red first as in the others, got red and blue exchanged"
    return {
        row: (names[int(fits[row].argmax())], message)
        for row in np.flatnonzero(fits.any(axis=1)).tolist()
    }


def _crossed(
    views: np.ndarray, usual: np.ndarray, plain: np.ndarray, names: Sequence[str]
) -> dict[int, tuple[str, str]]:
    """Episode -> field and message, for two cameras that fit each other's place."""
    found: dict[int, tuple[str, str]] = {}
    for one, two in combinations(range(len(names)), 2):
        crossed = _distance(views[:, [one, two]], usual[[two, one]]).mean(axis=1)
        message = f"expected the view that it has in the others, got that of {names[two]}"
        for row in np.flatnonzero(_better(crossed, plain[:, [one, two]].mean(axis=1))).tolist():
            found.setdefault(row, (names[one], message))
    return found


def _distance(views: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Mean absolute difference, of 255, over the last three axes."""
    return np.asarray(np.abs(views - usual).mean(axis=(-3, -2, -1)))


def _better(changed: np.ndarray, plain: np.ndarray) -> np.ndarray:
    return np.asarray((plain > PICTURE_DISTANCE) & (changed < PICTURE_RATIO * plain))


TaskCheck = Callable[[Sequence[Summary]], Iterator[Odd]]
TASK_CHECKS: dict[str, TaskCheck] = {
    "W430": failures,
    "W445": lengths,
    "W435": starts,
    "W422": flipped_grips,
    "W414": odd_views,
}
