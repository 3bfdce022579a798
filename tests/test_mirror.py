"""The left/right mirror: a mirrored sample is one that a mirrored robot could have recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from teamvla.contract import Contract
from teamvla.data import MultiTaskDataset
from teamvla.data.transforms import Mirror, MirrorConfig
from teamvla.data.transforms.mirror import mirror_signs
from teamvla.errors import ContractError
from teamvla.sim.scene import two_arm_contract

REFLECTION = np.array([1, -1, 1])


@pytest.fixture
def contract() -> Contract:
    return two_arm_contract(8, 10)


def make_batch(count: int = 4, history: tuple[int, ...] = ()) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shape = (count, *history, 2, 8, 10, 3)
    return {
        "observations": {
            "image": np.moveaxis(rng.integers(0, 256, shape, "u1"), -1, -3),
            "state": rng.normal(size=(count, *history, 14)).astype(np.float32),
        },
        "actions": rng.normal(size=(count, 5, 14)).astype(np.float32),
        "action_is_pad": rng.random((count, 5)) < 0.5,
        "language": ["lift"] * count,
        "index": np.arange(count),
        "epoch": np.zeros(count, np.int64),
    }


def tool_points(contract: Contract, joined: np.ndarray) -> np.ndarray:
    """All joints and the tool of both arms [..., 2, P, 3] m."""
    torch = pytest.importorskip("torch")
    from teamvla.models.kinematics import ArmChains

    count = joined.shape[-1] // 2
    joints = [torch.from_numpy(joined[..., start : start + count - 1].copy()) for start in (0, 7)]
    points: np.ndarray = ArmChains(contract)(joints).numpy()
    return points


def test_the_simulated_robots_signs(contract: Contract) -> None:
    assert mirror_signs(*contract.arms).tolist() == [-1, 1, 1, -1, 1, -1]


def test_kinematics_of_mirrored_joints_is_the_reflected_kinematics(contract: Contract) -> None:
    batch = make_batch(50)
    mirrored = Mirror(contract, 1.0)(batch)
    for before, after in (
        (batch["actions"], mirrored["actions"]),
        (batch["observations"]["state"], mirrored["observations"]["state"]),
    ):
        expected = tool_points(contract, before)[..., ::-1, :, :] * REFLECTION
        np.testing.assert_allclose(tool_points(contract, after), expected, atol=1e-5)
        np.testing.assert_array_equal(after[..., [6, 13]], before[..., [13, 6]])


@pytest.mark.parametrize("history", [(), (3,)])
def test_mirroring_twice_changes_nothing(contract: Contract, history: tuple[int, ...]) -> None:
    batch, mirror = make_batch(history=history), Mirror(contract, 1.0)
    once, twice = mirror(batch), mirror(mirror(batch))
    for name in ("image", "state"):
        np.testing.assert_array_equal(twice["observations"][name], batch["observations"][name])
        assert (once["observations"][name] != batch["observations"][name]).any()
    np.testing.assert_array_equal(twice["actions"], batch["actions"])
    np.testing.assert_array_equal(once["action_is_pad"], batch["action_is_pad"])


def test_cameras_change_places_and_are_flipped(contract: Contract) -> None:
    batch = make_batch()
    image = batch["observations"]["image"]
    mirrored = Mirror(contract, 1.0)(batch)["observations"]["image"]
    np.testing.assert_array_equal(mirrored, image[:, ::-1, :, :, ::-1])


def test_only_the_samples_whose_turn_it_is_change_and_the_input_never(contract: Contract) -> None:
    batch = make_batch()
    before = {name: value.copy() for name, value in batch["observations"].items()}
    mirrored = Mirror(contract).mirror(batch, np.array([1, 3]))
    for name, value in before.items():
        np.testing.assert_array_equal(batch["observations"][name], value)
        same = (mirrored["observations"][name] == value).reshape(4, -1).all(axis=1)
        assert same.tolist() == [True, False, True, False]


def test_the_share_is_the_probability_and_depends_on_seed_epoch_and_sample(
    contract: Contract,
) -> None:
    def chosen(seed: int, epoch: int, first: int = 0) -> np.ndarray:
        index = np.arange(first, first + 4000)
        state = np.ones((4000, 14), np.float32)
        batch = {"observations": {"state": state}, "index": index, "epoch": index * 0 + epoch}
        mirrored = MirrorConfig(probability=0.3).build(seed, contract)(batch)
        turned: np.ndarray = (mirrored["observations"]["state"] < 0).any(axis=1)
        return turned

    base = chosen(0, 0)
    assert abs(base.mean() - 0.3) < 0.03
    for other in (chosen(1, 0), chosen(0, 1)):
        assert (base != other).mean() > 0.3
    np.testing.assert_array_equal(chosen(0, 0, 1000)[:3000], base[1000:])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("put the Left cup right of the LEFT tray", "put the Right cup left of the RIGHT tray"),
        ("keep it upright, leftovers aside", "keep it upright, leftovers aside"),
        ("turn it clockwise", "turn it counterclockwise"),
        (
            "turn it anticlockwise with the left-hand arm",
            "turn it clockwise with the right-hand arm",
        ),
        ("arm a passes a cup to arm B", "arm b passes a cup to arm A"),
    ],
)
def test_words_of_direction_change_places(contract: Contract, text: str, expected: str) -> None:
    batch = {**make_batch(1), "language": [text]}
    assert Mirror(contract, 1.0)(batch)["language"] == [expected]


def test_a_recorded_episode_is_reflected_as_a_whole(lift_root: Path) -> None:
    settings = {"roots": [str(lift_root)], "split": "all", "chunk_size": 4}
    dataset = MultiTaskDataset(settings)
    always = {**settings, "transforms": [{"type": "mirror", "probability": 1}]}
    rows = range(min(len(dataset), 60))
    batch, mirrored = dataset.__getitems__(rows), MultiTaskDataset(always).__getitems__(rows)
    for name in ("state", "actions"):
        before, after = ({**b, **b["observations"]}[name] for b in (batch, mirrored))
        tools = tool_points(dataset.contract, before)[..., -1, :]
        reflected = tool_points(dataset.contract, after)[..., -1, :]
        np.testing.assert_allclose(reflected[..., 0, :], tools[..., 1, :] * REFLECTION, atol=1e-5)
        np.testing.assert_allclose(reflected[..., 1, :], tools[..., 0, :] * REFLECTION, atol=1e-5)


# --- robots that have no mirror image ---------------------------------------------------


def changed(contract: Contract, second_joint: bool = False, **changes: Any) -> Contract:
    """The contract with another second arm, or with another second joint of it."""
    arm = contract.arms[1]
    if second_joint:
        joint = arm.links[1].model_copy(update=changes)
        changes = {"links": (arm.links[0], joint, *arm.links[2:])}
    return contract.model_copy(update={"arms": (contract.arms[0], arm.model_copy(update=changes))})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": (0.0, -0.31, 0.0)}, "base of arm b"),
        ({"tool": (0.2, 0.0, 0.0)}, "tool of arm b"),
        ({"second_joint": True, "offset": (0.0, 0.0, 0.2)}, "offset of joint j2"),
        ({"second_joint": True, "axis": (0.0, 0.0, 1.0)}, "axis of joint j2 of arm b"),
        ({"second_joint": True, "limits": (-1.0, 1.0)}, "limits of joint j2"),
        ({"links": ()}, "kinematic chain of arm b"),
    ],
)
def test_a_robot_without_mirror_symmetry_is_refused(
    contract: Contract, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ContractError, match=rf"transform mirror: expected .*{message}"):
        Mirror(changed(contract, **changes))


def test_an_opposite_axis_is_a_sign(contract: Contract) -> None:
    link = contract.arms[1].links[1]
    turned = changed(
        contract, True, axis=(0.0, -1.0, 0.0), limits=(-link.limits[1], -link.limits[0])
    )
    assert mirror_signs(*turned.arms).tolist() == [-1, -1, 1, -1, 1, -1]
    batch = make_batch(10)
    expected = tool_points(turned, batch["actions"])[..., ::-1, :, :] * REFLECTION
    mirrored = Mirror(turned, 1.0)(batch)["actions"]
    np.testing.assert_allclose(tool_points(turned, mirrored), expected, atol=1e-5)


def test_fewer_joints_arms_or_no_contract_are_refused(contract: Contract) -> None:
    shorter = changed(contract, links=contract.arms[1].links[:-1])
    alone = contract.model_copy(update={"arms": contract.arms[:1]})
    for given, message in ((shorter, "as many joints"), (alone, "two arms"), (None, "a contract")):
        with pytest.raises(ContractError, match=message):
            Mirror(given)


def test_a_camera_without_counterpart_is_refused_and_a_middle_one_is_flipped(
    contract: Contract,
) -> None:
    camera = contract.cameras[0]
    top, wrist = (camera.model_copy(update={"field": f}) for f in ("rgb_top", "rgb_wrist_a"))
    with pytest.raises(ContractError, match="camera rgb_wrist_b beside rgb_wrist_a"):
        Mirror(contract.model_copy(update={"cameras": (*contract.cameras, wrist)}))
    batch = make_batch()
    image = batch["observations"]["image"][:, :1]
    batch["observations"]["image"] = image
    mirror = Mirror(contract.model_copy(update={"cameras": (top,)}), 1.0)
    np.testing.assert_array_equal(mirror(batch)["observations"]["image"], image[..., ::-1])


def test_an_observation_that_cannot_be_mirrored_is_refused(contract: Contract) -> None:
    batch = make_batch()
    batch["observations"]["radar"] = np.ones((4, 3))
    with pytest.raises(ContractError, match="radar"):
        Mirror(contract, 1.0)(batch)
