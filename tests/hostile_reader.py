"""The reader's modules, as they are or with one guard taken out, before hostile files."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

import hostile
import hostile_archives
import hostile_layouts
from hostile import Case

from teamvla.errors import TeamVLAError

#: in the order in which they import each other
MODULES = ("zipcontainer", "npy", "npz", "pickle_machine", "pickles", "version1")
#: raises that are not about what a file holds, with the function they stand in
NO_GUARDS = {
    "npz": {"write_npz", "encode_meta", "__init__"},
    "version1": {"_opened"},
}  # fmt: skip
_PACKAGE = "teamvla.data"


def cases() -> list[Case]:
    """All hostile files there are."""
    makers = (
        hostile.gadgets, hostile.streams, hostile_layouts.layouts, hostile_archives.archives,
        hostile_archives.arrays, hostile_archives.metadata, hostile_archives.ragged,
        hostile_archives.systems,
    )  # fmt: skip
    return [case for maker in makers for case in maker()]


class Reader(SimpleNamespace):
    """The modules by name, and what they make of a file."""

    folder: Path

    def code_of(self, case: Case) -> str:
        """The code of the refusal, ``no error``, or the name of another exception."""
        try:
            with self._limited(case.limits):
                self._run(case)
        except TeamVLAError as error:
            return error.code or type(error).__name__
        except Exception as error:
            return type(error).__name__
        return "no error"

    def _run(self, case: Case) -> None:
        if case.act is not None:
            case.act(self)
            return
        path = self.folder / "hostile.npz"
        if case.content is not None:
            path.write_bytes(case.content)
        if case.old:
            self.version1.read_version1(path, max_bytes=case.max_bytes)
            return
        episode = self.npz.read_episode(path, case.fields, max_bytes=case.max_bytes)
        for number in range(min(episode.num_steps, 9)):
            episode.step(number)

    def read_sound(self, old: bool) -> None:
        """Read a file with nothing wrong in it."""
        self._run(Case("sound", "", hostile.old() if old else hostile.sound(), old))

    @contextmanager
    def _limited(self, limits: dict[str, int]) -> Iterator[None]:
        kept = {}
        for name, value in limits.items():
            module, _, constant = name.partition(".")
            kept[name] = getattr(getattr(self, module), constant)
            setattr(getattr(self, module), constant, value)
        try:
            yield
        finally:
            for name, value in kept.items():
                module, _, constant = name.partition(".")
                setattr(getattr(self, module), constant, value)


def reader(folder: Path) -> Reader:
    """The reader as it is."""
    found = {name: importlib.import_module(f"{_PACKAGE}.{name}") for name in MODULES}
    return Reader(folder=folder, **found)


class Laboratory:
    """Makes readers that lack one guard."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        sources = {name: _source(name) for name in MODULES}
        self._codes = {name: _compiled(name, ast.parse(text)) for name, text in sources.items()}
        self._sources = sources

    def guards(self) -> Iterator[tuple[str, int, str]]:
        """Module, line and code (or ``?``) of every raise that refuses a file."""
        for module, source in self._sources.items():
            for node in _raises(ast.parse(source), NO_GUARDS.get(module, set())):
                constants = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant)]
                codes = [c for c in constants if isinstance(c, str) and _is_code(c)]
                yield module, node.lineno, codes[0] if codes else "?"

    def without(self, module: str, line: int) -> Reader:
        """The reader whose ``raise`` at that line does nothing."""
        tree = _Remover(line).visit(ast.parse(self._sources[module]))
        codes = {**self._codes, module: _compiled(module, ast.fix_missing_locations(tree))}
        names = {name: f"{_PACKAGE}.{name}" for name in MODULES}
        kept = {full: sys.modules[full] for full in names.values()}
        made = {}
        try:
            for name, full in names.items():
                made[name] = sys.modules[full] = ModuleType(full)
                exec(codes[name], made[name].__dict__)
        finally:
            sys.modules.update(kept)
        return Reader(folder=self._folder, **made)


def _source(name: str) -> str:
    path = importlib.import_module(f"{_PACKAGE}.{name}").__file__
    assert path is not None
    return Path(path).read_text(encoding="utf-8")


def _compiled(name: str, tree: Any) -> CodeType:
    code: CodeType = compile(tree, f"<{name}>", "exec")
    return code


def _is_code(text: str) -> bool:
    return len(text) == 4 and text[0] == "E" and text[1:].isdigit()


def _raises(tree: ast.AST, skip: set[str]) -> Iterator[ast.Raise]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name in skip:
            continue
        if isinstance(node, ast.Raise) and node.exc and "ConfigError" not in ast.unparse(node.exc):
            yield node
        yield from _raises(node, skip)


class _Remover(ast.NodeTransformer):
    def __init__(self, line: int) -> None:
        self._line = line

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        return ast.Pass() if node.lineno == self._line else node
