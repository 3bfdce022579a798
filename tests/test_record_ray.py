"""Recording on a Ray cluster: the same bytes, and clear words where there is none."""

from __future__ import annotations

import os
import sys
import types
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from small_env import SmallConfig, SmallEnv

from teamvla.errors import ConfigError, EpisodeWriteError, MissingDependencyError
from teamvla.record import RecordConfig, Recorder, ray_cluster, record


def recorder(out: Path, **config: object) -> Recorder:
    return Recorder(SmallConfig(), RecordConfig(**config), out, 3)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.npz")}


def test_without_the_extra_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"teamvla\[ray\]"):
        record(recorder(tmp_path), 2, executor="ray")


def test_without_a_cluster_it_is_told_how_to_start_one(tmp_path, monkeypatch):
    def init(**_: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.\nmore")

    absent = types.SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", absent)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"Ray at auto: expected a running cluster.*head"):
        record(recorder(tmp_path), 2, executor="ray")


def test_an_address_where_nobody_listens_is_told_at_once(tmp_path, monkeypatch):
    present = types.SimpleNamespace(is_initialized=lambda: False, init=None)
    monkeypatch.setitem(sys.modules, "ray", present)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"Ray at 127.0.0.1:1: .*refused"):
        record(recorder(tmp_path), 2, executor="ray")


def test_a_node_closes_the_environment_of_the_recording_before(tmp_path, monkeypatch):
    closed: list[SmallEnv] = []
    monkeypatch.setattr(ray_cluster, "_open", {})
    monkeypatch.setattr(SmallEnv, "close", lambda env: closed.append(env))
    for index in (0, 1):
        ray_cluster._record(recorder(tmp_path / "first"), index)
    assert closed == []
    ray_cluster._record(recorder(tmp_path / "second"), 0)
    assert len(closed) == 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two processors of this machine, without a dashboard."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray = pytest.importorskip("ray")
    here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=here)
    yield
    ray.shutdown()
    del os.environ["RAY_AUTH_MODE"]


@pytest.mark.slow
def test_a_cluster_records_the_same_bytes(tmp_path, cluster):
    expert = "small_env:Raises"
    here = record(recorder(tmp_path / "here", expert=expert), 10)
    there = record(recorder(tmp_path / "there", expert=expert), 10, executor="ray")
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert here.failures == there.failures
    assert here.broken > 0


@pytest.mark.slow
def test_a_recording_on_a_cluster_stops_and_goes_on(tmp_path, cluster):
    asked: list[int] = []
    one = recorder(tmp_path)
    part = record(
        one, 12, executor="ray", workers=2, stop=lambda: bool(asked.append(1)) or len(asked) > 3
    )
    assert part.interrupted
    assert 0 < len(part.kept) < 12
    record(one, 12, executor="ray", workers=2)
    record(replace(one, out=tmp_path / "again"), 12)
    assert contents(tmp_path / "again") == {
        name: data for name, data in contents(tmp_path).items() if not name.startswith("again")
    }


@pytest.mark.slow
def test_an_error_on_a_node_reaches_the_caller(tmp_path, cluster):
    (tmp_path / "small").write_text("in the way")
    with pytest.raises(EpisodeWriteError, match="small"):
        record(recorder(tmp_path), 2, executor="ray")
