"""Running commands that must be refused, and seeing that nothing changed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from teamvla.cli.app import run

#: how an error begins: ``error: ...`` or ``file:line:column: error: ...``
ERROR = re.compile(r"^(error: |\S.*: error: )", re.MULTILINE)


def state_of(folder: Path) -> dict[str, str]:
    """Every file and link below a folder, hidden or not, but for the lock of an index."""
    found = (path for path in sorted(folder.rglob("*")) if path.name != "lock")
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "-"
        for path in found
        if path.is_file() or path.is_symlink()
    }


class Refused:
    """Runs a command that must be refused, in words and in JSON; keeps an eye on a folder."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._capsys = folder, capsys

    def __call__(self, code: int, *arguments: object) -> str:
        before = state_of(self._folder)
        words = [str(argument) for argument in arguments]
        self._capsys.readouterr()
        assert run(words) == code
        out, err = self._capsys.readouterr()
        assert out == ""
        assert len(ERROR.findall(err)) == 1, err
        assert "Traceback" not in err
        assert "internal error" not in err
        assert run([*words, "--json"]) == code
        said = json.loads(self._capsys.readouterr().out)
        assert (said["status"], said["exit_code"]) == ("error", code)
        assert state_of(self._folder) == before
        return str(said["error"]["message"])
