"""What a foreign environment may import from the folder one stands in."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

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
