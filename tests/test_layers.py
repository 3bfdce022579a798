"""Who may import whom, what is never called, and what the light commands leave alone."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import teamvla
from teamvla.cli.app import COMMANDS

PACKAGE = Path(teamvla.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def test_the_layers_hold():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command as c; c()",
            "--no-cache",
        ],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def unsafe(tree: ast.AST) -> Iterator[str]:
    """Calls that run, or may run, what a file says."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        module, _, name = called.rpartition(".")
        if module in UNPICKLERS and name in ("load", "loads", "Unpickler", "open"):
            yield called
        if called in ("eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load"):
            yield called
        for keyword in node.keywords:
            setting = f"{keyword.arg}={ast.unparse(keyword.value)}"
            if keyword.arg == "allow_pickle" and setting != "allow_pickle=False":
                yield f"{called}({setting})"
            if keyword.arg == "weights_only" and setting != "weights_only=True":
                yield f"{called}({setting})"
        if called == "torch.load" and not any(k.arg == "weights_only" for k in node.keywords):
            yield "torch.load without weights_only"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_runs_what_a_file_says(path):
    assert list(unsafe(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "code",
    [
        "pickle.load(f)",
        "pickle.Unpickler(f)",
        "joblib.load(f)",
        "np.load(f, allow_pickle=True)",
        "np.load(f, allow_pickle=flag)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "yaml.load(f, Loader=yaml.Loader)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_is_for(code):
    assert list(unsafe(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    ["np.load(f, allow_pickle=False)", "torch.load(f, weights_only=True)", "model.eval()"],
)
def test_the_search_lets_the_rest_pass(code):
    assert not list(unsafe(ast.parse(code)))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_can_be_read_in_one_go(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def modules_after(*arguments: str, **environment: str) -> set[str]:
    """Top-level packages that a command line imports, in an interpreter of its own."""
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: sys.stderr.write('\\nMODULES ' + ' '.join("
        "{name.partition('.')[0] for name in sys.modules})))\n"
        f"sys.argv[1:] = {list(arguments)!r}\n"
        "from teamvla.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stderr.rpartition("MODULES ")[2].split())


HEAVY = {"torch", "mujoco", "matplotlib", "PIL", "gymnasium", "safetensors", "numpy"}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["config", "--help"]])
def test_the_root_imports_nothing_heavy(arguments):
    assert modules_after(*arguments) & (HEAVY | {"pydantic", "rich", "yaml"}) == set()


def test_the_completion_script_needs_nothing_heavy():
    without_detection = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    assert modules_after("--show-completion", "bash", **without_detection) & HEAVY == set()


def test_ckpt_inspect_imports_nothing_heavy(tmp_path):
    from teamvla.checkpoint import write_checkpoint

    path = write_checkpoint(tmp_path / "a.ckpt", {"kind": "policy"}, {})
    for arguments in (["ckpt-inspect", "--help"], ["ckpt-inspect", str(path), "--json"]):
        assert modules_after(*arguments) & (HEAVY | {"pydantic", "rich", "yaml"}) == set()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_no_command_imports_torch_to_show_its_help(name):
    assert "torch" not in modules_after(name, "--help")


@pytest.mark.parametrize("name", ["record", "train", "eval"])
def test_completion_never_imports_torch(name):
    completing = {"_TEAMVLA_COMPLETE": "complete_bash", "COMP_WORDS": f"teamvla {name} --j"}
    assert "torch" not in modules_after(**completing, COMP_CWORD="2")


def test_validate_and_index_never_import_torch(lift_root, tmp_path):
    for command in (["validate"], ["index", "--out", str(tmp_path)]):
        loaded = modules_after(*command, str(lift_root))
        assert "numpy" in loaded
        assert not loaded & {"torch", "mujoco", "matplotlib"}


def test_record_never_imports_torch(tmp_path):
    small = ["--set", "task.camera.height=8", "--set", "task.camera.width=8"]
    loaded = modules_after("record", "--episodes", "1", "--out", str(tmp_path), *small)
    assert "mujoco" in loaded
    assert not loaded & {"torch", "matplotlib"}
