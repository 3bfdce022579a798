"""The driving environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from teamvla.contract import Camera, Contract, Signal
from teamvla.errors import SimulationError
from teamvla.sim import saved
from teamvla.sim.driving import layout
from teamvla.sim.driving.cameras import CAMERA_FIELDS, Picture, SurroundCameras
from teamvla.sim.driving.expert import DrivingExpert
from teamvla.sim.driving.layout import Layout
from teamvla.sim.driving.lidar import Lidar
from teamvla.sim.driving.noise import Stream, generator
from teamvla.sim.driving.overview import overview
from teamvla.sim.driving.planner import decide, trajectory
from teamvla.sim.driving.radar import Radar
from teamvla.sim.driving.roads import ROUTES
from teamvla.sim.driving.task import DrivingConfig
from teamvla.sim.driving.vehicle import (
    CONTROL_HZ,
    GREATEST_ACCELERATION,
    LEAST_ACCELERATION,
    MAX_SPEED,
    MAX_STEERING,
    SUBSTEPS,
)
from teamvla.sim.driving.verdict import Verdict, judge
from teamvla.sim.driving.world import DrivingWorld
from teamvla.sim.interface import Action, Observation, RobotEnv, State, finite_command
from teamvla.sim.tasks.base import TaskConfig

_ENTRIES = ("action, acceleration", "action, steering")
_LOW = np.array([LEAST_ACCELERATION, -MAX_STEERING], np.float32)
_HIGH = np.array([GREATEST_ACCELERATION, MAX_STEERING], np.float32)


class DrivingEnv(RobotEnv):
    """An ego vehicle in traffic, stepped at 20 Hz (5 physics steps of 10 ms).

    Observation: six pictures ``rgb_surround_*`` uint8[H, W, 3]; ``ego`` float32[4] speed (m/s),
    turning rate (rad/s), steering angle (rad), acceleration (m/s^2); ``points`` float32[N, 4],
    ``radar`` float32[P, 5] and ``imu`` float32[5, 7], each with a mask of the rows that are there.

    Action: float32[2], acceleration (m/s^2, -6..3) and angle of the front wheels (rad, -0.55..0.55,
    left positive), which turn at 0.8 rad/s. A finite value outside its range is clipped to it.

    ``terminated``: success held for ``hold_steps`` steps, or a collision, or off the road or the
    route. ``truncated``: ``max_steps`` are over. ``info`` says ``collision``, ``off_road``,
    ``off_route``, and in ``targets`` what a policy may learn to tell of the observation beside it:
    ``trajectory`` float32[K, 2], where the expert would drive from there (m, ego's frame).

    Args:
        config: the settings; the defaults if left out.
        render_mode: ``rgb_array`` or None; :meth:`render` gives a picture in either case.

    Attributes:
        contract: what the numbers mean.
        max_steps: of an episode.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium declares it so
        "render_modes": ["rgb_array"],
        "render_fps": int(CONTROL_HZ),
    }

    def __init__(self, config: TaskConfig | None = None, render_mode: str | None = None) -> None:
        self.config = (config or DrivingConfig()).completed(DrivingConfig)
        self.render_mode = render_mode
        self.max_steps = self.config.max_steps
        self.contract = _contract(self.config)
        self.observation_space = _observation_space(self.config)
        self.action_space: gymnasium.Space[Action] = gymnasium.spaces.Box(
            _LOW, _HIGH, dtype=np.float32
        )
        self._cameras = SurroundCameras(self.config.camera.height, self.config.camera.width)
        self._lidar, self._radar = Lidar(self.config.lidar), Radar(self.config.radar)
        self._world: DrivingWorld | None = None
        self._steps = self._held = 0

    @property
    def world(self) -> DrivingWorld:
        """The episode's scene, for experts and tests; another one after each reset.

        Raises:
            SimulationError: before any reset.
        """
        if self._world is None:
            raise SimulationError("environment", "a reset first", "none so far")
        return self._world

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; all of it follows from ``seed``."""
        super().reset(seed=seed)
        self._world = DrivingWorld(layout.draw(self.config, self.np_random))
        self._steps = self._held = 0
        return self._observe(), self._info(judge(self.world))

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Carry out one command for 50 ms.

        Raises:
            SimulationError: before any reset, for an action that is not 2 finite numbers, or if
                the physics diverges.
        """
        controls = np.clip(finite_command(action, _ENTRIES), _LOW, _HIGH)
        self.world.advance(*controls.tolist())
        self._steps += 1
        verdict = judge(self.world)
        self._held = self._held + 1 if verdict.success else 0
        terminated = verdict.failed or self._held >= self.config.hold_steps
        truncated = not terminated and self._steps >= self.max_steps
        reward = verdict.reward(self.config.reward)
        return self._observe(), reward, terminated, truncated, self._info(verdict)

    def render(self) -> Picture:
        """The surroundings from above, uint8[240, 320, 3]."""
        return overview(self.world)

    def expert(self) -> DrivingExpert:
        """The expert driver, bound to this environment."""
        return DrivingExpert(self)

    @property
    def instruction(self) -> str:
        """The words of this episode."""
        drawn = self.world.drawn
        sentence, phrasing = (int(index) for index in drawn["words"])
        phrasings = getattr(self.config.phrasings, ROUTES[int(drawn["route"])])
        return self.config.instructions[sentence].replace("{route}", phrasings[phrasing])

    def get_state(self) -> State:
        """All that decides how the episode goes on, as arrays by name."""
        drawn = {f"drawn_{name}": value.copy() for name, value in self.world.drawn.items()}
        counters = np.array([self._steps, self._held], np.int64)
        return {"counters": counters, **self.world.state(), **drawn}

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Go back to what :meth:`get_state` gave, to the bit; arrays or nested lists.

        Raises:
            SimulationError: the state is damaged, or belongs to another task or version; then
                the environment stays as it is.
        """
        arrays, drawn = self._checked_state(state)
        with saved.checked("scene"):
            world = DrivingWorld(drawn)
            world.restore(arrays)
        self._world = world
        self._steps, self._held = (int(count) for count in arrays["counters"])
        return self._observe()

    def _checked_state(self, state: Mapping[str, Any]) -> tuple[Layout, Layout]:
        """The entries of a state, and those of what was drawn without the beginning of names."""
        fresh = layout.draw(self.config, np.random.default_rng(0))
        known = {f"drawn_{name}": value.shape for name, value in fresh.items()}
        known |= {name: value.shape for name, value in DrivingWorld(fresh).state().items()}
        arrays = saved.arrays(state, greatest=layout.SENSORS)
        saved.require_shapes(arrays, known | {"counters": (2,)})
        drawn = {name: arrays[f"drawn_{name}"] for name in fresh}
        saved.require_whole("counters", arrays["counters"], 0, self.max_steps)
        layout.check(drawn, self.config)
        _require_driving(arrays)
        return arrays, drawn

    def _observe(self) -> Observation:
        world, step = self.world, self._steps
        key = int(world.drawn["sensors"])
        observation: Observation = {**self._cameras.observe(world, key, step)}
        vehicle = world.vehicle
        ego = (vehicle.speed, vehicle.yaw_rate, vehicle.steering, vehicle.acceleration)
        observation["ego"] = np.array(ego, np.float32)
        for name, sensor in (("points", self._lidar), ("radar", self._radar)):
            observation[name], observation[f"{name}_mask"] = sensor.observe(world, key, step)
        observation["imu"] = self._inertia(key)
        observation["imu_mask"] = np.ones(SUBSTEPS, bool)
        return observation

    def _inertia(self, key: int) -> NDArray[np.float32]:
        config, samples = self.config.imu, self.world.vehicle.inertia.copy()
        if config.noise_acceleration or config.noise_turn:
            spread = [0.0, *[config.noise_acceleration] * 3, *[config.noise_turn] * 3]
            noise = generator(key, self._steps, Stream.IMU).standard_normal(samples.shape)
            samples += spread * noise
        return samples.astype(np.float32)

    def _info(self, verdict: Verdict) -> dict[str, Any]:
        world = self.world
        ego, shape = world.ego(), self.config.trajectory
        plan = decide(world.route, ego, world.traffic.others())
        path = trajectory(world.route, ego, plan, shape.waypoints, shape.spacing_s)
        return {
            "success": verdict.success,
            "task": self.config.name,
            "instruction": self.instruction,
            "collision": verdict.collision,
            "off_road": verdict.off_road,
            "off_route": verdict.off_route,
            "situation": layout.SITUATIONS[int(world.drawn["situation"])],
            "route": world.route.name,
            "targets": {"trajectory": path.astype(np.float32)},
        }


def _require_driving(arrays: Layout) -> None:
    """SimulationError unless the ego and the others can be in this state."""
    saved.require_within("physics", arrays["physics"], -layout.NOWHERE, layout.NOWHERE)
    saved.require_within("others", arrays["others"], -layout.NOWHERE, layout.NOWHERE)
    least, most = (0.0, -MAX_STEERING, -1e4), (MAX_SPEED, MAX_STEERING, 1e4)
    saved.require_within("vehicle", arrays["vehicle"], least, most)


def _contract(config: DrivingConfig) -> Contract:
    size = {"height": config.camera.height, "width": config.camera.width}
    ahead = "m, x ahead, y left"
    return Contract(
        embodiment="driving",
        control_hz=CONTROL_HZ,
        cameras=tuple(Camera(field=field, **size) for field in CAMERA_FIELDS),
        signals=(
            Signal(field="ego", shape=(4,), unit="speed m/s, turning rate rad/s, steering rad, "
                   "acceleration m/s^2"),
            Signal(field="points", shape=(-1, 4), unit=f"{ahead}, z up; intensity 0..1"),
            Signal(field="radar", shape=(-1, 5), unit=f"{ahead}; radial velocity m/s; dBsm"),
            Signal(field="imu", shape=(-1, 7), unit="s; m/s^2; rad/s"),
            Signal(field="controls", role="action", shape=(2,),
                   unit=f"acceleration {LEAST_ACCELERATION:g}..{GREATEST_ACCELERATION:g} m/s^2, "
                   f"steering -{MAX_STEERING}..{MAX_STEERING} rad"),
            Signal(field="trajectory", role="target", shape=(config.trajectory.waypoints, 2),
                   unit=f"{ahead}; every {config.trajectory.spacing_s:g} s"),
        ),
    )  # fmt: skip


def _observation_space(config: DrivingConfig) -> gymnasium.Space[Any]:
    box, bits = gymnasium.spaces.Box, gymnasium.spaces.MultiBinary
    picture = box(0, 255, (config.camera.height, config.camera.width, 3), np.uint8)
    spaces: dict[str, gymnasium.Space[Any]] = dict.fromkeys(CAMERA_FIELDS, picture)
    spaces["ego"] = box(
        np.array([0.0, -10.0, -MAX_STEERING, -MAX_SPEED * 100], np.float32),
        np.array([MAX_SPEED, 10.0, MAX_STEERING, MAX_SPEED * 100], np.float32),
    )
    rows = {"points": (config.lidar.columns * config.lidar.beams, 4),
            "radar": (config.radar.targets, 5), "imu": (SUBSTEPS, 7)}  # fmt: skip
    for name, shape in rows.items():
        spaces[name] = box(-np.inf, np.inf, shape, np.float32)
        spaces[f"{name}_mask"] = bits(shape[0])
    return gymnasium.spaces.Dict(spaces)
