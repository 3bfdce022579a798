"""``teamvla ckpt-inspect``: what a checkpoint says of itself, read from its header alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from fnmatch import fnmatchcase
from textwrap import wrap
from typing import Annotated, Any

import typer

from teamvla.checkpoint import Header, TensorInfo, read_header, verify_digest
from teamvla.cli.console import Result, Style
from teamvla.cli.tree import cut, inline, printable, tree
from teamvla.errors import InputError

_DEPTH = 2
#: of a policy, and the registry that knows each
PARTS = {
    "vision": "ENCODER_REGISTRY",
    "projector": "PROJECTOR_REGISTRY",
    "language": "TEXT_ENCODER_REGISTRY",
    "temporal": "TEMPORAL_REGISTRY",
    "fusion": "FUSION_REGISTRY",
    "head": "ACTION_HEAD_REGISTRY",
}
_SCHEMA = "teamvla.ckpt-inspect/1"


def ckpt_inspect(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="A checkpoint file.")],
    tensors: Annotated[
        str | None, typer.Option("--tensors", metavar="GLOB", help="List matching tensors.")
    ] = None,
    section: Annotated[
        str | None, typer.Option("--section", metavar="NAME", help="Print one section in full.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the whole file and check its digest.")
    ] = False,
) -> Result:
    """Describe a checkpoint without loading it.

    Only the header is read, whatever the size of the file; nothing in it is ever
    executed.
    """
    header = verify_digest(checkpoint) if verify else read_header(checkpoint)
    if section is not None:
        return _one_section(header, section)
    if tensors is not None:
        return _matching_tensors(header, tensors)
    return Result(
        _SCHEMA,
        {**_file_facts(header, verify), "tensors": [_tensor_facts(t) for t in header.tensors]},
        human=lambda style: "\n".join(_overview(header, verify, style)),
        next_command=f"teamvla eval {shlex.quote(checkpoint)}" if _installed(header) else None,
    )


def _one_section(header: Header, name: str) -> Result:
    if name not in header.meta:
        from teamvla.registry import did_you_mean

        known = did_you_mean(name, [*header.meta])
        raise InputError(str(header.path), "a section of the header", repr(name), known)
    value = header.meta[name]
    data = {"path": header.path, "section": name, "value": value}
    return Result(_SCHEMA, data, human="\n".join(tree(value)))


def _matching_tensors(header: Header, pattern: str) -> Result:
    chosen = [tensor for tensor in header.tensors if fnmatchcase(tensor.name, pattern)]
    data = {"path": header.path, "tensors": [_tensor_facts(tensor) for tensor in chosen]}
    if not chosen:
        text = f"none of {len(header.tensors)} tensors matches {pattern!r}"
        return Result(_SCHEMA, data, human=text, exit_code=1)
    return Result(_SCHEMA, data, human=lambda style: "\n".join(_tensor_table(chosen, style)))


def _file_facts(header: Header, verified: bool) -> dict[str, Any]:
    return {
        "path": header.path,
        "bytes": header.file_bytes,
        "sha256": header.sha256,
        "verified": verified,
        "parameters": sum(tensor.numel for tensor in _model(header)),
        "modules": {name: sum(t.numel for t in group) for name, group in _modules(header)},
        **header.meta,
    }


def _tensor_facts(tensor: TensorInfo) -> dict[str, Any]:
    facts = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    return {**facts, "bytes": tensor.nbytes}


def _model(header: Header) -> list[TensorInfo]:
    return [tensor for tensor in header.tensors if tensor.name.startswith("model.")]


def _modules(header: Header) -> list[tuple[str, list[TensorInfo]]]:
    """Modules of the model down to a depth of two, each before its children."""
    groups: dict[str, list[TensorInfo]] = {}
    for tensor in _model(header):
        parts = tensor.name.split(".")[1:-1] or ["(top)"]
        for depth in range(1, min(len(parts), _DEPTH) + 1):
            groups.setdefault(".".join(parts[:depth]), []).append(tensor)
    return sorted(groups.items())


def _overview(header: Header, verified: bool, style: Style) -> Iterator[str]:
    yield style.bold(printable(header.path))
    yield from _facts(_summary(header, verified), style)
    yield from _titled("Parameters", _parameter_table(header, style), style)
    yield from _titled("Training state", tree(_part(header, "state"), style.width - 2), style)
    yield from _titled("Contract", _facts(_contract(header), style, ""), style)
    yield from _titled("Configuration", _config_sections(header, style), style)
    others = f"--section NAME prints one in full: {', '.join(map(printable, header.meta))}"
    yield from ("", *(style.dim(line) for line in wrap(others, style.width)))


def _config_sections(header: Header, style: Style) -> Iterator[str]:
    """The names alone: the whole would push the facts above off the screen."""
    if sections := _part(header, "config"):
        said = f"--section config prints {', '.join(map(printable, sections))}"
        yield from wrap(said, style.width - 2)


def _titled(title: str, lines: Iterator[str], style: Style) -> Iterator[str]:
    body = [line for line in lines if line.strip() not in ("", "{}")]
    if body:
        yield from ("", style.bold(title), *(f"  {line}" for line in body))


def _facts(pairs: dict[str, str], style: Style, indent: str = "  ") -> Iterator[str]:
    width = max(map(len, pairs), default=0) + 2
    for name, value in pairs.items():
        if value:
            room = style.width - width - 4
            yield f"{indent}{style.dim(name.ljust(width))}{cut(value, room)}"


def _summary(header: Header, verified: bool) -> dict[str, str]:
    meta, config, state = header.meta, _part(header, "config"), _part(header, "state")
    model, sections = _model(header), sorted({t.name.partition(".")[0] for t in header.tensors})
    success = state.get("best_success")
    trained = [f"{key} {inline(state[key])}" for key in ("epoch", "step") if key in state]
    if isinstance(success, int | float):
        trained.append(f"best success {success:.1%}")
    git = meta.get("git")
    code = git if isinstance(git, str) else _first(git, "commit", "revision")
    packages = _part(header, "packages")
    shown = [f"{name} {packages[name]}" for name in ("teamvla", "torch") if name in packages]
    return {
        "kind": inline(meta.get("kind", "unknown")),
        "policy": _first(config.get("model"), "type"),
        "parts": _parts(config.get("model")),
        "adapted": _adapted(config.get("model")),
        "base": _base(meta.get("base")),
        "task": _first(config.get("task"), "id", "name"),
        "data": ", ".join(map(printable, map(str, _items(meta, "tasks")))),
        "parameters": f"{sum(t.numel for t in model):,} in {len(model)} tensors",
        "size": f"{_size(header.file_bytes)} ({', '.join(map(printable, sections))})",
        "trained": ", ".join(trained),
        "created": inline(meta.get("created", "")),
        "made with": printable(", ".join([*shown, f"git {code[:12]}"] if code else shown)),
        "manifest": inline(meta.get("manifest_digest") or "")[:16],
        "sha256": f"{header.sha256[:16]} ({'verified' if verified else 'not checked: --verify'})",
    }


def _parts(model: Any) -> str:
    """``vision cnn, language characters, ...``, of those that the model has."""
    parts = [f"{name} {kind}" for name in PARTS if (kind := _kind(model, name))]
    if isinstance(model, dict) and isinstance(model.get("llm"), dict):
        parts.append(f"llm {_first(model['llm'], 'model_name')}")
    chunk = _first(model, "chunk_size")
    return ", ".join([*parts, f"chunk {chunk}"] if chunk else parts)


def _adapted(model: Any) -> str:
    """``lora r 16, alpha 32; frozen vision.*``, of a policy of which a part was trained."""
    given = model.get("adaptation") if isinstance(model, dict) else None
    lora = given.get("lora") if isinstance(given, dict) else None
    said = [f"lora r {_first(lora, 'r')}, alpha {_first(lora, 'alpha')}"] if lora else []
    frozen = ", ".join(map(inline, _items(given, "freeze"))) if isinstance(given, dict) else ""
    return "; ".join([*said, f"frozen {frozen}"] if frozen else said)


def _base(entry: Any) -> str:
    """The checkpoint that has what this one does not."""
    if not isinstance(entry, dict):
        return ""
    return f"{_first(entry, 'file')} ({_first(entry, 'sha256')[:12]}) has what was not trained"


def _kind(model: Any, name: str) -> str:
    return _first(model.get(name), "type") if isinstance(model, dict) else ""


def _installed(header: Header) -> bool:
    """Whether everything that the policy is made of has an entry here; nothing is imported."""
    from teamvla.models import registries

    model = _part(header, "config").get("model")
    named = {"": registries.MODELS, **{name: getattr(registries, to) for name, to in PARTS.items()}}
    kinds = {name: _kind(model, name) if name else _first(model, "type") for name in named}
    return all(not kind or kind in named[name] for name, kind in kinds.items())


def _contract(header: Header) -> dict[str, str]:
    contract = _part(header, "contract")
    if not contract:
        return {}
    arms = [
        f"{_first(arm, 'name')} ({_count(arm, 'links') or _count(arm, 'joints')} joints)"
        for arm in _items(contract, "arms")
    ]
    cameras = [
        f"{_first(camera, 'field')} {_first(camera, 'height')}x{_first(camera, 'width')}"
        for camera in _items(contract, "cameras")
    ]
    signals = [
        f"{_first(signal, 'field')} ({_first(signal, 'role')} {_values(signal)})"
        # What it commands goes first: a long line is cut.
        for signal in sorted(
            _items(contract, "signals"), key=lambda s: _first(s, "role") != "action"
        )
    ]
    units = [inline(contract.get(key, "?")) for key in ("angle_unit", "length_unit")]
    of_arms = {
        "action": f"{_first(contract, 'action')}, {_first(contract, 'action_timing')}",
        "units": f"{', '.join(units)}, gripper {_first(contract, 'gripper')}",
    }
    return {
        "embodiment": f"{_first(contract, 'embodiment')}, {_first(contract, 'control_hz')} Hz",
        **(of_arms if arms else {}),
        "arms": ", ".join(arms),
        "cameras": ", ".join(cameras),
        "signals": ", ".join(signals),
    }


def _values(signal: Any) -> str:
    """``float32, m``, or the names of its choices."""
    choices = _items(signal, "choices") if isinstance(signal, dict) else []
    unit = _first(signal, "unit")
    kind = "|".join(map(inline, choices)) or _first(signal, "dtype")
    return f"{kind}, {unit}" if unit else kind


def _parameter_table(header: Header, style: Style) -> Iterator[str]:
    total = sum(tensor.numel for tensor in _model(header)) or 1
    for name, group in _modules(header):
        numel = sum(tensor.numel for tensor in group)
        depth = name.count(".")
        label = cut("  " * depth + printable(name.rpartition(".")[2]), 40)
        line = f"{label:<40} {numel:>14,} {100 * numel / total:>6.1f} %"
        line += f" {_size(sum(t.nbytes for t in group)):>10}  {_dtypes(group)}"
        yield style.dim(line) if depth else line


def _tensor_table(tensors: list[TensorInfo], style: Style) -> Iterator[str]:
    room = style.width - 38
    width = min(max(len(printable(tensor.name)) for tensor in tensors), room)
    for tensor in tensors:
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        name = printable(tensor.name).ljust(width)
        yield f"{name}  {tensor.dtype:<4}  {shape:<18} {_size(tensor.nbytes):>10}"
    numel = sum(tensor.numel for tensor in tensors)
    size = _size(sum(tensor.nbytes for tensor in tensors))
    yield style.bold(f"{len(tensors)} tensors, {numel:,} values, {size}")


def _dtypes(tensors: list[TensorInfo]) -> str:
    return ", ".join(sorted({tensor.dtype for tensor in tensors}))


def _size(count: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def _part(header: Header, name: str) -> dict[str, Any]:
    part = header.meta.get(name)
    return part if isinstance(part, dict) else {}


def _first(data: Any, *keys: str) -> str:
    """The first of ``keys`` that ``data`` has, as text; empty if there is none."""
    found = [data[key] for key in keys if key in data] if isinstance(data, dict) else []
    return inline(found[0]) if found else ""


def _items(data: dict[str, Any], key: str) -> list[Any]:
    items = data.get(key)
    return items if isinstance(items, list) else []


def _count(data: Any, key: str) -> int:
    return len(_items(data, key)) if isinstance(data, dict) else 0
