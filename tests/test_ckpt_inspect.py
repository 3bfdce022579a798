"""``teamvla ckpt-inspect``: all of the header, nothing executed, damage named."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest

from teamvla.checkpoint import write_checkpoint
from teamvla.cli.app import run
from teamvla.cli.tree import tree

META = {
    "kind": "policy",
    "config": {
        "seed": 0,
        "task": {"name": "lift", "instructions": ["lift the tray"] * 9},
        "model": {"type": "single_brain", "dropout": 0.1},
    },
    "contract": {
        "embodiment": "two_arm",
        "control_hz": 20.0,
        "action": "absolute_joint_position",
        "action_timing": "from_this_observation",
        "angle_unit": "rad",
        "length_unit": "m",
        "gripper": "0_open_1_closed",
        "arms": [{"name": "a", "links": [{}] * 6}, {"name": "b", "joints": ["x"] * 7}],
        "cameras": [{"field": "rgb_a", "height": 64, "width": 64}],
    },
    "state": {"epoch": 12, "step": 34000, "best_success": 0.97},
    "packages": {"teamvla": "0.1.0", "torch": "2.13.0"},
    "git": "deadbeef" * 5,
    "manifest_digest": "ab" * 32,
}
TENSORS = {
    "model.vision.stem.conv.weight": np.ones((8, 3, 3, 3), np.float32),
    "model.vision.stem.conv.bias": np.ones(8, np.float32),
    "model.vision.proj.weight": np.ones((8, 8), np.float32),
    "model.heads.a.weight": np.ones((14, 8), np.float32),
    "model.scale": np.ones((), np.float32),
    "ema.heads.a.weight": np.ones((14, 8), np.float32),
    "optim.0.step": np.ones(1, np.int64),
}


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "best.ckpt", META, TENSORS)


def inspect(capsys, *arguments) -> str:
    assert run(["ckpt-inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def refused(capsys, *arguments) -> tuple[int, str]:
    code = run(["ckpt-inspect", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


def test_the_overview_tells_what_it_is_and_where_it_comes_from(checkpoint, capsys):
    lines = [line.strip() for line in inspect(capsys, checkpoint).splitlines()]
    assert lines[0] == str(checkpoint)
    for expected in (
        "kind        policy",
        "policy      single_brain",
        "task        lift",
        "parameters  401 in 5 tensors",
        "trained     epoch 12, step 34000, best success 97.0%",
        "made with   teamvla 0.1.0, torch 2.13.0, git deadbeefdead",
        "manifest    abababababababab",
        "embodiment  two_arm, 20 Hz",
        "action      absolute_joint_position, from_this_observation",
        "units       rad, m, gripper 0_open_1_closed",
        "arms        a (6 joints), b (7 joints)",
        "cameras     rgb_a 64x64",
        "--section config prints seed, task, model",
    ):
        assert expected in lines


def test_parameters_are_summed_by_module_two_levels_deep(checkpoint, capsys):
    text = inspect(capsys, checkpoint)
    table = text[text.index("Parameters\n") : text.index("Training state\n")]
    rows = [line.split()[:2] for line in table.splitlines()[1:] if line]
    assert rows == [
        ["(top)", "1"],
        ["heads", "112"],
        ["a", "112"],
        ["vision", "288"],
        ["proj", "64"],
        ["stem", "224"],
    ]


def test_it_names_the_next_command_with_a_path_that_can_be_pasted(tmp_path, capsys):
    path = write_checkpoint(tmp_path / "my best.ckpt", META, TENSORS)
    assert run(["ckpt-inspect", str(path)]) == 0
    assert capsys.readouterr().err == f"Next: teamvla eval '{path}'\n"


def test_tensors_are_listed_by_pattern(checkpoint, capsys):
    out = inspect(capsys, checkpoint, "--tensors", "*heads*")
    assert [line.split() for line in out.splitlines()] == [
        ["ema.heads.a.weight", "F32", "14x8", "448", "B"],
        ["model.heads.a.weight", "F32", "14x8", "448", "B"],
        ["2", "tensors,", "224", "values,", "896", "B"],
    ]


def test_a_pattern_that_matches_nothing_is_a_finding(checkpoint, capsys):
    assert run(["ckpt-inspect", str(checkpoint), "--tensors", "nothing*"]) == 1
    assert capsys.readouterr().out == "none of 7 tensors matches 'nothing*'\n"


def test_one_section_is_printed_in_full(checkpoint, capsys):
    assert inspect(capsys, checkpoint, "--section", "state") == (
        "epoch: 12\nstep: 34000\nbest_success: 0.97\n"
    )


def test_an_unknown_section_is_answered_with_the_known_ones(checkpoint, capsys):
    code, err = refused(capsys, checkpoint, "--section", "sate")
    assert code == 2
    assert "got 'sate'. Did you mean 'state'? Known: config, contract, format_version" in err


def test_json_holds_the_whole_header(checkpoint, capsys):
    document = json.loads(inspect(capsys, checkpoint, "--json"))
    assert document["schema"] == "teamvla.ckpt-inspect/1"
    assert {name: document[name] for name in META} == META
    assert document["bytes"] == checkpoint.stat().st_size
    assert document["parameters"] == 401
    assert document["modules"]["vision.stem"] == 224
    assert len(document["tensors"]) == len(TENSORS)
    assert document["tensors"][0] == {
        "name": "ema.heads.a.weight",
        "dtype": "F32",
        "shape": [14, 8],
        "bytes": 448,
    }


def test_verify_says_so(checkpoint, capsys):
    assert "(not checked: --verify)" in inspect(capsys, checkpoint)
    assert "(verified)" in inspect(capsys, checkpoint, "--verify")
    assert json.loads(inspect(capsys, checkpoint, "--verify", "--json"))["verified"] is True


@pytest.mark.parametrize("meta", [{}, {"config": None, "state": [1], "contract": {"arms": 3}}])
def test_missing_and_odd_parts_are_left_out(tmp_path, capsys, meta):
    path = write_checkpoint(tmp_path / "a.ckpt", meta, TENSORS)
    out = inspect(capsys, path)
    assert "parameters  401 in 5 tensors" in out
    assert "Training state" not in out
    assert "Configuration" not in out


def test_a_checkpoint_without_tensors_can_be_described(tmp_path, capsys):
    out = inspect(capsys, write_checkpoint(tmp_path / "a.ckpt", META, {}))
    assert "parameters  0 in 0 tensors" in out


def test_text_of_the_file_cannot_drive_the_terminal(tmp_path, capsys):
    evil = "\x1b]0;owned\x07\x1b[2J"
    meta = {"kind": evil, "git": evil, "created": evil, "config": {evil: [evil]}, evil: 1}
    tensors = {f"model.{evil}.weight": np.ones(2, np.float32)}
    path = write_checkpoint(tmp_path / "a.ckpt", meta, tensors)
    for arguments in ([], ["--tensors", "*"], ["--section", "config"]):
        out = inspect(capsys, path, *arguments)
        assert "\x1b" not in out
        assert "\x07" not in out
        assert "\\x1b[2J" in out


def test_no_line_is_wider_than_100_columns(tmp_path, capsys):
    long = "x" * 300
    meta = {
        **META,
        "created": long,
        "config": {long: long, "list": [long] * 5, "deep": {"k": long}},
    }
    tensors = {f"model.{'m' * 90}.{'n' * 90}.weight": np.ones(2, np.float32)}
    out = inspect(capsys, write_checkpoint(tmp_path / "a.ckpt", meta, tensors))
    assert max(map(len, out.splitlines()[1:])) <= 100


def test_only_the_header_is_read(checkpoint, capsys, monkeypatch):
    content = checkpoint.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    with checkpoint.open("r+b") as file:  # the same length, but holes for tensors
        file.truncate(header)
        file.truncate(len(content))
    assert "401 in 5 tensors" in inspect(capsys, checkpoint)
    assert refused(capsys, checkpoint, "--verify")[0] == 1


def test_a_missing_file_is_an_error_of_usage(tmp_path, capsys):
    path = tmp_path / "no.ckpt"
    expected = f"error: {path}: expected a checkpoint file, got no such file or directory\n"
    assert refused(capsys, path) == (2, expected)


def test_another_kind_of_file_is_refused(tmp_path, capsys):
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"PK\x03\x04 a zip file, say, of some length")
    code, err = refused(capsys, path)
    assert code == 1
    assert err.startswith(f"error: [C101] {path}: expected a safetensors header, got a file of ")


def test_a_truncated_file_is_refused(checkpoint, capsys):
    os.truncate(checkpoint, checkpoint.stat().st_size - 1)
    code, err = refused(capsys, checkpoint)
    assert code == 1
    assert err.startswith(f"error: [C104] {checkpoint}: expected ")
    assert err.endswith("cut short or padded. Take another copy of it, or train again.\n")


@pytest.mark.parametrize("at", [-1, 8 + 200, -300])
def test_verify_finds_a_flipped_bit(checkpoint, capsys, at):
    content = bytearray(checkpoint.read_bytes())
    content[at] ^= 4
    checkpoint.write_bytes(content)
    assert refused(capsys, checkpoint, "--verify")[0] == 1


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        ({}, ["{}"]),
        ({"a": {}, "b": [], "c": None, "d": True}, ["a: {}", "b: []", "c: null", "d: true"]),
        ({"a": {"b": 1e-9}}, ["a:", "  b: 1e-09"]),
        ({"a": [{"b": 1, "c": 2}, [3]]}, ["a:", "  - b: 1", "    c: 2", "  - [3]"]),
        ([[1, 2], [3]], ["- [1, 2]", "- [3]"]),
        ({"a": [{"b": 1}]}, ["a:", "  - b: 1"]),
        ("x\ny", ["x\\ny"]),
    ],
)
def test_tree(value, lines):
    assert list(tree(value)) == lines


def test_the_parts_of_the_policy_and_the_tasks_of_its_data_are_a_line_each(tmp_path, capsys):
    model = {"type": "single_brain", "chunk_size": 16, "head": {"type": "flow"}}
    model |= {"vision": {"type": "cnn"}, "language": {"type": "words"}}
    config = META["config"] | {"model": model}
    meta = META | {"config": config, "tasks": ["drawer", "sort"]}
    path = write_checkpoint(tmp_path / "best.ckpt", meta, TENSORS)
    lines = [line.strip() for line in inspect(capsys, path).splitlines()]
    assert "parts       vision cnn, language words, head flow, chunk 16" in lines
    assert "data        drawer, sort" in lines


@pytest.mark.parametrize("model", [{"type": "mine"}, {"type": "bc", "head": {"type": "mine"}}])
def test_what_cannot_be_built_here_is_not_sent_to_eval(tmp_path, capsys, model):
    meta = META | {"config": META["config"] | {"model": model}}
    path = write_checkpoint(tmp_path / "best.ckpt", meta, TENSORS)
    assert run(["ckpt-inspect", str(path)]) == 0
    assert capsys.readouterr().err == ""
