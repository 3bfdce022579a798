"""Nothing in the package can run what a file says: its syntax trees, looked through."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import teamvla

PACKAGE = Path(teamvla.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
#: modules that execute what they read; their names may not even be imported
MODULES = {
    "pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "marshal",
    "shelve", "code", "codeop", "jsonpickle",
}  # fmt: skip
NAMES = {"eval", "exec", "compile", "__import__"}
METHODS = {
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.full_load_all",
    "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "pandas.read_pickle", "pd.read_pickle",
    "os.system", "os.popen", "np.lib.format.read_array", "numpy.lib.format.read_array",
}  # fmt: skip
SAFE = {"allow_pickle": "False", "weights_only": "True", "shell": "False"}


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Whatever runs, or may run, what a file says."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            whole = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            yield from (n for n in whole if n.partition(".")[0] in MODULES or n in METHODS)
        elif isinstance(node, ast.Name) and node.id in NAMES:
            yield node.id
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in METHODS:
            yield ast.unparse(node)
        elif isinstance(node, ast.Constant) and node.value in MODULES - {"code"}:
            yield f"{node.value!r}, to be imported by name"
        elif isinstance(node, ast.Call):
            yield from _keywords(node)


def _keywords(call: ast.Call) -> Iterator[str]:
    said = {word.arg: ast.unparse(word.value) for word in call.keywords}
    for name, value in SAFE.items():
        if said.get(name, value) != value:
            yield f"{name}={said[name]}"
    called = ast.unparse(call.func)
    if called == "torch.load" and "weights_only" not in said:
        yield "torch.load without weights_only"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_can_run_what_a_file_says(path: Path) -> None:
    assert list(unsafe(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle", "import pickle as p", "from pickle import loads", "import marshal",
        "from yaml import load", "yaml.load(f, yaml.Loader)", "loader = yaml.UnsafeLoader",
        "eval(text)", "run = exec", "f = eval", "__import__(name)", "compile(t, 'x', 'exec')",
        "import_module('pickle')", "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)", "torch.load(f)", "torch.load(f, weights_only=False)",
        "x(weights_only=None)", "subprocess.run(c, shell=True)", "os.system(c)",
        "from joblib import load", "import dill.session", "import shelve, os",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(code: str) -> None:
    assert list(unsafe(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "np.load(f, allow_pickle=False)", "np.load(f)", "model.eval()",
        "torch.load(f, weights_only=True)",
        "re.compile(x)", "yaml.safe_load(f)", "torch.compile(m)", "error.code",
        "from teamvla.data.pickles import load_objects",
    ],
)  # fmt: skip
def test_the_search_lets_the_rest_pass(code: str) -> None:
    assert not list(unsafe(ast.parse(code)))
