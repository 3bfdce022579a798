"""A small environment with every kind of field, and experts that go wrong.

One arm of two joints, a camera, radar targets padded to four rows, a discrete and a continuous
action besides, and a target. The joints go half of the way to their command in every step; the
episode is won where they reach the goal, which the reset draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np

from teamvla.contract import Arm, Camera, Contract, Signal
from teamvla.errors import SimulationError
from teamvla.sim.interface import Observation, RobotEnv, State
from teamvla.sim.tasks import TASKS, TaskConfig

CONTRACT = Contract(
    embodiment="small",
    arms=(Arm(name="arm", joints=("hip", "knee")),),
    cameras=(Camera(field="rgb_arm", height=8, width=8),),
    signals=(
        Signal(field="radar", shape=(-1, 5), dtype="float32"),
        Signal(field="pedals", role="action", shape=(2,), low=0, high=1),
        Signal(field="gear", role="action", dtype="int64", choices=("low", "high")),
        Signal(field="ahead", role="target", shape=(3, 2), unit="m"),
    ),
)
_ROWS = 4


class SmallConfig(TaskConfig):
    """``trouble``: ``nan`` seen by every third seed, ``reset`` that raises, or a stateless one."""

    name: str = "small"
    max_steps: int = 40
    trouble: str = ""


class SmallEnv(RobotEnv):
    def __init__(self, config: SmallConfig) -> None:
        self.config, self.contract, self.max_steps = config, CONTRACT, config.max_steps
        box = gymnasium.spaces.Box
        self.observation_space = gymnasium.spaces.Dict(
            {
                "rgb_arm": box(0, 255, (8, 8, 3), np.uint8),
                "q_arm": box(-9, 9, (2,)),
                "radar": box(-9, 9, (_ROWS, 5)),
                "radar_mask": box(0, 1, (_ROWS,), np.bool_),
            }
        )
        self.action_space = box(-9, 9, (CONTRACT.action_dim,))
        self.executed: list[np.ndarray] = []
        self.seed = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed = 0 if seed is None else seed
        if self.config.trouble == "reset" and self.seed % 3 == 0:
            raise RuntimeError("no power\nat all")
        self.q, self.goal = np.zeros(2), self.np_random.uniform(0.3, 1.0, 2)
        self.steps = 0
        return self._observe(), self._info(False)

    def step(self, action):
        self.executed.append(np.array(action))
        self.q = self.q + 0.5 * (np.asarray(action, np.float64)[:2] - self.q)
        self.steps += 1
        success = bool(np.abs(self.q - self.goal).max() < 0.05)
        return self._observe(), 0.25, success, self.steps >= self.max_steps, self._info(success)

    def _observe(self) -> Observation:
        radar = np.full((_ROWS, 5), 7.0, np.float32)
        valid = np.arange(_ROWS) < self.steps % 3
        radar[valid] = self.steps
        q = self.q.astype(np.float32)
        if self.config.trouble == "nan" and self.seed % 3 == 0 and self.steps == 3:
            q[0] = np.nan
        picture = np.full((8, 8, 3), 40 * self.q[0], np.uint8)
        return {"rgb_arm": picture, "q_arm": q, "radar": radar, "radar_mask": valid}

    def _info(self, success: bool) -> dict[str, Any]:
        ahead = np.full((3, 2), self.steps, np.float32)
        info = {"success": success, "task": "small", "instruction": self.instruction}
        return {**info, "targets": {"ahead": ahead}}

    @property
    def instruction(self) -> str:
        return "go there"

    def expert(self) -> Scripted:
        return Scripted(self)

    def get_state(self) -> State:
        if self.config.trouble == "stateless":
            raise SimulationError("small", "a state", "none")
        return {"q": self.q, "goal": self.goal, "steps": np.array([self.steps])}

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        self.q, self.goal = np.array(state["q"]), np.array(state["goal"])
        self.steps = int(state["steps"][0])
        return self._observe()


class SmallTask:
    Config: ClassVar[type[TaskConfig]] = SmallConfig

    @classmethod
    def make(cls, config, render_mode=None) -> SmallEnv:
        return SmallEnv(config)


if "small" not in TASKS:
    TASKS.register("small")(SmallTask)


class Scripted:
    """Goes straight to the goal."""

    def __init__(self, env: SmallEnv) -> None:
        self.env, self.phase = env, ""

    def reset(self) -> None:
        self.phase, self.ticks = "", 0

    def act(self, obs):
        self.phase = "near" if self.ticks > 2 else "far"
        self.ticks += 1
        arm = np.append(self.env.goal * min(1.0, self.ticks / 6), 0.5).astype(np.float32)
        return [arm, np.array([0.5, 0.25], np.float32), np.array(self.ticks % 2)]

    @property
    def unlucky(self) -> bool:
        """Every third seed."""
        return self.env.seed % 3 == 0


class Raises(Scripted):
    def act(self, obs):
        if self.unlucky and self.ticks == 2:
            raise ZeroDivisionError("no way\nout")
        return super().act(obs)


class GivesNan(Scripted):
    def act(self, obs):
        arm, *rest = super().act(obs)
        return [arm * (np.nan if self.unlucky and self.ticks == 3 else 1), *rest]


class Misshapen(Scripted):
    def act(self, obs):
        arm, *rest = super().act(obs)
        return [arm[:2] if self.unlucky else arm, *rest]


class GripsTooHard(Scripted):
    def act(self, obs):
        arm, *rest = super().act(obs)
        return [np.append(arm[:2], np.float32(1.5 if self.unlucky else 0.5)), *rest]


class ShiftsTooFar(Scripted):
    """To a gear that no int64 holds."""

    def act(self, obs):
        arm, pedals, gear = super().act(obs)
        return [arm, pedals, np.array(1e30 if self.unlucky else gear)]


class GivesUp(Scripted):
    """Does not go to the goal of every third seed."""

    def act(self, obs):
        arm, *rest = super().act(obs)
        return [np.zeros_like(arm) if self.unlucky else arm, *rest]


class AlwaysRaises(Scripted):
    def act(self, obs):
        raise KeyError("nothing works")


class Exits(Scripted):
    """Leaves the program, as a script does that knows no better."""

    def act(self, obs):
        if self.unlucky and self.ticks == 2:
            raise SystemExit(0)
        return super().act(obs)


class Moody(Scripted):
    """Does not always say what it is doing."""

    @property
    def phase(self):
        if self.unlucky and self.ticks == 2:
            raise LookupError("in no mood")
        return "calm"

    @phase.setter
    def phase(self, said): ...


class GivesUpThenRaises(Scripted):
    """The first attempt ends, without success; all others break off."""

    attempts = 0

    def reset(self):
        super().reset()
        self.attempts += 1

    def act(self, obs):
        if self.attempts > 1:
            raise KeyError("nothing works")
        return [np.zeros(3, np.float32), *super().act(obs)[1:]]


class RaisesAtOneEpisode(Scripted):
    """Whatever attempt at the second episode it is."""

    episodes = 0

    def reset(self):
        super().reset()
        self.episodes += 1

    def act(self, obs):
        if 1 < self.episodes <= 21:
            raise KeyError("nothing works")
        return super().act(obs)


class ExitsWhenMade:
    def __init__(self, env: SmallEnv) -> None:
        raise SystemExit


class Unmakeable:
    def __init__(self, env: SmallEnv) -> None:
        raise ValueError("not today")


class Actless:
    def __init__(self, env: SmallEnv) -> None: ...

    def reset(self) -> None: ...
