"""The two-arm Gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from teamvla.errors import SimulationError
from teamvla.sim import saved
from teamvla.sim.cameras import CameraRig, Picture, RayRenderer
from teamvla.sim.experts import Expert
from teamvla.sim.interface import Action, Observation, RobotEnv, State, finite_command
from teamvla.sim.kinematics import InverseKinematics
from teamvla.sim.scene import (
    ARMS,
    CONTROL_HZ,
    JOINTS,
    Element,
    build_scene,
    to_xml,
    two_arm_contract,
)
from teamvla.sim.tasks import TASKS, Task, TaskConfig, TwoArmTaskConfig
from teamvla.sim.tasks.base import EDITS, Surroundings, Variation, solver
from teamvla.sim.world import World

#: Changes the MJCF of an episode before it is compiled; the generator is the episode's own.
SceneEdit = Callable[[Element, np.random.Generator], None]
_SETTLE_STEPS = 25
_OVERVIEW_SIZE = (240, 320)
_PARTS = (*(f"joint {joint.name}" for joint in JOINTS), "gripper")
_ENTRIES = [f"action of arm {arm}, {part}" for arm in ARMS for part in _PARTS]
_SPOILT = -1  # the stage of an episode that cannot succeed any more
_SLACK_RAD = 0.5  # joint limits are soft: a measured angle may overshoot


class TwoArmEnv(RobotEnv):
    """Two arms at a table, stepped at 20 Hz.

    Observation: the pictures of the cameras (:class:`CameraConfig`); ``q_a``, ``q_b``
    float32[6] measured joint angles, rad; ``grip_q_a``, ``grip_q_b`` float32[] measured
    gripper, 0 open .. 1 closed.

    Action: float32[14], a joints 6, a grip, b joints 6, b grip; absolute joint targets in
    rad, gripper 0 open .. 1 closed. A finite target outside its range is clipped to it, as
    a real driver does.

    ``terminated``: all stages of the task are behind and success held for ``hold_steps``
    steps. ``truncated``: ``max_steps`` are over. Everything random in an episode is drawn at
    its reset, from the reset's seed; the same seed and actions give the same observations
    to the bit, in any process and after any other episode: the scene is compiled anew.

    Args:
        config: the task's settings; the lift task with its defaults if left out.
        render_mode: ``rgb_array`` or None; :meth:`render` gives a picture in either case.

    Attributes:
        contract: what the numbers mean.
        world: the physics, for experts and tests.
        stage: how many of the task's stages are reached; -1 once the episode is spoilt.
        edits: changes that are made to every episode's scene before it is compiled; they
            draw from a generator of their own, so that all else stays as it is without.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium declares it so
        "render_modes": ["rgb_array"],
        "render_fps": int(CONTROL_HZ),
    }

    def __init__(self, config: TaskConfig | None = None, render_mode: str | None = None) -> None:
        self.config, self.task = _resolve(config or TaskConfig())
        self.max_steps = self.config.max_steps
        self.render_mode = render_mode
        self.edits: list[SceneEdit] = []
        self.stage = 0
        self._variation: Variation = {}
        self._steps = self._held = 0
        self._draws = self._draw(np.random.default_rng(0))
        self.world = World(self._scene(self._draws))
        self._cameras = CameraRig(self.world, self.config.camera)
        camera = self.config.camera
        self.contract = two_arm_contract(camera.height, camera.width, self._cameras.colour)
        self._kinematics = InverseKinematics(self.world)
        self._overview: RayRenderer | None = None
        self.observation_space = _observation_space(self._cameras.spaces())
        self.action_space: gymnasium.Space[Action] = _action_space()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; all of it follows from ``seed``. Info: instruction, task, success."""
        super().reset(seed=seed)
        self._variation = self._draw(self.np_random)
        self.world.load(self._scene(self._variation))
        self.world.reset()
        self.world.settle(_SETTLE_STEPS)
        self._steps = self._held = self.stage = 0
        return self._observe(), self._info(self.task.success(self.world))

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Carry out one command for 50 ms.

        Raises:
            SimulationError: before any reset, for an action that is not 14 finite numbers,
                or if the physics diverges.
        """
        self._require_reset()
        commands = finite_command(action, _ENTRIES).reshape(len(ARMS), -1)
        if not self.task.locked(self._steps):
            for arm, command in zip(ARMS, commands, strict=True):
                self.world.set_command(arm, command)
        self.world.advance()
        self._steps += 1
        success = self._judge()
        self._held = self._held + 1 if success else 0
        terminated = self._held >= self.config.hold_steps
        truncated = not terminated and self._steps >= self.max_steps
        reward = self.task.reward(self.world, self.stage)
        return self._observe(), reward, terminated, truncated, self._info(success)

    def render(self) -> Picture:
        """The whole scene, uint8[240, 320, 3], whatever the cameras of the observation are."""
        if self._overview is None:
            self._overview = RayRenderer(self.world, *_OVERVIEW_SIZE, shadows=True)
        return self._overview.render("overview")

    def close(self) -> None:
        """Give back what the cameras hold."""
        self._cameras.close()

    def expert(self) -> Expert:
        """The task's scripted expert, bound to this environment."""
        return Expert(self.world, self._kinematics, self.task.script, self.config.expert)

    @property
    def segments(self) -> dict[str, int]:
        """Numbers in fields ``seg_X``, by the name of what is seen; the same in each episode."""
        return dict(self._cameras.segments.numbers)

    @property
    def instruction(self) -> str:
        """The phrasing drawn for this episode."""
        self._require_reset()
        return self.say(self.config.instructions[int(self._variation["instruction"])])

    def say(self, phrasing: str) -> str:
        """The instruction that ``phrasing`` gives for this episode."""
        return self.task.words(self._variation, phrasing)

    def other_instructions(self) -> tuple[str, ...]:
        """Instructions of something else that an arm could do instead."""
        return self.task.other_instructions(self._variation)

    def get_state(self) -> State:
        """All that decides how the episode goes on, as arrays by name."""
        self._require_reset()
        counters = np.array([self._steps, self._held, self.stage], np.int64)
        variation = {name: value.copy() for name, value in self._variation.items()}
        return {"physics": self.world.state(), "counters": counters, **variation}

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Go back to what :meth:`get_state` gave, to the bit; arrays or nested lists.

        Raises:
            SimulationError: the state is damaged, or belongs to another task or version; then
                the environment stays as it is.
        """
        variation = saved.arrays(state)
        saved.require_shapes(variation, self._shapes())
        counters, physics = variation.pop("counters"), variation.pop("physics")
        most = (self.max_steps, self.max_steps, len(self.task.stages))
        saved.require_whole("counters", counters, (0, 0, _SPOILT), most)
        for name, count in (Surroundings.choices(self.config) | self.task.choices()).items():
            saved.require_whole(name, variation[name], 0, count - 1)
        with saved.checked("scene"):
            self.world.load(self._scene(variation))
        self.world.restore(physics)
        self._variation = variation
        self._steps, self._held, self.stage = (int(count) for count in counters)
        return self._observe()

    def _draw(self, rng: np.random.Generator) -> Variation:
        drawn = Surroundings.draw(self.config, rng) | self.task.draw(rng)
        # Drawn last, and always: edits of the scene change nothing else about the episode.
        return drawn | {"edits": np.array(float(rng.integers(EDITS)))}

    def _scene(self, variation: Variation) -> str:
        around = Surroundings.of(variation)
        physics = solver(self.config.physics)
        root, world = build_scene(physics, around.light, around.camera_shift)
        self.task.add_objects(world, variation)
        rng = np.random.default_rng(int(variation["edits"]))
        for edit in self.edits:
            edit(root, rng)
        return to_xml(root)

    def _judge(self) -> bool:
        """Go on to the next stage if it is reached; whether success counts at this step."""
        stages = len(self.task.stages)
        if self.stage == _SPOILT or self.task.spoilt(self.world):
            self.stage = _SPOILT
        elif self.stage < stages and self.task.reached(self.world, self.stage):
            self.stage += 1
        return self.stage == stages and self.task.success(self.world)

    def _observe(self) -> Observation:
        self.task.show(self.world, self._variation, self._steps)
        observation = self._cameras.observe()
        for arm in ARMS:
            observation[f"q_{arm}"] = self.world.joints(arm).astype(np.float32)
            observation[f"grip_q_{arm}"] = np.array(self.world.closure(arm), np.float32)
        return observation

    def _info(self, success: bool) -> dict[str, Any]:
        return {
            "success": success,
            "task": self.config.name,
            "instruction": self.instruction,
        }

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        known = {name: array.shape for name, array in self._draws.items()}
        return known | {"physics": self.world.state().shape, "counters": (3,)}

    def _require_reset(self) -> None:
        if not self._variation:
            raise SimulationError("environment", "a reset first", "none so far")


def make_env(config: TaskConfig | None = None, render_mode: str | None = None) -> RobotEnv:
    """The environment that ``config`` describes; the lift task if left out.

    Raises:
        RegistryError: there is no such task.
    """
    config = config or TaskConfig()
    return TASKS.get(config.name).make(config, render_mode)


def _resolve(config: TaskConfig) -> tuple[TwoArmTaskConfig, Task]:
    """The task, and its full settings if only those of a base class were given."""
    kind: Any = TASKS.get(config.name)
    task: Task = kind(config.completed(kind.Config))
    return task.config, task


def _observation_space(cameras: dict[str, gymnasium.Space[Any]]) -> gymnasium.Space[Any]:
    low, high = np.array([joint.limits for joint in JOINTS], np.float32).T
    angles = gymnasium.spaces.Box(low - _SLACK_RAD, high + _SLACK_RAD, dtype=np.float32)
    closure = gymnasium.spaces.Box(0.0, 1.0, (), np.float32)
    spaces = {**cameras, **{f"q_{arm}": angles for arm in ARMS}}
    return gymnasium.spaces.Dict(spaces | {f"grip_q_{arm}": closure for arm in ARMS})


def _action_space() -> gymnasium.spaces.Box[np.float32]:
    limits = [*(joint.limits for joint in JOINTS), (0.0, 1.0)] * len(ARMS)
    low, high = np.array(limits, np.float32).T
    return gymnasium.spaces.Box(low, high, dtype=np.float32)
