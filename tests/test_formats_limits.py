"""Foreign data sets that are too large, undecodable, or lead out of their folder."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from synthetic import make_contract, make_steps, write_episodes

from teamvla.data import EpisodeWriter, find_episodes, read_episode
from teamvla.data.formats import ConvertConfig, MappingConfig, convert
from teamvla.data.formats import lerobot_writer as writing
from teamvla.data.formats.pictures import decode_pictures
from teamvla.data.formats.tables import ParquetRows
from teamvla.data.formats.verify import same
from teamvla.errors import ContractError, SchemaError, TeamVLAError

PNG = ConvertConfig(images="png")
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


def code_of(source: Path, out: Path, config: ConvertConfig | None = None) -> str | None:
    with pytest.raises(TeamVLAError) as caught:
        convert(source, "episodes", out, config=config)
    return caught.value.code


@pytest.fixture
def lerobot(tmp_path: Path) -> Path:
    write_episodes(tmp_path / "eps", 2)
    convert(tmp_path / "eps", "lerobot", tmp_path / "there", config=PNG)
    return tmp_path / "there"


def rewrite(path: Path, change: Any) -> None:
    table = parquet.read_table(path)
    rows = table.to_pylist()
    change(rows)
    parquet.write_table(arrow.Table.from_pylist(rows, table.schema), path)


# What a parquet table may take.


def runs(path: Path, rows: int) -> Path:
    """A few bytes that are many rows."""
    columns = {"episode_index": np.zeros(rows, np.int64), "value": np.zeros(rows)}
    parquet.write_table(arrow.table(columns), path)
    return path


def test_a_table_is_refused_by_its_figures_before_a_row_of_it_is_read(tmp_path, monkeypatch):
    path = runs(tmp_path / "runs.parquet", 100_000)
    assert path.stat().st_size < 8_000
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", None)
    with pytest.raises(SchemaError, match=r"E609.*runs\.parquet.*800000"):
        ParquetRows(path, 799_999).to_list(lambda name: True)


def test_what_has_no_fixed_size_is_counted_while_it_is_read(tmp_path):
    path = tmp_path / "texts.parquet"
    parquet.write_table(arrow.table({"text": ["x" * 1000] * 20_000}), path)
    assert path.stat().st_size < 5_000
    assert len(ParquetRows(path, 30 << 20).to_list(lambda name: True)) == 20_000
    with pytest.raises(SchemaError, match="E609"):
        ParquetRows(path, 10 << 20).to_list(lambda name: True)


def test_few_large_values_are_read_at_once(tmp_path, monkeypatch):
    path = tmp_path / "texts.parquet"
    parquet.write_table(arrow.table({"text": ["x" * 1000] * 300}), path)
    monkeypatch.setattr("teamvla.data.formats.tables._BATCH_BYTES", 10_000)
    sizes = [b.num_rows for b in ParquetRows(path)._batches(0, ["text"])]
    assert sum(sizes) == 300
    assert max(sizes) <= 9


def test_an_episode_is_read_from_its_own_row_groups(tmp_path, monkeypatch):
    path, read = tmp_path / "groups.parquet", []
    schema = arrow.schema([("episode_index", "int64"), ("v", "int64")])
    with parquet.ParquetWriter(path, schema) as writer:
        for number, episodes in enumerate([[0, 0], [0, 1], [1, 2]]):
            values = [number * 2, number * 2 + 1]
            writer.write_table(arrow.table({"episode_index": episodes, "v": values}))
    rows = ParquetRows(path)
    real = rows._batches

    def batches(group: int, names: list[str]) -> Any:
        read.append((group, tuple(names)))
        return real(group, names)

    monkeypatch.setattr(rows, "_batches", batches)
    assert rows.of_episode(1)["v"].to_pylist() == [3, 4]
    assert [group for group, names in read if "v" in names] == [1, 2]
    assert rows.of_episode(7).num_rows == 0


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("length", 1 << 60, "E609"),
        ("length", 0, "E610"),
        ("length", -3, "E610"),
        ("length", 4, "E610"),
        ("data/file_index", 1 << 40, None),
        ("data/chunk_index", -1, None),
        ("episode_index", 77, "E610"),
    ],
)
def test_a_table_of_episodes_that_lies_is_refused(lerobot, tmp_path, name, change, expected):
    rewrite(lerobot / EPISODES, lambda rows: rows[0].update({name: change}))
    assert code_of(lerobot, tmp_path / "out") == expected


@pytest.mark.parametrize("count", [1 << 40, -5, 0])
def test_videos_are_bounded_by_their_pictures(tmp_path, count):
    write_episodes(tmp_path / "eps", 1)
    convert(tmp_path / "eps", "lerobot", tmp_path / "there")
    rewrite(tmp_path / "there" / EPISODES, lambda rows: rows[0].update(length=count))
    assert code_of(tmp_path / "there", tmp_path / "out") == ("E609" if count > 0 else "E610")


def test_frames_are_counted_against_the_video_s_own_size(tmp_path):
    from teamvla.data.formats.video import read_frames

    write_episodes(tmp_path / "eps", 1)
    convert(tmp_path / "eps", "lerobot", tmp_path / "there")
    path = next((tmp_path / "there").rglob("*.mp4"))
    assert read_frames(path, 0.0, 2, 20.0, 2 * 8 * 10 * 3).shape == (2, 8, 10, 3)
    with pytest.raises(SchemaError, match="E609"):
        read_frames(path, 0.0, 2, 20.0, 2 * 8 * 10 * 3 - 1)


@pytest.mark.parametrize("name", ["meta/info.json", "meta/teamvla-episodes.jsonl"])
def test_metadata_files_have_a_largest_size(lerobot, tmp_path, monkeypatch, name):
    for limit in ("MAX_META_BYTES", "_MOST_META"):
        monkeypatch.setattr(f"teamvla.data.formats.lerobot.{limit}", 1 << 16)
    with (lerobot / name).open("ab") as file:
        file.write(b"\n" * (1 << 16))
    assert code_of(lerobot, tmp_path / "out") == "E609"


# Ways out of the folder.


@pytest.mark.parametrize(
    "template",
    [
        "../there2/data.parquet",
        "/etc/passwd",
        "data/../../eps/lift/e0000.npz",
        "data/link.parquet",
        "linked/file-000.parquet",
        "data/loop",
    ],
)
def test_no_file_outside_of_a_data_set_is_read(lerobot, tmp_path, template):
    outside = tmp_path / "outside"
    outside.mkdir()
    (lerobot / DATA).rename(outside / "file-000.parquet")
    (lerobot / "data/link.parquet").symlink_to(outside / "file-000.parquet")
    (lerobot / "linked").symlink_to(outside)
    (lerobot / "data/loop").symlink_to(lerobot / "data/loop")
    info = json.loads((lerobot / "meta/info.json").read_text())
    (lerobot / "meta/info.json").write_text(json.dumps({**info, "data_path": template}))
    assert code_of(lerobot, tmp_path / "out") == "E611"


@pytest.mark.parametrize(
    "name", ["meta/info.json", "meta/tasks.parquet", EPISODES, DATA, "meta/teamvla.json",
             "meta/teamvla-episodes.jsonl"]
)  # fmt: skip
def test_a_link_in_place_of_a_file_is_not_followed_out(lerobot, tmp_path, name):
    moved = (lerobot / name).rename(tmp_path / "moved")
    (lerobot / name).symlink_to(moved)
    assert code_of(lerobot, tmp_path / "out") == "E611"


def test_links_inside_of_a_data_set_are_followed(lerobot, tmp_path):
    moved = (lerobot / DATA).rename(lerobot / "elsewhere.parquet")
    (lerobot / DATA).symlink_to(moved)
    assert convert(lerobot, "episodes", tmp_path / "out").episodes == 2


@pytest.mark.parametrize(
    "template",
    ["data/{chunk_index:999999999999}.parquet", "{chunk_index.__class__}", "{0}", "{nothing}"],
)
def test_a_path_of_a_data_set_is_no_program(lerobot, tmp_path, template):
    info = json.loads((lerobot / "meta/info.json").read_text())
    (lerobot / "meta/info.json").write_text(json.dumps({**info, "data_path": template}))
    assert code_of(lerobot, tmp_path / "out") in (None, "E610")


# Pictures.


def jpeg(width: int = 8, height: int = 6) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (250, 10, 20)).save(file, "JPEG")
    return file.getvalue()


def compressed_aloha(path: Path, pictures: list[bytes]) -> Path:
    width = max(len(picture) for picture in pictures)
    rows = [np.frombuffer(p.ljust(width, b"\0"), np.uint8) for p in pictures]
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        file.attrs["compress"] = True
        for name in ("observations/qpos", "action"):
            file[name] = np.zeros((len(pictures), 14))
        file["observations/images/cam_high"] = np.stack(rows)
    return path


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (jpeg()[:200], "E615"),
        (b"GIF89a not a JPEG", "E615"),
        (b"", "E615"),
        (jpeg(10, 6), "E605"),
    ],
)
def test_pictures_of_aloha_that_are_none_are_named(tmp_path, second, expected):
    path = compressed_aloha(tmp_path / "cube" / "episode_0.hdf5", [jpeg(), second])
    config = ConvertConfig(instruction="put it away")
    with pytest.raises(SchemaError, match="cam_high") as caught:
        convert(path, "episodes", tmp_path / "out", config=config)
    assert caught.value.code == expected


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n" + bytes(40), b"", b"GIF89a"])
def test_a_png_of_lerobot_that_is_none_is_named(lerobot, tmp_path, content):
    name = "observation.images.rgb_b"
    rewrite(lerobot / DATA, lambda rows: rows[1][name].update(bytes=content))
    with pytest.raises(SchemaError, match=name) as caught:
        convert(lerobot, "episodes", tmp_path / "out")
    assert caught.value.code == "E615"


def test_a_picture_that_lies_elsewhere_is_not_looked_for(lerobot, tmp_path):
    name = "observation.images.rgb_b"
    rewrite(lerobot / DATA, lambda rows: rows[1][name].update(bytes=None, path="/etc/passwd"))
    assert code_of(lerobot, tmp_path / "out") == "E611"


def test_the_size_of_a_picture_is_asked_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(SchemaError, match=r"E609.*1000 x 900"):
        decode_pictures([jpeg(1000, 900)], ("JPEG",), "cube", 1000 * 900 * 3 - 1)


# What a conversion cannot do without.


@pytest.mark.parametrize("name", ["lerobot", "aloha", "robomimic"])
def test_an_episode_without_a_contract_has_no_meaning_to_convert(tmp_path, name):
    with EpisodeWriter(tmp_path / "eps") as writer:
        writer.start_episode({"task": "lift"})
        for step in make_steps(2, 0):
            writer.add_step(step)
        writer.end_episode()
    with pytest.raises(ContractError, match=r"your_robot\.md") as caught:
        convert(tmp_path / "eps", name, tmp_path / "out")
    assert caught.value.code == "E603"
    assert not (tmp_path / "out").exists()


ROBOMIMIC = MappingConfig(
    arms={"a": {"q": {"field": "obs/q"}, "action": {"field": "actions"}}}, instruction="lift"
)


def write_robomimic(path: Path, **columns: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in {"obs/q": np.zeros((3, 7)), "actions": np.zeros((3, 7))}.items():
            file[f"data/demo_0/{name}"] = values
        for name, values in columns.items():
            file[name] = values
    return path


def test_a_rate_that_nobody_says_is_asked_for(tmp_path):
    path = write_robomimic(tmp_path / "lift.hdf5")
    with pytest.raises(SchemaError, match="control_hz=50") as caught:
        convert(path, "episodes", tmp_path / "out", config=ConvertConfig(mapping=ROBOMIMIC))
    assert caught.value.code == "E604"
    config = ConvertConfig(mapping=ROBOMIMIC, control_hz=10)
    assert convert(path, "episodes", tmp_path / "out", config=config).episodes == 1


@pytest.mark.parametrize(
    ("place", "entry"), [("mask", np.zeros(3)), ("mask/train/inner", np.zeros(3))]
)
def test_a_data_set_is_no_group_and_a_group_no_data_set(tmp_path, place, entry):
    path = write_robomimic(tmp_path / "lift.hdf5", **{place: entry})
    config = ConvertConfig(mapping=ROBOMIMIC, control_hz=10)
    expected = {"mask": "E604", "mask/train/inner": "E607"}[place]
    assert code_of(path, tmp_path / "out", config) == expected


# Files that are full.


@pytest.mark.parametrize("images", ["png", "video"])
def test_files_are_left_when_they_are_full(tmp_path, monkeypatch, images):
    monkeypatch.setattr(writing, "_DATA_MB", 0.004)
    monkeypatch.setattr(writing, "_VIDEO_MB", 0.0)
    monkeypatch.setattr(writing, "_CHUNK_FILES", 2)
    with EpisodeWriter(tmp_path / "eps") as writer:
        for number in range(7):
            writer.start_episode({"task": "lift", "contract": make_contract().to_dict()})
            for tick, step in enumerate(make_steps(4, number)):
                level = np.full((8, 10, 3), 50 * tick + 5 * number, np.uint8)
                writer.add_step({**step, "rgb_a": level, "rgb_b": level})
            writer.end_episode()
    config = ConvertConfig(images=images)
    convert(tmp_path / "eps", "lerobot", tmp_path / "there", config=config)
    for kind in ("data", "meta/episodes"):
        files = sorted((tmp_path / "there" / kind).glob("chunk-*/file-*.parquet"))
        assert 2 <= len(files) <= 7, kind
        assert all(path.stat().st_size >= 0.004 * (1 << 20) for path in files[:-1])
        names = [path.stem for path in files[:3]]
        assert names == ["file-000", "file-001", "file-000"][: len(files)]
    for path in (tmp_path / "there/meta/episodes").glob("*/*.parquet"):
        for row in parquet.read_table(path).to_pylist():
            chunk, file = row["meta/episodes/chunk_index"], row["meta/episodes/file_index"]
            assert (f"chunk-{chunk:03d}", f"file-{file:03d}") == (path.parent.name, path.stem)
    if images == "video":
        videos = [p.parent.name for p in (tmp_path / "there").rglob("*rgb_a/*/*.mp4")]
        assert len(videos) > 2
        assert set(videos) > {"chunk-000"}
    convert(tmp_path / "there", "episodes", tmp_path / "back")
    for path in find_episodes(tmp_path / "eps"):
        before = read_episode(path).fields
        after = read_episode(tmp_path / "back" / path.relative_to(tmp_path / "eps")).fields
        for name, values in before.items():
            if images == "video" and name.startswith("rgb"):
                off = np.abs(values.astype(float) - after[name])
                assert off.max() < 5
            else:
                assert same(values, after[name]), name
