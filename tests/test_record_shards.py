"""One set of episodes, however it is divided, interrupted and continued."""

from __future__ import annotations

import json
import threading
from collections import namedtuple
from pathlib import Path

import pytest
from small_env import SmallConfig

from teamvla.cli.app import run
from teamvla.errors import ConfigError, InputError
from teamvla.record import RecordConfig, Recorder, Shard, record

Disk = namedtuple("Disk", "total used free")


def recorder(out: Path, expert: str = "Raises") -> Recorder:
    """An expert that fails now and then: its episodes need several attempts."""
    return Recorder(SmallConfig(), RecordConfig(expert=f"small_env:{expert}"), out, 3)


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process records of ten episodes, some of them at the second attempt."""
    root = tmp_path_factory.mktemp("whole")
    total = record(recorder(root), 10)
    assert total.broken >= 2
    return contents(root)


@pytest.mark.parametrize("count", [2, 3, 12])
def test_all_shards_together_are_the_whole(tmp_path, whole, count):
    totals = [record(recorder(tmp_path), 10, shard=Shard(i, count)) for i in range(count)]
    assert contents(tmp_path) == whole
    assert sum(total.attempts for total in totals) > 10


def test_a_shard_that_runs_again_adds_nothing(tmp_path):
    record(recorder(tmp_path), 10, shard=Shard(1, 3))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")}
    again = record(recorder(tmp_path), 10, shard=Shard(1, 3))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")} == before
    assert [one.index for one in again.kept] == [1, 4, 7]
    assert again.new_steps == 0


def test_what_was_recorded_stays_when_more_is_asked_for(tmp_path, whole):
    record(recorder(tmp_path), 4)
    assert contents(tmp_path) == {name: whole[name] for name in sorted(whole)[:4]}
    record(recorder(tmp_path), 10)
    assert contents(tmp_path) == whole


def test_failed_attempts_change_no_byte_for_two_workers(tmp_path, whole):
    record(recorder(tmp_path), 10, workers=2)
    assert contents(tmp_path) == whole


def test_shards_record_into_one_folder_at_once(tmp_path, whole):
    threads = [
        threading.Thread(target=record, args=(recorder(tmp_path), 10), kwargs={"shard": shard})
        for shard in (Shard(0, 2), Shard(1, 2))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(tmp_path) == whole


def test_a_hole_is_filled_with_what_was_there(tmp_path, whole):
    record(recorder(tmp_path), 10)
    for name in sorted(whole)[2:5]:
        (tmp_path / name).unlink()
    total = record(recorder(tmp_path), 10)
    assert sum(one.existed for one in total.kept) == 7
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("text", ["4/4", "7/4", "0/0", "1", "a/b", "-1/4", "1/", "1/2/3", ""])
def test_shards_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="--shard"):
        Shard.parse(text)


def test_a_division_into_no_parts_is_named():
    with pytest.raises(ConfigError, match="expected i/n with at least one part, got '0/0'"):
        Shard.parse("0/0")


def test_shards_are_told_to_count_from_0(capsys, tmp_path):
    code = run(["record", "--shard", "4/4", "--out", str(tmp_path)])
    assert code == 2
    assert "expected 0/4 to 3/4, got 4/4. Shards count from 0" in capsys.readouterr().err


def test_the_command_records_one_shard(capsys, tmp_path):
    words = ["record", "--task", "small", "-n", "5", "--shard", "1/2", "--out", str(tmp_path)]
    assert run([*words, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["recorded"], data["shard"]) == (2, [1, 2])
    assert [path.stem for path in sorted(tmp_path.rglob("*.npz"))] == ["s0-000001", "s0-000003"]


# Room on the disk.


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("teamvla.record.room.shutil.disk_usage", lambda _: Disk(0, 0, free))


def test_what_cannot_fit_is_refused_after_the_first_episode(tmp_path, monkeypatch):
    with_free(monkeypatch, 20_000)
    with pytest.raises(InputError, match=r"room for 9 episodes of about .* kB.*got 20 kB free"):
        record(recorder(tmp_path), 10)
    assert len(contents(tmp_path)) == 1


def test_what_cannot_fit_beside_earlier_episodes_is_refused_at_once(tmp_path, monkeypatch):
    record(recorder(tmp_path), 2)
    with_free(monkeypatch, 20_000)
    with pytest.raises(InputError, match="room for 8 episodes"):
        record(recorder(tmp_path), 10)
    assert len(contents(tmp_path)) == 2


def test_the_disk_is_estimated_before_the_start(tmp_path, caplog):
    caplog.set_level("INFO", "teamvla")
    record(recorder(tmp_path), 3)
    said = [one.getMessage() for one in caplog.records if one.name == "teamvla.record.room"]
    # 40 steps of an 8 x 8 picture, 4 rows of radar and their mask, 2 + 6 numbers, and success,
    # reward, timestamp and phase; heads and metadata of three files
    row = 8 * 8 * 3 + 4 * 5 * 4 + 4 + 4 * (2 + 6) + 64
    most = 3 * (40 * row + 16_000)
    assert said[0].startswith(f"3 episodes need at most {most / 1000:.3g} kB")
    size = len(next(iter(contents(tmp_path).values())))
    assert said[1].startswith(f"2 more episodes need about {2 * size / 1000:.3g} kB")


def test_a_file_is_no_larger_than_the_estimate_even_if_it_is_short(tmp_path, caplog):
    caplog.set_level("INFO", "teamvla")
    one = Recorder(
        SmallConfig(max_steps=1),
        RecordConfig(keep_failures=True, compression="stored"),
        tmp_path,
        0,
    )
    total = record(one, 1)
    said = next(line for line in caplog.messages if line.startswith("1 episode needs at most"))
    assert total.kept[0].path.stat().st_size < 1000 * float(said.split()[5])


def test_nothing_is_estimated_where_nothing_is_missing(tmp_path, caplog):
    record(recorder(tmp_path), 2)
    caplog.set_level("INFO", "teamvla")
    record(recorder(tmp_path), 2)
    assert not [one for one in caplog.records if one.name == "teamvla.record.room"]
