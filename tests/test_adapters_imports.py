"""What commands may import and read from the folder one stands in, which may be a stranger's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from teamvla.config import Project
from teamvla.errors import MissingDependencyError
from teamvla.registry import import_user_object
from teamvla.sim.adapters import opening

PLANTED = "from pathlib import Path\nPath('executed').touch()\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder; the paths of modules are put back in the end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return tmp_path


def test_the_package_of_an_extra_is_never_taken_from_the_current_folder(folder, monkeypatch):
    (folder / "absent_world.py").write_text(PLANTED)
    monkeypatch.setitem(opening.EXTRAS, "absent_world", "worlds")
    with pytest.raises(MissingDependencyError, match="worlds"):
        opening.import_registrations("absent_world")
    assert not (folder / "executed").exists()


def test_a_module_of_ones_own_is_found_there(folder):
    (folder / "my_registered_world.py").write_text(PLANTED)
    opening.import_registrations("my_registered_world")
    assert (folder / "executed").exists()


def test_this_packages_own_objects_do_not_open_the_folder(folder):
    import_user_object("teamvla.sim.env:make_env", "task.wrap")
    assert str(folder) not in sys.path


def test_commands_that_start_interpreters_run_nothing_that_lies_there(folder):
    for name in ("ctypes", "multiprocessing"):
        (folder / f"{name}.py").write_text(PLANTED)
    small = ["--set", "task.camera.height=8", "--set", "task.camera.width=8"]
    command = [Path(sys.executable).with_name("teamvla"), "record", "-n", "2", "--workers", "2"]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    ended = subprocess.run([*command, *small], env=clean, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert not (folder / "executed").exists()


def test_a_bare_name_means_the_shipped_configuration_and_a_path_the_file(folder):
    (folder / "lift").write_text("task: {max_steps: 7}")
    (folder / "mine.yaml").write_text("task: {max_steps: 8}")
    steps = {name: Project.load(name).source.data["task"]["max_steps"]
             for name in ("lift", "./lift", "mine.yaml")}  # fmt: skip
    assert steps == {"lift": 150, "./lift": 7, "mine.yaml": 8}
