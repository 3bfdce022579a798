"""The page of a look at recordings: self-contained, with nothing in it that runs."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from teamvla.data.overview import figures
from teamvla.data.overview.samples import Sample, read_samples
from teamvla.data.overview.survey import Group, Overview, merged
from teamvla.data.overview.words import (
    JointRow,
    contract_facts,
    duration,
    heading,
    interval,
    joint_rows,
    share,
    size,
)
from teamvla.data.validation import Finding
from teamvla.data.validation.findings import title
from teamvla.files import publish
from teamvla.logs import progress
from teamvla.page import embedded, render_page

_PICTURES, _TRACES = 8, 3
_MOST_FINDINGS, _MOST_INSTRUCTIONS = 200, 20
_LARGEST = 192  # px; larger pictures are shrunk


def write_report(path: Path, overview: Overview) -> Path:
    """Publish the page at ``path``, replacing what was there."""
    page = render(overview).encode("utf-8", "backslashreplace")  # file names can be any bytes
    return publish(path, lambda file: file.write(page), replace=True)


def render(overview: Overview) -> str:
    """The page as HTML. A few episodes of each task are read once more, for their pictures."""
    groups, damaged = [], []
    with progress("report", len(overview.groups), "task") as bar:
        for group in overview.groups:
            samples, broken = read_samples(group, _PICTURES)
            damaged += broken
            groups.append(_group(group, samples, overview))
            bar.advance()
    findings = merged(overview.findings, damaged)
    return render_page(
        "data/overview/report.html.j2",
        title=" + ".join(root.name or str(root) for root in overview.roots),
        lead=", ".join(map(str, overview.roots)),
        tiles=_tiles(overview, findings),
        groups=groups,
        codes=_codes(findings),
        findings=[_finding(finding) for finding in findings[:_MOST_FINDINGS]],
        more_findings=max(0, len(findings) - _MOST_FINDINGS),
        validated=overview.validated,
        files=overview.files,
        software=_software(overview),
    )


def _tiles(overview: Overview, findings: tuple[Finding, ...]) -> list[tuple[str, str]]:
    groups = overview.groups
    successes = sum(group.successes for group in groups)
    seconds = [group.seconds for group in groups if group.seconds is not None]
    return [
        (f"{overview.episodes:,}", "episodes"),
        (f"{len({group.task for group in groups})}", "tasks"),
        (share(successes, overview.episodes), "succeeded"),
        (f"{sum(group.steps for group in groups):,}", "steps"),
        (duration(sum(seconds)) if seconds else "–", "recorded"),
        (size(sum(group.bytes for group in groups)), "on disk"),
        (f"{len(findings):,}", "findings"),
    ]


def field_rows(group: Group) -> list[dict[str, Any]]:
    """One row per field and kind: ``field``, ``kind``, ``episodes``."""
    return [
        {"field": name, "kind": kind, "episodes": episodes}
        for name, kinds in sorted(group.fields.items())
        for kind, episodes in kinds.most_common()
    ]


def _group(group: Group, samples: list[Sample], overview: Overview) -> dict[str, Any]:
    shortest, median, longest = group.lengths
    seconds = group.seconds
    return {
        "heading": heading(group, overview.groups),
        "facts": [
            ("episodes", f"{group.episodes:,}, {group.successes:,} of them succeeded"),
            ("steps", f"{group.steps:,}" + (f" ({duration(seconds)})" if seconds else "")),
            ("length", f"{shortest} to {longest} steps, half of them up to {median:g}"),
            *contract_facts(group),
            ("size", f"{size(group.bytes)}, {size(group.bytes // group.episodes)} an episode"),
        ],
        "delta": group.delta,
        "action_name": "target: measured position plus action"
        if group.delta
        else "action sent from that observation",
        "episodes": group.episodes,
        "successes": group.successes,
        "success": share(group.successes, group.episodes),
        "success_share": group.successes / group.episodes,
        "instructions": group.instructions.most_common(_MOST_INSTRUCTIONS),
        "more_instructions": max(0, len(group.instructions) - _MOST_INSTRUCTIONS),
        "lengths": figures.lengths(group),
        "arms": [_arm(group, arm) for arm in group.arms],
        "films": [_film(sample, group) for sample in samples],
        "traces": [_traces(group, sample) for sample in _middle(samples, _TRACES)],
        "fields": field_rows(group),
    }


def _middle(samples: list[Sample], count: int) -> list[Sample]:
    """Some of the samples, spread over all of them."""
    places = np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)
    return [samples[place] for place in places]


def _arm(group: Group, arm: str) -> dict[str, Any]:
    rows = [
        {
            "joint": row.joint,
            "measured": interval(row.measured),
            "action": interval(row.action),
            "limits": interval(row.limits),
            "beyond": row.beyond,
            "bars": _bars(row, group.delta),
        }
        for row in joint_rows(group, arm)
    ]
    return {"name": arm, "rows": rows, "distributions": figures.distributions(group, arm)}


def _bars(row: JointRow, delta: bool) -> dict[str, tuple[float, float] | None]:
    """Left and width, in percent of the limits, of positions (and actions that are ones)."""
    ranges = {"q": row.measured, "action": None if delta else row.action}
    ends = [row.limits] if row.limits else [one for one in ranges.values() if one]
    low, high = min((one[0] for one in ends), default=0), max((one[1] for one in ends), default=0)
    scale = 100 / max(high - low, 1e-9)
    bars: dict[str, tuple[float, float] | None] = dict.fromkeys(ranges)
    for name, ends_here in ranges.items():
        if ends_here is not None:
            left, right = (float(np.clip((end - low) * scale, 0, 100)) for end in ends_here)
            bars[name] = (min(left, 99.0), max(right - left, 1.0))
    return bars


def _film(sample: Sample, group: Group) -> dict[str, Any]:
    rate = group.contract.control_hz if group.contract is not None else None
    steps = sample.take.steps
    return {
        "episode": sample.episode_id,
        "instruction": sample.instruction,
        "success": sample.take.success,
        "length": f"{steps} steps" + (f", {steps / rate:.1f} s" if rate else ""),
        "cameras": [(name, list(map(_picture, frames))) for name, frames in sample.frames.items()],
    }


def _picture(frame: np.ndarray) -> dict[str, Any]:
    from PIL import Image

    picture = Image.fromarray(frame)
    picture.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88, subsampling=0)
    return {
        "source": embedded("image/jpeg", buffer.getvalue()),
        "width": picture.width,
        "height": picture.height,
    }


def _traces(group: Group, sample: Sample) -> dict[str, Any]:
    drawn = ((arm, figures.traces(group, sample, arm)) for arm in group.arms)
    names = dict.fromkeys(name for name, _ in sample.phases)
    colours = {name: index % 6 for index, name in enumerate(names)}
    return {
        "episode": sample.episode_id,
        "success": sample.take.success,
        "arms": [(arm, figure) for arm, figure in drawn if figure],
        "phases": [
            (name, colours[name], steps, 100 * steps / sample.take.steps)
            for name, steps in sample.phases
        ],
    }


def _codes(findings: tuple[Finding, ...]) -> list[tuple[str, int, str]]:
    counts = Counter(finding.code for finding in findings)
    return [(code, count, title(code)) for code, count in sorted(counts.items())]


def _finding(finding: Finding) -> dict[str, Any]:
    return finding.to_dict() | {"rule": title(finding.code)}


def _software(overview: Overview) -> Iterator[tuple[str, str]]:
    total: Counter[tuple[str, str]] = Counter()
    for group in overview.groups:
        total.update(group.software)
    versions: dict[str, list[str]] = {}
    for (name, version), episodes in sorted(total.items()):
        everywhere = episodes == overview.episodes
        shown = version if everywhere else f"{version} ({episodes} episodes)"
        versions.setdefault(name, []).append(shown)
    return iter([(name, ", ".join(found)) for name, found in versions.items()])
