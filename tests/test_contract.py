"""The contract: what it may say, which fields it asks for, and who needs the links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL
from pydantic import ValidationError
from sample_steps import CONTRACT, code_of, make_step, rewrite, without

from teamvla.config import Project
from teamvla.contract import Arm, Camera, Contract, Link
from teamvla.data import DatasetConfig, MultiTaskDataset, build_index, make_dataloader
from teamvla.data.fields import meaning_in
from teamvla.data.layout import Layout
from teamvla.data.npz import read_episode, read_meta
from teamvla.data.schema import STEP_SPECS, step_specs, validate_columns, validate_step
from teamvla.data.validation import validate_file
from teamvla.data.writer import EpisodeWriter
from teamvla.errors import ContractError
from teamvla.models.loading import load_policy
from teamvla.sim.scene import two_arm_contract
from teamvla.train import bc_trainer

F32 = np.float32
FIXTURE = Path(__file__).parent.parent / "fixtures" / "data" / "lift_sample.npz"
CAMERA = Camera(field="rgb_front", height=4, width=5)
JOINTS = ("shoulder", "elbow")
BARE = Arm(name="left", joints=JOINTS, limits=((-1, 1), (-2, 2)))
ALONE = Contract(embodiment="single_arm", control_hz=10, arms=(BARE,), cameras=(CAMERA,))
LINK = Link(joint="hinge", offset=(0, 0, 0.1), axis=(0, 0, 1), limits=(-3, 3), radius=0.05)


def pair(**changes: Any) -> Contract:
    """Two arms without links."""
    arms = tuple(Arm(name=name, joints=JOINTS) for name in "ab")
    cameras = tuple(Camera(field=f"rgb_{name}", height=4, width=5) for name in "ab")
    return Contract(**{"arms": arms, "cameras": cameras, **changes})


def one_arm_step(index: int = 0, **changes: Any) -> dict[str, Any]:
    step = {
        "rgb_front": np.full((4, 5, 3), 40 * index, np.uint8),
        "q_left": np.array([0.1 * index, 0.2], F32),
        "action_left": np.array([0.1 * index + 0.1, 0.2], F32),
        "grip_left": 0.25,
        "instruction": "push the block",
        "task": "push",
        "success": index == 3,
    }
    return {**step, **changes}


def write_alone(root: Path, contract: Contract = ALONE) -> Path:
    with EpisodeWriter(root) as writer:
        meta = {"contract": contract.to_dict(), "contract_digest": contract.digest}
        writer.start_episode({"task": "push", **meta})
        for index in range(4):
            writer.add_step(one_arm_step(index))
        return writer.end_episode()


# What a contract may say.


def test_digests_of_contracts_written_before_do_not_change() -> None:
    meta = read_meta(FIXTURE)
    contract = Contract.parse(meta["contract"], "the fixture")
    assert contract.to_dict() == meta["contract"]
    assert contract.digest == meta["contract_digest"]
    assert contract == two_arm_contract(32, 32)
    assert contract.digest == "42e8957da55040e71d9d9f8c4f88b26a53acf5da53751899a1830c759f25c4af"


def test_an_arm_without_links_names_its_joints() -> None:
    assert (BARE.num_joints, BARE.joint_names) == (2, JOINTS)
    assert BARE.joint_limits == ((-1, 1), (-2, 2))
    assert Arm(name="a", joints=("x",)).joint_limits is None


def test_links_tell_the_same_of_an_arm() -> None:
    elbow = LINK.model_copy(update={"joint": "elbow", "limits": (-1, 2)})
    arm = Arm(name="a", base=(0, 0, 0), links=(LINK, elbow), tool=(0, 0, 0.1))
    assert (arm.num_joints, arm.joint_names) == (2, ("hinge", "elbow"))
    assert arm.joint_limits == ((-3, 3), (-1, 2))


def test_one_arm_survives_json() -> None:
    data = ALONE.to_dict()
    assert data["arms"][0]["joints"] == ["shoulder", "elbow"]
    assert Contract.parse(data, "here") == ALONE
    assert (ALONE.action_dim, ALONE.grippers) == (3, [2])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"joints": ()}, "give either links or joints"),
        ({"links": (LINK,)}, "give either links or joints"),
        ({"joints": ("x", "x"), "limits": None}, "a name of its own"),
        ({"joints": ("x", ""), "limits": None}, "a name of its own"),
        ({"limits": ((-1, 1),)}, "1 limits for 2 joints"),
        ({"limits": ()}, "0 limits for 2 joints"),
        ({"limits": ((-1, 1), (2, 2))}, "elbow has its limits the wrong way round"),
        ({"limits": ((-1, 1), (float("-inf"), 2))}, "finite"),
        ({"name": "Left"}, "an arm's name"),
        ({"name": "../a"}, "an arm's name"),
        ({"name": "a-offsets"}, "an arm's name"),
    ],
)
def test_an_arm_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    given = {"name": "left", "joints": JOINTS, "limits": ((-1, 1), (-2, 2))}
    with pytest.raises(ValidationError, match=said):
        Arm(**{**given, **changes})


def test_links_carry_limits_of_their_own() -> None:
    with pytest.raises(ValidationError, match="links carry limits of their own"):
        Arm(name="a", links=(LINK,), limits=((-1, 1),))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cameras": (CAMERA, CAMERA)}, "rgb_front: arms and cameras need fields"),
        ({"cameras": (Camera(field="q_left", height=1, width=1),)}, "q_left: arms and cameras"),
        ({"cameras": (Camera(field="success", height=1, width=1),)}, "success: arms and cameras"),
        ({"cameras": (Camera(field="../x", height=1, width=1),)}, "a camera's field"),
        ({"arms": (BARE, BARE)}, "action_left, grip_left, q_left"),
        ({"embodiment": "two_arm"}, "two_arm has arms: 2, not 1"),
        ({"action": "velocity"}, "delta_joint_position"),
    ],
)
def test_a_contract_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    data = {**dict(ALONE), **changes}
    with pytest.raises(ValidationError, match=said):
        Contract(**data)


def test_a_malformed_contract_is_told_in_one_line() -> None:
    data = {**ALONE.to_dict(), "arms": [{"name": "left"}]}
    with pytest.raises(ContractError) as caught:
        Contract.parse(data, "here")
    assert str(caught.value) == "here: contract.arms.0: arm left: give either links or joints"


@pytest.mark.parametrize(
    ("other", "lines"),
    [
        (
            pair(action="delta_joint_position"),
            ["action: 'absolute_joint_position' != 'delta_joint_position'"],
        ),
        (pair(control_hz=5), ["control_hz: 20.0 != 5.0"]),
        (
            pair(arms=(Arm(name="a", joints=JOINTS[::-1]), Arm(name="b", joints=JOINTS))),
            [f"arms[0].joints[{i}]: {JOINTS[i]!r} != {JOINTS[1 - i]!r}" for i in (0, 1)],
        ),
        (
            pair(arms=(Arm(name="a", joints=JOINTS, limits=((0, 1), (0, 1))), pair().arms[1])),
            ["arms[0].limits: None != 2 entries"],
        ),
        (ALONE, [
            "arms: 2 entries != 1 entries", "cameras: 2 entries != 1 entries",
            "control_hz: 20.0 != 10.0", "embodiment: 'two_arm' != 'single_arm'",
        ]),
    ],
)  # fmt: skip
def test_differences_are_listed_line_by_line(other: Contract, lines: list[str]) -> None:
    assert pair().diff(other) == lines
    assert pair().digest != other.digest
    with pytest.raises(ContractError) as caught:
        pair().require(other, "the data", "x.ckpt")
    assert "\n".join(f"  {line}" for line in lines) in str(caught.value)
    assert "--set task.camera" not in str(caught.value)


def test_only_other_sizes_are_mended_by_the_camera() -> None:
    larger = tuple(c.model_copy(update={"height": 8}) for c in pair().cameras)
    with pytest.raises(ContractError, match=r"--set task\.camera\.height=4 "):
        pair().require(pair(cameras=larger), "the data", "the simulator")
    moved = tuple(c.model_copy(update={"field": f"{c.field}x"}) for c in pair().cameras)
    with pytest.raises(ContractError, match="of one contract") as caught:
        pair().require(pair(cameras=moved), "the data", "the simulator")
    assert "--set" not in str(caught.value)


# Which fields a step must have.


def test_two_arms_are_what_is_meant_without_a_contract() -> None:
    assert step_specs(None) is STEP_SPECS
    assert step_specs(two_arm_contract(4, 5)) is STEP_SPECS
    assert meaning_in({}).specs is STEP_SPECS


def test_arms_and_cameras_decide_the_fields() -> None:
    specs = step_specs(ALONE)
    assert [*specs] == [
        "rgb_front", "q_left", "action_left", "grip_left", "instruction", "task", "success",
    ]  # fmt: skip
    assert str(specs["rgb_front"]) == "uint8[H,W,3]"
    assert meaning_in({"contract": ALONE.to_dict()}).specs == specs
    assert all(spec.description.endswith(".") for spec in specs.values())


def test_a_malformed_contract_decides_nothing() -> None:
    assert code_of(meaning_in, {"contract": {"arms": 3}}) == "E411"
    assert code_of(meaning_in, {"contract": [1]}) == "E411"


@pytest.mark.parametrize("name", [*step_specs(ALONE)])
def test_every_field_of_the_contract_is_required(name: str) -> None:
    validate_step(one_arm_step(), step_specs(ALONE))
    assert code_of(validate_step, without(one_arm_step(), name), step_specs(ALONE)) == "E102"
    columns = {n: (s.dtype, (4, *[2 if size != 3 else 3 for size in s.shape]))
               for n, s in step_specs(ALONE).items() if n != name}  # fmt: skip
    found = [(e.where, e.code) for e in validate_columns(columns, (), 4, step_specs(ALONE))]
    assert found == [(name, "E102")]


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("rgb_front", np.zeros((4, 5, 4), np.uint8), "E106"),
        ("q_left", np.zeros(2), "E105"),
        ("action_left", np.zeros(3, F32), "E106"),
        ("grip_left", 1.5, "E108"),
        ("q_b", np.zeros(2), "E105"),  # what two_arm calls so means the same everywhere
    ],
)
def test_fields_of_the_contract_are_checked(name: str, value: Any, code: str) -> None:
    assert code_of(validate_step, one_arm_step(**{name: value}), step_specs(ALONE)) == code


# One arm and one camera, from the writer to the reader.


def test_an_episode_of_one_arm_comes_back(tmp_path: Path) -> None:
    path = write_alone(tmp_path)
    read = read_episode(path)
    assert read.fields["grip_left"].dtype == F32
    assert "rgb_a" not in read.fields
    for index in range(4):
        step = read.step(index)
        for name, value in one_arm_step(index).items():
            assert np.array_equal(step[name], value), name
    assert [f for f in validate_file(path) if f.code.startswith("E")] == []


def test_the_writer_asks_for_the_fields_of_the_contract(tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path) as writer:
        writer.start_episode({"task": "lift", "contract": ALONE.to_dict()})
        assert code_of(writer.add_step, make_step()) == "E102"


def test_the_reader_asks_for_the_fields_of_the_contract(tmp_path: Path) -> None:
    path = write_alone(tmp_path)
    assert code_of(read_episode, rewrite(path, q_left=None)) == "E102"


def test_a_file_of_one_arm_under_the_contract_of_two_is_refused(tmp_path: Path) -> None:
    path = write_alone(tmp_path)
    assert code_of(read_episode, rewrite(path, meta={"contract": CONTRACT})) == "E102"


def test_a_file_with_a_malformed_contract_is_refused(tmp_path: Path) -> None:
    path = write_alone(tmp_path)
    assert code_of(read_episode, rewrite(path, meta={"contract": {"arms": []}})) == "E411"


def test_the_cache_has_a_layout_for_one_arm(tmp_path: Path) -> None:
    layout = Layout.of(read_episode(write_alone(tmp_path)), ALONE)
    assert (layout.arms, layout.joints, layout.cameras) == (("left",), (2,), ("rgb_front",))
    assert layout.picture == (4, 5, 3)


# Who needs the links.


def test_an_arm_without_links_has_no_kinematics() -> None:
    assert Arm(name="a", links=(LINK,)).require_links("drawing") == (LINK,)
    with pytest.raises(ContractError) as caught:
        BARE.require_links("drawing", "Draw nothing.")
    assert str(caught.value) == (
        "contract: arm left: expected links, for drawing, got the names of 2 joints. Draw nothing."
    )


def write_pair(root: Path, contract: Contract) -> None:
    """Two episodes of two arms without links."""
    for number in range(2):
        with EpisodeWriter(root) as writer:
            meta = {"contract": contract.to_dict(), "contract_digest": contract.digest}
            writer.start_episode({"task": "lift", **meta})
            for index in range(4):
                two = {f"{stem}_{arm}": np.full(2, 0.1 * index + number, F32)
                       for stem in ("q", "action") for arm in "ab"}  # fmt: skip
                pictures = {f"rgb_{arm}": np.full((32, 32, 3), index, np.uint8) for arm in "ab"}
                writer.add_step(make_step(index, **two, **pictures))
            writer.end_episode(success=True)


def larger(**changes: Any) -> Contract:
    cameras = tuple(Camera(field=f"rgb_{name}", height=32, width=32) for name in "ab")
    return pair(cameras=cameras, **changes)


@pytest.mark.parametrize("contract", [larger(), larger(action="delta_joint_position")])
def test_training_without_geometry_asks_for_other_losses(
    tmp_path: Path, contract: Contract
) -> None:
    write_pair(tmp_path / "data", contract)
    project = Project.load("train_bc", (*SMALL, "trainer.epochs=1", "model.fusion.hidden_dim=32"))
    project = project.replace("dataset", roots=[str(tmp_path / "data")])
    with pytest.raises(ContractError, match=r"--set loss\.sync=0 --set loss\.collision=0"):
        bc_trainer.main(project, tmp_path / "run")
    project = project.override(
        ["dataset.chunk_size=4", "model.chunk_size=4", "model.execution.n_action_steps=4"]
    )
    assert not (tmp_path / "run").exists()
    run = bc_trainer.main(project.replace("loss", sync=0, collision=0), tmp_path / "run")
    policy, _ = load_policy(run.checkpoints / "last.ckpt")
    assert policy.contract == contract
    assert [len(command) for command in policy.act(make_step(
        q_a=np.zeros(2, F32), q_b=np.zeros(2, F32),
        **{f"rgb_{arm}": np.zeros((32, 32, 3), np.uint8) for arm in "ab"},
    ))] == [3, 3]  # fmt: skip


def test_data_and_simulator_of_other_arms_are_not_trained_together(tmp_path: Path) -> None:
    write_pair(tmp_path / "data", larger())
    project = Project.load("train_bc", (*SMALL, "trainer.rollout_every=1"))
    project = project.replace("dataset", roots=[str(tmp_path / "data")])
    with pytest.raises(
        ContractError, match=r"\n  arms\[0\]\.joints: 2 entries != None\n"
    ) as caught:
        bc_trainer.main(project, tmp_path / "run")
    assert "arms[1].links: 0 entries != 6 entries" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_actions_of_two_kinds_are_not_indexed_together(tmp_path: Path) -> None:
    write_pair(tmp_path, larger())
    write_pair(tmp_path, larger(action="delta_joint_position"))
    with pytest.raises(ContractError, match="'absolute_joint_position' != 'delta_joint_position'"):
        build_index(tmp_path)


def test_a_loader_reads_one_arm_and_one_camera(tmp_path: Path) -> None:
    write_alone(tmp_path)
    dataset = MultiTaskDataset(DatasetConfig(roots=(str(tmp_path),), chunk_size=2))
    assert dataset.contract == ALONE
    batch = next(iter(make_dataloader(
        DatasetConfig(roots=(str(tmp_path),), chunk_size=2, batch_size=4)
    )))  # fmt: skip
    assert tuple(batch["observations"]["image"].shape) == (4, 1, 3, 4, 5)
    assert tuple(batch["observations"]["state"].shape) == (4, 3)
    assert tuple(batch["actions"].shape) == (4, 2, 3)
