"""What no index is made of, and what the command says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sample_steps import rewrite
from synthetic import make_contract, write_episode, write_episodes

from teamvla.cli.app import run
from teamvla.contract import Contract
from teamvla.data import Index, IndexConfig, build_index, read_episode, read_meta
from teamvla.data.layout import Layout
from teamvla.data.packing import pack
from teamvla.errors import ContractError, EpisodeError, InputError

# --- refusals ---------------------------------------------------------------------------


def test_contracts_are_not_mixed(tmp_path: Path) -> None:
    write_episode(tmp_path, "a")
    write_episode(tmp_path, "b", contract=make_contract(control_hz=50.0))
    with pytest.raises(ContractError, match=r"b\.npz do not mean .*\n  control_hz: 20.0 != 50.0"):
        build_index(tmp_path)


@pytest.mark.parametrize("measured", [True, False])
def test_meanings_of_the_gripper_state_are_not_mixed(tmp_path: Path, measured: bool) -> None:
    write_episode(tmp_path, "a", measured=measured)
    second = write_episode(tmp_path, "b", measured=not measured)
    error = refusal(tmp_path)
    assert (error.code, error.where) == ("E503", str(second))
    assert "grip_q_a" in str(error)


def test_an_episode_that_breaks_its_contract_is_named(tmp_path: Path) -> None:
    contract = with_cameras((16, 10), (16, 10)).to_dict()
    path = rewrite(write_episode(tmp_path, "a"), meta={"contract": contract})
    error = refusal(tmp_path)
    assert (error.code, error.where) == ("E505", str(path))
    assert "expected rgb_a: uint8[T,16,10,3], got uint8[5, 8, 10, 3]" in str(error)
    assert f"teamvla validate {path}" in str(error)


def test_cameras_of_different_sizes_are_refused(tmp_path: Path) -> None:
    contract = with_cameras((8, 10), (16, 10)).to_dict()
    rewrite(write_episode(tmp_path, "a"), meta={"contract": contract})
    assert refusal(tmp_path).code == "E502"


def test_a_field_that_only_others_have_is_told(tmp_path: Path) -> None:
    episode = read_episode(write_episode(tmp_path, "a"))
    layout = Layout.of(episode, make_contract())
    del episode.fields["rgb_b"]
    with pytest.raises(EpisodeError, match="rgb_b") as caught:
        pack(episode, layout)
    assert caught.value.code == "E504"


def test_a_number_that_is_not_finite_is_told_with_its_step(tmp_path: Path) -> None:
    path = write_episode(tmp_path, "a")
    members = dict(np.load(path))
    members["action_b"][3, 2] = np.nan
    np.savez(path, **members)
    error = refusal(tmp_path)
    assert error.code == "E506"
    assert "action_b: finite numbers, got others at step 3" in str(error)


def test_an_episode_without_steps_is_refused(tmp_path: Path) -> None:
    path = write_episode(tmp_path, "a")
    members = {name: array[:0] for name, array in np.load(path).items()}
    meta = {**read_meta(path), "num_steps": 0}
    np.savez(path, **{**members, "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8)})
    assert refusal(tmp_path).code == "E303"


def with_cameras(*sizes: tuple[int, int]) -> Contract:
    """The contract with other heights and widths."""
    contract = make_contract()
    cameras = tuple(
        camera.model_copy(update={"height": height, "width": width})
        for camera, (height, width) in zip(contract.cameras, sizes, strict=True)
    )
    return contract.model_copy(update={"cameras": cameras})


def refusal(root: Path) -> EpisodeError:
    """What building the index of ``root`` is refused with."""
    with pytest.raises(EpisodeError) as caught:
        build_index(root)
    return caught.value


def test_a_truncated_episode_is_named(tmp_path: Path) -> None:
    first, *_ = write_episodes(tmp_path, 2)
    first.write_bytes(first.read_bytes()[:-40])
    with pytest.raises(EpisodeError, match=first.name):
        build_index(tmp_path)
    assert not (tmp_path / ".index" / "summary.json").exists()


def test_a_missing_root_is_told_and_nothing_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing there"):
        build_index(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="expected episodes"):
        build_index(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_failures_alone_are_no_dataset(tmp_path: Path) -> None:
    write_episode(tmp_path, "failed", success=False)
    with pytest.raises(InputError, match="at least one successful episode"):
        build_index(tmp_path)


# --- the command ------------------------------------------------------------------------


def test_the_command_reports_and_names_the_next_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_episodes(tmp_path, 12)
    write_episode(tmp_path, "failed", success=False)
    assert run(["index", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert f"12 episodes, 72 steps (1 failed ones left out) in {tmp_path / '.index'}" in out
    assert "lift: train 11" in out
    assert f"Next: teamvla train --data {tmp_path}" in err


def test_the_command_gives_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_episodes(tmp_path / "data", 3)
    out = tmp_path / "elsewhere"
    assert run(["index", str(tmp_path / "data"), "--out", str(out), "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "teamvla.index/1"
    assert document["tasks"]["lift"]["train"]["episodes"] == 3
    assert document["statistics"]["count"] == document["steps"]
    assert document["next"].endswith(f"--set dataset.index={out}")
    assert Index.open(out).digest == document["digest"]


def test_the_command_keeps_settings_unless_told(tmp_path: Path) -> None:
    write_episodes(tmp_path, 3)
    assert run(["index", str(tmp_path), "--val-fraction", "0.5", "-q"]) == 0
    assert run(["index", str(tmp_path), "-q"]) == 0
    assert Index.open(tmp_path / ".index").config.val_fraction == 0.5
    assert run(["index", str(tmp_path), "--set", "index.max_chunk=7", "-q"]) == 0
    assert Index.open(tmp_path / ".index").config == IndexConfig(val_fraction=0.5, max_chunk=7)
    assert run(["index", str(tmp_path), "--rebuild", "-q"]) == 0
    assert Index.open(tmp_path / ".index").config == IndexConfig(val_fraction=0.5, max_chunk=7)


def test_bad_input_to_the_command_has_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["index", str(tmp_path / "missing")]) == 2
    first, *_ = write_episodes(tmp_path, 2)
    assert run(["index", str(tmp_path), "--val-fraction", "1.5"]) == 2
    first.write_bytes(b"PK")
    assert run(["index", str(tmp_path)]) == 1
    assert str(first) in capsys.readouterr().err


def test_the_command_never_imports_torch(tmp_path: Path) -> None:
    write_episodes(tmp_path, 2)
    program = (
        "import sys; from teamvla.cli.app import run; "
        f"code = run(['index', {str(tmp_path)!r}, '-q']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
