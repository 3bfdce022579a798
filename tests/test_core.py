"""The ground everything stands on: errors, files, seeds, registry, logs, interrupts."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from teamvla import errors, files, seeds
from teamvla.errors import (
    ConfigError,
    EpisodeError,
    InputError,
    MissingDependencyError,
    RegistryError,
    SchemaError,
    TeamVLAError,
)
from teamvla.interrupts import graceful_stop
from teamvla.logs import progress, show
from teamvla.registry import Registry, did_you_mean, import_user_object
from teamvla.seeds import Domain

# Errors.


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (TeamVLAError("it broke"), "it broke"),
        (TeamVLAError("a", "b", "c"), "a: expected b, got c"),
        (TeamVLAError("a", "b", "c", "Do d."), "a: expected b, got c. Do d."),
        (TeamVLAError("a", None, "c"), "a: c"),
        (SchemaError("a", "b", "c", code="E104"), "[E104] a: expected b, got c"),
    ],
)
def test_message_grammar(error, message):
    assert str(error) == message


def test_exit_codes_are_those_of_the_table():
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass)]
    codes = {c.__name__: c.exit_code for c in classes if issubclass(c, TeamVLAError)}
    assert codes == {
        "TeamVLAError": 3,
        "ConfigError": 2,
        "InputError": 2,
        "RegistryError": 2,
        "MissingDependencyError": 2,
        "SchemaError": 1,
        "EpisodeError": 1,
        "EpisodeWriteError": 3,
        "ContractError": 1,
        "CheckpointError": 1,
        "SimulationError": 3,
    }
    assert issubclass(InputError, ConfigError)
    assert issubclass(EpisodeError, SchemaError)


def test_an_error_survives_the_way_home_from_a_worker():
    error = EpisodeError("a", "b", "c", "Do d.", code="E104")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is EpisodeError
    assert (str(again), again.code, again.mend) == (str(error), "E104", "Do d.")


def test_a_missing_extra_names_its_installation():
    error = MissingDependencyError.for_extra("pyarrow", "lerobot")
    assert "pip install 'teamvla[lerobot]'" in str(error)


# Files.


def fill_with(content: bytes):
    return lambda file: file.write(content)


def only_child(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_publish_writes_all_and_leaves_nothing_else(tmp_path):
    path = files.publish(tmp_path / "new" / "a.bin", fill_with(b"abc"))
    assert path.read_bytes() == b"abc"
    assert only_child(path.parent) == ["a.bin"]


def test_publish_never_replaces_unasked(tmp_path):
    path = files.publish(tmp_path / "a", fill_with(b"old"))
    with pytest.raises(FileExistsError):
        files.publish(path, fill_with(b"new"))
    assert path.read_bytes() == b"old"
    assert only_child(tmp_path) == ["a"]
    files.publish(path, fill_with(b"new"), replace=True)
    assert path.read_bytes() == b"new"


def test_a_failed_publish_keeps_the_old_file_and_no_remains(tmp_path):
    path = files.publish(tmp_path / "a", fill_with(b"old"))

    def fill(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        files.publish(path, fill, replace=True)
    assert path.read_bytes() == b"old"
    assert only_child(tmp_path) == ["a"]


def test_publish_without_hard_links_still_never_replaces(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = files.publish(tmp_path / "a", fill_with(b"old"))
    assert path.read_bytes() == b"old"
    with pytest.raises(FileExistsError):
        files.publish(path, fill_with(b"new"))
    assert path.read_bytes() == b"old"
    assert only_child(tmp_path) == ["a"]


def test_a_published_file_has_the_permissions_of_an_ordinary_one(tmp_path):
    (tmp_path / "ordinary").write_bytes(b"")
    path = files.publish(tmp_path / "a", fill_with(b""))
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "ordinary").stat().st_mode)


def test_sha256_is_the_known_one(tmp_path):
    path = files.publish(tmp_path / "a", fill_with(b"abc"))
    assert files.sha256_file(path).startswith("ba7816bf8f01cfea414140de5dae2223")


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_canonical_json_is_json_whatever_the_order_of_keys(value):
    text = files.canonical_json(value)
    assert json.loads(text) == value
    if isinstance(value, dict):
        assert files.canonical_json(dict(reversed(value.items()))) == text


def test_canonical_json_refuses_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.canonical_json({"a": float("nan")})


def test_json_files_round_trip_and_bad_ones_are_named(tmp_path):
    path = files.write_json(tmp_path / "a.json", {"ü": [1, None]})
    assert files.read_json(path) == {"ü": [1, None]}
    path.write_text("{")
    with pytest.raises(InputError, match=r"a\.json: expected JSON"):
        files.read_json(path)
    with pytest.raises(InputError, match=r"b\.json: expected a file, got nothing there"):
        files.read_json(tmp_path / "b.json")


# Seeds.

arguments = st.tuples(st.integers(0, 2**32), st.sampled_from(Domain), st.integers(0, 2**31))


@given(arguments, arguments)
def test_no_two_reset_seeds_are_shared(left, right):
    assert (seeds.reset_seed(*left) == seeds.reset_seed(*right)) == (left == right)


@given(arguments)
def test_a_generator_is_the_same_every_time_and_apart_from_its_neighbours(of):
    seed, domain, index = of
    draw = seeds.generator(*of).integers(0, 2**63, 4)
    assert np.array_equal(draw, seeds.generator(*of).integers(0, 2**63, 4))
    assert not np.array_equal(draw, seeds.generator(seed + 1, domain, index).integers(0, 2**63, 4))
    assert not np.array_equal(draw, seeds.generator(seed, domain, index + 1).integers(0, 2**63, 4))
    other = Domain(domain % len(Domain) + 1)
    assert not np.array_equal(draw, seeds.generator(seed, other, index).integers(0, 2**63, 4))


def test_recorded_numbers_stay_what_they_were():
    # They are part of every data set and report: a change here is a change of the format.
    assert {domain.name: int(domain) for domain in Domain} == {
        "RECORD": 1, "EVALUATE": 2, "SELECT": 3, "NOISE": 4,
        "ORDER": 5, "AUGMENT": 6, "INITIALISE": 7, "POLICY": 8,
    }  # fmt: skip
    assert seeds.reset_seed(1, Domain.EVALUATE, 3) == 1_108_101_562_371
    assert seeds.integer(0, Domain.RECORD) == 3_964_924_996
    assert seeds.generator(0, Domain.NOISE, 7).integers(0, 1000, 3).tolist() == [267, 379, 398]


# Registry.


def test_builtins_are_imported_only_when_asked_for():
    registry = Registry("thing", {"good": "pathlib:Path", "broken": "no_such_module:X"})
    assert registry.names() == ["broken", "good"]
    assert "broken" in registry
    assert registry.get("good") is Path
    with pytest.raises(RegistryError, match="no_such_module:X to be importable, got ModuleNotF"):
        registry.get("broken")


def test_an_unknown_name_is_answered_with_a_suggestion():
    with pytest.raises(RegistryError) as refused:
        Registry("model", {"vla": "x:Y", "bc": "x:Z"}).get("vlaa")
    assert str(refused.value) == (
        "model 'vlaa': expected a known name. Did you mean 'vla'? Known: bc, vla"
    )
    assert did_you_mean("zzz", []) == "Known: none"
    assert did_you_mean("rain", ["fog", "crossing"]) == "Known: crossing, fog"


def test_what_a_user_names_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_own_module.py").write_text("NUMBER = 3\ndef thing(): return 7\n")
    (tmp_path / "my_broken_module.py").write_text("raise SystemExit('no\\nsuch')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert import_user_object("my_own_module:thing", "task.wrap")() == 7
    wrong = {
        "my_own_module:NUMBER": "a int",
        "my_own_module:nothing": "no nothing in my_own_module",
        "my_own_module:thinq": "no thinq in my_own_module. Did you mean 'thing'? Mend it.",
        "my_broken_module:thing": "SystemExit: no",
        "thing": "no MODULE:NAME",
    }
    for target, got in wrong.items():
        with pytest.raises(ConfigError) as told:
            import_user_object(target, "task.wrap", "Mend it.")
        expected = f"task.wrap {target!r}: expected a class or function that can be imported, got "
        assert str(told.value).startswith(expected + got)
        assert str(told.value).endswith(" Mend it.")
    sys.modules.pop("my_own_module")


def test_a_name_is_registered_once():
    registry: Registry[type] = Registry("model", {"bc": "x:Y"})

    @registry.register("mine")
    class Mine:
        pass

    assert registry.get("mine") is Mine
    with pytest.raises(RegistryError, match="expected a new name"):
        registry.register("bc")(Mine)


def test_other_packages_announce_theirs_but_never_replace_ours(monkeypatch, caplog):
    def announced(group):
        assert group == "teamvla.things"
        point = type("Point", (), {})
        ours, theirs, again = point(), point(), point()
        ours.name, ours.value = "path", "os:sep"
        for one in (theirs, again):  # installed twice, it is the same all the same
            one.name, one.value = "separator", "os:sep"
        return [ours, theirs, again]

    monkeypatch.setattr("importlib.metadata.entry_points", announced)
    registry = Registry("thing", {"path": "pathlib:Path"}, "teamvla.things")
    assert list(registry) == ["path", "separator"]
    assert registry.get("path") is Path
    assert registry.get("separator") == os.sep
    assert caplog.messages == [
        "thing 'path' of an entry point, os:sep, is left out: the name is taken by pathlib:Path"
    ]


# Logs.


def test_every_advance_is_a_debug_record_and_the_end_an_info(caplog):
    with caplog.at_level(logging.DEBUG, "teamvla.progress"), progress("work", 3, "item") as state:
        state.advance(loss=0.123456)
        state.advance(2, note="ok")
    ticks = [(r.levelname, r.progress is state) for r in caplog.records]
    assert ticks == [("DEBUG", True)] * 4 + [("INFO", True)]
    assert caplog.messages[-1].startswith("work: 3/3 items (100%), ")
    assert caplog.messages[-1].endswith("/s, loss 0.1235, note ok")


def test_a_progress_that_fails_still_ends(caplog):
    with (
        caplog.at_level(logging.INFO, "teamvla.progress"),
        pytest.raises(ZeroDivisionError),
        progress("work", 4) as state,
    ):
        state.advance(1 // 0)
    assert state.finished
    assert caplog.messages == ["work: 0/4 steps (0%), 0/s"]


def test_metrics_are_shown_to_four_digits():
    assert [show(x) for x in (0.00012345678, 12345678.0, "text")] == [
        "0.0001235", "1.235e+07", "text",
    ]  # fmt: skip


# Interrupts.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_asks_and_handlers_are_put_back(number, caplog):
    before = signal.getsignal(number)
    with graceful_stop() as stop:
        assert not stop
        assert stop.exit_code == 0
        signal.raise_signal(number)
        assert stop
        assert stop.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert caplog.messages[0].startswith(f"{number.name} received: finishing what must be safe")


def test_a_second_interrupt_ends_the_process_at_once():
    code = (
        "import signal\n"
        "from teamvla.interrupts import graceful_stop\n"
        "with graceful_stop():\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('still here', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('not here')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "still here\n")


def test_a_job_in_the_background_of_a_script_still_stops():
    # Such jobs start with SIGINT ignored, and Python then leaves it so.
    code = (
        "import signal\n"
        "from teamvla.interrupts import graceful_stop\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN\n"
        "with graceful_stop() as stop:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "raise SystemExit(stop.exit_code)\n"
    )
    shell = ["sh", "-c", 'trap \'\' INT; exec "$0" -c "$1"', sys.executable, code]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr[:9]) == (130, "SIGINT re")


def test_outside_the_main_thread_it_never_becomes_true():
    seen = []

    def work():
        with graceful_stop() as stop:
            seen.append((bool(stop), stop.exit_code))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, 0)]
