"""A foreign Gymnasium environment with a contract."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from teamvla.contract import Contract, Signal
from teamvla.errors import ConfigError, SimulationError, TeamVLAError
from teamvla.registry import import_user_object, told_in_a_line
from teamvla.sim.adapters.commanding import Commander
from teamvla.sim.adapters.mapping import RENDER
from teamvla.sim.adapters.opening import open_env
from teamvla.sim.adapters.pictures import ModelCameras
from teamvla.sim.adapters.reading import Reader
from teamvla.sim.adapters.states import blown_up, physics_of, restore, save
from teamvla.sim.adapters.task import GymnasiumConfig, PictureConfig
from teamvla.sim.cameras import Picture
from teamvla.sim.interface import Action, Expert, Observation, RobotEnv, State
from teamvla.sim.saved import require_shapes

#: some print to stdout, which is for results; it is one for all threads
_ALONE = threading.Lock()
_OVERVIEW = PictureConfig(height=180, width=240)


class GymnasiumEnv(RobotEnv):
    """Any Gymnasium environment, its numbers converted to the fields of a step.

    Observation and action are what ``config.mapping`` says, in the units of :attr:`contract`;
    ``terminated`` where the environment ends the episode or success has held for
    ``hold_steps``; ``truncated`` where it breaks off or ``max_steps`` are over. The reward is
    the environment's own.

    Args:
        config: which environment, and what its numbers mean.
        render_mode: ``rgb_array`` or None.

    Attributes:
        contract: what the numbers mean.
        foreign: the environment behind, for experts and tests.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - gymnasium's way

    def __init__(self, config: GymnasiumConfig, render_mode: str | None = None) -> None:
        self.config, self.render_mode, self.max_steps = config, render_mode, config.max_steps
        mapping, camera = config.mapping, config.camera
        self._filmed = {f: p.camera for f, p in mapping.pictures.items() if p.camera is not None}
        self._shown = any(picture.key == RENDER for picture in mapping.pictures.values())
        kwargs = dict(config.kwargs)
        if self._shown or (render_mode is not None and not self._filmed):
            kwargs = {"render_mode": "rgb_array", **kwargs}
        self.contract: Contract = mapping.contract(config.control_hz, camera.height, camera.width)
        self._reader = Reader(mapping, (camera.height, camera.width))
        self.foreign = open_env(config.id, config.module, kwargs, config.wrap)
        self._cameras: ModelCameras | None = None
        self._overview: ModelCameras | None = None
        self._hidden = [field for field, s in mapping.signals.items() if s.role == "target"]
        self._seen: Observation = {}
        self._targets: Observation = {}
        self._words = ""
        self._steps = self._held = 0
        try:
            self._commander = Commander(mapping.action, self.contract, self.foreign.action_space)
            self._cameras = self._open_cameras(camera) if self._filmed else None
            self._require_fitting()
        except BaseException:
            self.close()
            raise
        self.observation_space = _observation_space(self.contract, self._seen)
        self.action_space: gymnasium.Space[Action] = _action_space(self.contract)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; all of it follows from ``seed``. Info: instruction, task, success.

        Raises:
            SimulationError: the environment fails, or its observation does not fit the mapping.
        """
        super().reset(seed=seed)
        drawn = int(self.np_random.integers(2**31))
        bits = _within(drawn if seed is None else seed, self.config.seed_bits)
        with self._told("a reset"), _ALONE, redirect_stdout(io.StringIO()):
            raw, info = self.foreign.reset(seed=bits, options=options)
        self._steps = self._held = 0
        phrasing = self.config.instructions[
            int(self.np_random.integers(len(self.config.instructions)))
        ]
        self._words = self._reader.words(raw, info) or phrasing
        seen = self._observe(raw, info)
        return seen, self._info(False)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Carry out one joined command.

        Raises:
            SimulationError: before any reset, for an action that is not the contract's, where
                the environment fails, or if its physics diverges.
        """
        self._require_reset()
        command = self._commander(action)
        with self._told("a step"):
            raw, reward, ended, broken_off, info = self.foreign.step(command)
        self._require_sound()
        self._steps += 1
        success = self._reader.success(raw, info, float(reward), bool(ended))
        self._held = self._held + 1 if success else 0
        terminated = bool(ended) or self._held >= self.config.hold_steps
        over = bool(broken_off) or self._steps >= self.max_steps
        seen = self._observe(raw, info)
        return seen, float(reward), terminated, over and not terminated, self._info(success)

    def render(self) -> Picture:
        """The scene, uint8[H, W, 3]: what the first camera of the mapping sees, or its own."""
        if not self._filmed:
            return np.asarray(self.foreign.render(), np.uint8)
        if self._overview is None:
            self._overview = self._open_cameras(_OVERVIEW)
        return self._overview.render(next(iter(self._filmed.values())))

    def close(self) -> None:
        """Close the environment, and give back what the cameras hold."""
        for cameras in (self._cameras, self._overview):
            if cameras is not None:
                cameras.close()
        self.foreign.close()

    def expert(self) -> Expert:
        """The scripted expert.

        Raises:
            SimulationError: ``task.expert`` names none.
            ConfigError: it cannot be imported, or not made.
        """
        target = self.config.expert
        if target is None:
            mend = "Name one: task.expert, or --expert module:Class"
            raise SimulationError(f"environment {self.config.id}", "an expert", "none", mend)
        make = import_user_object(target, "task.expert")
        try:
            expert: Expert = make(self)
        except TeamVLAError:
            raise
        except Exception as error:  # whatever somebody's expert does
            expected, got = "one that can be made with the environment", told_in_a_line(error)
            raise ConfigError(f"task.expert {target!r}", expected, got) from error
        return expert

    @property
    def instruction(self) -> str:
        """The words of this episode."""
        self._require_reset()
        return self._words

    def get_state(self) -> State:
        """Simulator, random generator, counters and the latest observation.

        Raises:
            SimulationError: ``task.state`` does not say what decides how an episode goes on.
        """
        self._require_reset()
        # Simulators may tell an observation from what they forget: it is kept as it was seen.
        kept = {f"seen.{f}": v.copy() for f, v in self._seen.items() if f not in self._filmed}
        own = {
            "counters": np.array([self._steps, self._held], np.int64),
            "instruction": np.array(self._words),
        }
        return {**own, **kept, **save(self.foreign, self._attributes())}

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Go back to what :meth:`get_state` gave, to the bit; arrays or nested lists.

        Raises:
            SimulationError: the state belongs to another environment or version.
        """
        if not self._words:
            self.reset(seed=0)
        arrays = {name: np.asarray(value) for name, value in state.items()}
        known = self.get_state()
        require_shapes(arrays, {name: value.shape for name, value in known.items()})
        restore(self.foreign, self._attributes(), arrays)
        self._steps, self._held = (int(count) for count in arrays["counters"])
        self._words = str(arrays["instruction"])
        for field in self._seen:
            if f"seen.{field}" in arrays:
                self._seen[field] = arrays[f"seen.{field}"].astype(known[f"seen.{field}"].dtype)
        return self._film(self._seen)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Let an exception of the environment be one that names it."""
        try:
            yield
        except Exception as error:  # each simulator fails in a way of its own
            said = f"{type(error).__name__}: {error}"
            raise SimulationError(f"environment {self.config.id}", what, said) from error

    def _observe(self, raw: Any, info: Mapping[str, Any]) -> Observation:
        shown = np.asarray(self.foreign.render()) if self._shown else None
        self._seen = self._reader.read(raw, info, shown)
        self._targets = {field: self._seen.pop(field) for field in self._hidden}
        return self._film(self._seen)

    def _film(self, fields: Observation) -> Observation:
        """The observation: ``fields`` and the pictures of model cameras."""
        copies = {field: value.copy() for field, value in fields.items()}
        if self._cameras is None:
            return copies
        pictures = {field: self._cameras.render(name) for field, name in self._filmed.items()}
        return {**pictures, **copies}

    def _open_cameras(self, config: PictureConfig) -> ModelCameras:
        physics = physics_of(self.foreign)
        if physics is None:
            field, camera = next(iter(self._filmed.items()))
            raise ConfigError(
                f"task.mapping.pictures.{field}",
                f"key, for {self.config.id} has no MuJoCo model",
                f"camera {camera!r}",
            )
        cameras = ModelCameras(physics, config)
        for field, camera in self._filmed.items():
            cameras.require(field, camera)
        return cameras

    def _info(self, success: bool) -> dict[str, Any]:
        told = {"success": success, "task": self.config.task_name, "instruction": self._words}
        return {**told, "targets": self._targets} if self._hidden else told

    def _attributes(self) -> tuple[str, ...]:
        if self.config.state is None:
            raise SimulationError(
                f"environment {self.config.id}",
                "task.state to name what decides how an episode goes on",
                "null",
                "Without it no state can be saved",
            )
        return self.config.state

    def _require_fitting(self) -> None:
        """ConfigError where the mapping does not fit what a reset gives."""
        try:
            self.reset(seed=0)
        except SimulationError as error:
            raise ConfigError(error.where, error.expected, error.got, error.mend) from None
        self._words = ""

    def _require_sound(self) -> None:
        physics = physics_of(self.foreign)
        if physics is not None and blown_up(physics[1]):
            raise SimulationError(
                f"environment {self.config.id}",
                "a finite state",
                "one that is not",
                "The physics diverged; check the commands that led here",
            )

    def _require_reset(self) -> None:
        if not self._words:
            raise SimulationError("environment", "a reset first", "none so far")


