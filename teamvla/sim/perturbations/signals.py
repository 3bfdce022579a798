"""Perturbations between environment and policy: pictures and commands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque

import numpy as np

from teamvla.contract import Contract
from teamvla.sim.interface import Action, Observation, RobotEnv
from teamvla.sim.perturbations.base import Perturbation


class _Pictures(Perturbation, ABC):
    """Changes every picture of an observation, each with draws of its own."""

    needs = "cameras"

    @classmethod
    def fits(cls, env: RobotEnv) -> bool:
        return bool(env.contract.cameras)

    def attach(self, env: RobotEnv) -> None:
        self._fields = [camera.field for camera in env.contract.cameras]

    def begin(self, env: RobotEnv, rng: np.random.Generator) -> None:
        self._rng = rng

    def see(self, observation: Observation) -> Observation:
        changed = {
            name: value for field in self._fields
            for name, value in self.spoil(field, observation).items()
        }  # fmt: skip
        return {**observation, **changed}

    @abstractmethod
    def spoil(self, field: str, observation: Observation) -> Observation:
        """What is seen instead of a camera's fields; its picture, uint8[H, W, 3], is ``field``."""


class Blackout(_Pictures):
    """Each camera loses this share of its pictures: black, no depth (inf), segment 0."""

    unit, default, limit = "share of the pictures", 0.2, 1.0

    def spoil(self, field: str, observation: Observation) -> Observation:
        if self._rng.random() >= self.strength:
            return {}
        stem = field.removeprefix("rgb")
        nothing = {field: 0, f"depth{stem}": np.inf, f"seg{stem}": 0}
        seen = nothing.keys() & observation.keys()
        return {name: np.full_like(observation[name], nothing[name]) for name in seen}


class CameraNoise(_Pictures):
    """Gaussian noise on every channel of every pixel; none on depth and segments."""

    unit, default, limit = "standard deviation, of 255 levels", 20.0, 255.0

    def spoil(self, field: str, observation: Observation) -> Observation:
        picture = observation[field]
        noise = self._rng.normal(0.0, self.strength, picture.shape)
        return {field: np.clip(picture + noise, 0, 255).astype(np.uint8)}


class ActionDelay(Perturbation):
    """Commands are carried out so many steps late; until the first one the robot stands still."""

    unit, default, limit = "steps", 2.0, 100.0
    needs = "commands among which one stands still"

    @classmethod
    def fits(cls, env: RobotEnv) -> bool:
        return not any(signal.choices for signal in env.contract.action_signals)

    def begin(self, env: RobotEnv, rng: np.random.Generator) -> None:
        self._waiting: deque[Action] | None = None
        self._contract = env.contract

    def see(self, observation: Observation) -> Observation:
        if self._waiting is None:
            still = standing_still(self._contract, observation)
            self._waiting = deque([still] * round(self.strength))
        return observation

    def carry_out(self, action: Action) -> Action:
        assert self._waiting is not None
        self._waiting.append(action)
        return self._waiting.popleft()


class ActionNoise(Perturbation):
    """White noise on the arms' joint targets, drawn anew at every step."""

    unit, default, limit = "standard deviation, rad (or m)", 0.01, 1.0

    needs = "arms"

    @classmethod
    def fits(cls, env: RobotEnv) -> bool:
        return bool(env.contract.arms)

    def attach(self, env: RobotEnv) -> None:
        size = env.contract.action_dim
        places = range(sum(arm.num_joints + 1 for arm in env.contract.arms))
        grippers = env.contract.grippers
        self._scale = np.zeros(size)
        self._scale[[place for place in places if place not in grippers]] = self.strength

    def begin(self, env: RobotEnv, rng: np.random.Generator) -> None:
        self._rng = rng

    def carry_out(self, action: Action) -> Action:
        noise = self._scale * self._rng.standard_normal(len(self._scale))
        return np.asarray(action + noise, np.float32)


def standing_still(contract: Contract, observation: Observation) -> Action:
    """The joined command that keeps every joint and gripper where it is measured.

    For deltas that is zero; action signals are 0, or the nearest that their limits allow.
    """
    parts: list[np.ndarray] = []
    for arm in contract.arms:
        joints = np.asarray(observation[f"q_{arm.name}"])
        if contract.action != "absolute_joint_position":
            joints = np.zeros_like(joints)
        parts.append(np.append(joints, observation.get(f"grip_q_{arm.name}", 0.0)))
    for signal in contract.action_signals:
        low, high = signal.limits
        parts.append(np.full(signal.size, np.clip(0.0, low, high)))
    return np.concatenate(parts).astype(np.float32)
