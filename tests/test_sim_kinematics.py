"""The contract's chains agree with the simulator; inverse kinematics reaches, or says so."""

from __future__ import annotations

import numpy as np
import pytest

from teamvla.contract import Arm
from teamvla.errors import SimulationError
from teamvla.sim import make_env
from teamvla.sim.kinematics import InverseKinematics, pointing_down, yaw_of
from teamvla.sim.scene import HOME, two_arm_contract
from teamvla.sim.world import World

CONTRACT = two_arm_contract(64, 64)


@pytest.fixture(scope="module")
def world() -> World:
    env = make_env()
    env.reset(seed=0)
    return env.world


def turn(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rodrigues' formula."""
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def forward(arm: Arm, joints: np.ndarray) -> np.ndarray:
    """Tool position through the contract's chain alone."""
    position, rotation = np.array(arm.base), np.eye(3)
    for link, angle in zip(arm.links, joints, strict=True):
        position = position + rotation @ link.offset
        rotation = rotation @ turn(np.array(link.axis), angle)
    return position + rotation @ arm.tool


@pytest.mark.parametrize("arm", CONTRACT.arms, ids=lambda arm: arm.name)
def test_contract_chain_ends_where_the_simulator_has_the_tool(world: World, arm: Arm) -> None:
    rng = np.random.default_rng(0)
    low, high = np.array([link.limits for link in arm.links]).T
    kinematics = InverseKinematics(world)
    for joints in rng.uniform(low, high, (50, 6)):
        simulated, _ = kinematics.tool(arm.name, joints)
        np.testing.assert_allclose(forward(arm, joints), simulated, atol=1e-9)


def test_contract_limits_are_those_the_actuators_enforce(world: World) -> None:
    for arm in CONTRACT.arms:
        enforced = world.model.actuator_ctrlrange[world.arms[arm.name].actuators[:-1]]
        np.testing.assert_allclose([link.limits for link in arm.links], enforced)


def test_contract_action_has_the_environments_length() -> None:
    assert make_env().action_space.shape == (CONTRACT.action_dim,) == (14,)


@pytest.mark.parametrize("arm", ["a", "b"])
def test_inverse_kinematics_reaches_position_and_yaw(world: World, arm: str) -> None:
    kinematics = InverseKinematics(world)
    side = 1.0 if arm == "a" else -1.0
    position, yaw = np.array([0.42, side * 0.2, 0.12]), np.pi / 2 + 0.4
    joints = kinematics.solve(arm, np.array(HOME), position, pointing_down(yaw))
    reached, rotation = kinematics.tool(arm, joints)
    np.testing.assert_allclose(reached, position, atol=1e-3)
    np.testing.assert_allclose(rotation, pointing_down(yaw), atol=5e-3)
    assert yaw_of(rotation) == pytest.approx(yaw, abs=5e-3)


def test_solving_leaves_the_world_alone(world: World) -> None:
    before = world.state()
    target = np.array([0.4, 0.2, 0.1])
    InverseKinematics(world).solve("a", np.array(HOME), target, pointing_down(1.0))
    assert np.array_equal(before, world.state())


def test_a_target_out_of_reach_names_arm_and_place(world: World) -> None:
    far = np.array([1.4, 0.0, 0.1])
    with pytest.raises(SimulationError, match=r"arm b: target \(1.400, 0.000, 0.100\) m.*missed"):
        InverseKinematics(world).solve("b", np.array(HOME), far, pointing_down(0.0))


def test_a_rotation_out_of_reach_is_told_too(world: World) -> None:
    upwards = pointing_down(0.0) @ np.diag([-1.0, 1.0, -1.0])
    near_the_edge = np.array([0.60, 0.3, 0.02])
    with pytest.raises(SimulationError, match=r"missed by \d+ mm and \d\.\d\d rad"):
        InverseKinematics(world).solve("a", np.array(HOME), near_the_edge, upwards)


def test_a_target_that_is_no_number_is_out_of_reach(world: World) -> None:
    nowhere = np.array([np.nan, 0.2, 0.1])
    with pytest.raises(SimulationError, match="within reach"):
        InverseKinematics(world).solve("a", np.array(HOME), nowhere, pointing_down(0.0))


@pytest.mark.parametrize("yaw", np.linspace(-3.0, 3.0, 7))
def test_a_tool_that_points_down_is_a_rotation_with_the_axes_as_told(yaw: float) -> None:
    rotation = pointing_down(yaw)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    np.testing.assert_allclose(rotation[:, 0], [0.0, 0.0, -1.0], atol=1e-12)
    np.testing.assert_allclose(rotation[:, 1], [np.cos(yaw), np.sin(yaw), 0.0], atol=1e-12)
    assert yaw_of(rotation) == pytest.approx(yaw)