def _within(seed: int, bits: int) -> int:
    """The seed itself, or one of ``bits`` bits that derives from it."""
    if seed.bit_length() <= bits:
        return seed
    words = np.random.SeedSequence(seed).generate_state(4)
    whole = sum(int(word) << 32 * place for place, word in enumerate(words))
    return whole >> (128 - bits)


def _observation_space(contract: Contract, seen: Observation) -> gymnasium.Space[Any]:
    known: dict[str, gymnasium.Space[Any]] = {
        camera.field: spaces.Box(0, 255, (camera.height, camera.width, 3), np.uint8)
        for camera in contract.cameras
    }
    known |= {signal.field: _signal_space(signal) for signal in contract.signals}
    for arm in contract.arms:
        known[f"q_{arm.name}"] = spaces.Box(-np.inf, np.inf, (arm.num_joints,), np.float32)
        known[f"grip_q_{arm.name}"] = spaces.Box(0.0, 1.0, (), np.float32)
    given = {*seen, *(camera.field for camera in contract.cameras)}
    return spaces.Dict({field: space for field, space in known.items() if field in given})


def _signal_space(signal: Signal) -> gymnasium.Space[Any]:
    if signal.dtype == "bool":
        return spaces.MultiBinary(signal.shape)
    dtype = np.dtype(signal.dtype)
    low, high = signal.limits
    if dtype.kind != "f":
        least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
        low, high = int(max(low, least)), int(min(high, most))
    return spaces.Box(low, high, signal.shape, dtype.type)


def _action_space(contract: Contract) -> spaces.Box[np.float32]:
    ends: list[tuple[float, float]] = []
    for arm in contract.arms:
        ends += [*(arm.joint_limits or ((-np.inf, np.inf),) * arm.num_joints), (0.0, 1.0)]
    for signal in contract.action_signals:
        ends += [signal.limits] * signal.size
    low, high = np.array(ends, np.float32).T
    return spaces.Box(low, high, dtype=np.float32)
