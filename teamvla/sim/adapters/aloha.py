"""gym-aloha without OpenGL, and with initial states that follow from the seed alone."""

from __future__ import annotations

import importlib
import threading
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Seen = dict[str, NDArray[np.float64]]
# The environment hands the drawn pose to its task in a variable of the module.
_POSE_IN_USE = threading.Lock()
_SAMPLERS = {"transfer_cube": "sample_box_pose", "insertion": "sample_insertion_pose"}
_JOINTS = 14


class AlohaWithoutGl(gymnasium.Wrapper[Seen, NDArray[np.float64], Any, Any]):
    """Leaves out the three OpenGL pictures that gym-aloha renders at every step.

    Observation: ``agent_pos`` float64[14], for each arm six joint angles (rad) and the gripper
    (about 0 closed .. 1 open); pictures come from the cameras of the model. For seeds of 32
    bits the initial states are those of gym-aloha itself.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        bare: Any = env.unwrapped
        self._bare, self._control = bare, bare._env
        self._task = self._control.task
        self._task.get_observation = self._measured
        angles = gymnasium.spaces.Box(-np.inf, np.inf, (_JOINTS,), np.float64)
        self.observation_space: Any = gymnasium.spaces.Dict({"agent_pos": angles})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Seen, dict[str, Any]]:
        """Draw the objects' poses from ``seed`` and start there."""
        if seed is None:
            seed = int(self._bare.np_random.integers(2**31))
        else:
            self._bare.np_random = np.random.default_rng(seed)
        with _POSE_IN_USE:
            poses = importlib.import_module("gym_aloha.tasks.sim").BOX_POSE
            poses[0] = self._draw(seed)
            raw = self._control.reset()
        return dict(raw.observation), {"is_success": False}

    def step(self, action: Any) -> tuple[Seen, float, bool, bool, dict[str, Any]]:
        """One step of 20 ms; reward 0 .. 4, of which 4 is success and ends the episode."""
        timestep = self._control.step(np.asarray(action, np.float64))
        done = timestep.reward == self._task.max_reward
        return dict(timestep.observation), timestep.reward, done, False, {"is_success": done}

    def _measured(self, physics: Any) -> Seen:
        return {"agent_pos": self._task.get_qpos(physics)}

    def _draw(self, seed: int) -> NDArray[np.float64]:
        words = seed if seed < 2**32 else np.random.SeedSequence(seed).generate_state(4)
        sampler = getattr(importlib.import_module("gym_aloha.utils"), _SAMPLERS[self._bare.task])
        return np.hstack(sampler(words))
