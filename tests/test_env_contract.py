"""The rules of environments: every registered one keeps them, and the checks find faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from teamvla.config import Project
from teamvla.config.project import shipped_configs
from teamvla.contract import Arm, Camera, Contract, Signal
from teamvla.errors import MissingDependencyError, SimulationError
from teamvla.sim import make_env
from teamvla.sim.interface import Observation, RobotEnv, State
from teamvla.sim.tasks import TASKS, TaskConfig
from teamvla.sim.testing import CHECKS, check_environment, find_faults

F32 = np.float32
TOY = Contract(
    embodiment="single_arm",
    control_hz=10,
    arms=(Arm(name="a", joints=("shoulder", "elbow")),),
    cameras=(Camera(field="rgb", height=4, width=5),),
    signals=(
        Signal(field="points", shape=(-1, 2), unit="m", high=9),
        Signal(field="speed", unit="m/s", low=0),
        Signal(field="wheel", role="action", shape=(2,), low=-1, high=1),
        Signal(field="way", role="target", shape=(2,), unit="m"),
    ),
)
ROOM = 6


class ToyExpert:
    """Pushes towards the drawn goal."""

    def __init__(self, env: Toy) -> None:
        self.env, self.phase = env, ""

    def reset(self) -> None:
        self.phase = ""

    def act(self, obs: Mapping[str, Any]) -> Sequence[np.ndarray]:
        self.phase = "push"
        way = np.clip(self.env.goal - self.env.place, -1, 1).astype(F32)
        return [np.array([*way, 0.5], F32), way / 2]


class Toy(RobotEnv):
    """A point that is pushed about; it keeps all rules."""

    contract, max_steps, render_mode = TOY, 12, None

    def __init__(self) -> None:
        self.action_space = Box(-1, 1, (5,), F32)
        self.observation_space = Dict({
            "rgb": Box(0, 255, (4, 5, 3), np.uint8),
            "q_a": Box(-np.inf, np.inf, (2,), F32),
            "points": Box(-100, 100, (ROOM, 2), F32),
            "points_mask": Box(0, 1, (ROOM,), bool),
            "speed": Box(0, np.inf, (), F32),
        })  # fmt: skip
        self.place = self.goal = np.zeros(2)
        self.steps = -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-3, 3, (2, 2))
        self.steps = 0
        return self.observe(), self.info()

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        values = self.checked(np.asarray(action, np.float64))
        self.place = self.place + values[:2] + values[3:]
        self.steps += 1
        ended, over = self.ends()
        return self.observe(), -self.distance, ended, over, self.info()

    def checked(self, values: np.ndarray) -> np.ndarray:
        if self.steps < 0 or values.shape != (5,) or not np.isfinite(values).all():
            raise SimulationError("action", "5 finite numbers after a reset", str(values))
        return values

    def ends(self) -> tuple[bool, bool]:
        return False, self.steps >= self.max_steps

    @property
    def distance(self) -> float:
        return float(np.abs(self.goal - self.place).sum())

    def info(self) -> dict[str, Any]:
        way = {"way": (self.goal - self.place).astype(F32)}
        words = {"task": "toy", "instruction": self.instruction}
        return {"success": self.distance < 0.1, "targets": way, **words}

    def observe(self) -> Observation:
        mask = np.arange(ROOM) < self.steps % ROOM
        points = np.where(mask[:, None], np.clip(self.place, -9, 9), 50).astype(F32)
        return {
            "rgb": np.full((4, 5, 3), self.steps, np.uint8),
            "q_a": self.place.astype(F32),
            "points": points,
            "points_mask": mask,
            "speed": np.array(self.distance, F32),
        }

    def expert(self) -> Any:
        return ToyExpert(self)

    @property
    def instruction(self) -> str:
        return f"go {'left' if self.goal[0] < 0 else 'right'}"

    def get_state(self) -> State:
        return {
            "place": self.place.copy(),
            "goal": self.goal.copy(),
            "steps": np.array([self.steps]),
        }

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        self.place, self.goal = (np.array(state[name], float) for name in ("place", "goal"))
        self.steps = int(state["steps"][0])
        return self.observe()


# Every environment that is registered.


def environments() -> list[str]:
    """Tasks with their defaults; for other people's what ships as a configuration."""
    told = {name: Project.load(name).source.data.get("task", {}) for name in shipped_configs()}
    foreign = [name for name, task in told.items() if task.get("name") == "gymnasium"]
    # Other tests may have entered environments of theirs.
    own = [name for name in TASKS if TASKS.get(name).__module__.startswith("teamvla.")]
    return [*(name for name in own if name != "gymnasium"), *foreign]


def small(config: TaskConfig) -> TaskConfig:
    """The same with small pictures and a short episode, so that many checks take little time."""
    data = config.model_dump(mode="json") | {"max_steps": 40}
    if isinstance(data.get("camera"), dict):
        data["camera"] |= {"height": 16, "width": 24}
    return type(config).model_validate(data)


def made(name: str) -> RobotEnv:
    foreign = name not in TASKS
    config = (
        Project.load(name).section("task", TaskConfig)
        if foreign
        else TASKS.get(name).Config(name=name)
    )
    return make_env(small(config))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", environments())
def test_every_environment_keeps_the_rules(name: str, check: Any) -> None:
    try:
        made(name).close()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    check(partial(made, name), 8)


# The checks find what is wrong.


def test_an_environment_that_keeps_the_rules_passes() -> None:
    assert find_faults(Toy) == []
    check_environment(Toy, steps=5)
    for check in CHECKS:
        check(Toy)
        assert check.__doc__ is not None


def test_one_call_tells_everything() -> None:
    class Broken(Toy):
        max_steps = 5

        def ends(self) -> tuple[bool, bool]:
            return False, False

        def checked(self, values: np.ndarray) -> np.ndarray:
            return values[:5]

    with pytest.raises(SimulationError) as caught:
        check_environment(Broken)
    lines = str(caught.value).split("\n")
    assert lines[0] == "2 checks failed:"
    assert lines[1:] == [
        "check_refusals: a step before any reset: expected SimulationError, "
        "got a step as if nothing were wrong",
        "check_ends: truncated: expected an end at max_steps, got none after 5 steps",
    ]


class NoSeed(Toy):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        gymnasium.Env.reset(self)
        self.place, self.goal = self.np_random.uniform(-3, 3, (2, 2))
        self.steps = 0
        return self.observe(), self.info()


class FewerNumbers(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = Box(-1, 1, (4,), F32)


class WideWheel(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.action_space = Box(-2, 2, (5,), F32)


class NoDict(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = Box(0, 1)  # type: ignore[assignment]


def showing(**changes: Any) -> type[Toy]:
    """A toy with other fields in its observations, and their spaces; ``None`` leaves one out."""

    class Showing(Toy):
        def __init__(self) -> None:
            super().__init__()
            spaces = dict(self.observation_space.spaces)  # type: ignore[attr-defined]
            for name, value in changes.items():
                spaces.pop(name, None)
                if value is not None:
                    high = 1 if value.dtype == bool else 255
                    spaces[name] = Box(0, high, value.shape, value.dtype.type)
            self.observation_space = Dict(spaces)

        def observe(self) -> Observation:
            shown = {**super().observe(), **changes}
            return {name: value for name, value in shown.items() if value is not None}

    return Showing


class NotInItsSpace(Toy):
    def observe(self) -> Observation:
        return super().observe() | {"speed": np.array(-1, F32)}


class MoreThanItsSpace(Toy):
    def observe(self) -> Observation:
        return super().observe() | {"extra": np.zeros(2, F32)}


def telling(**changes: Any) -> type[Toy]:
    """A toy with other entries in its info; ``None`` leaves one out."""

    class Telling(Toy):
        def info(self) -> dict[str, Any]:
            told = {**super().info(), **changes}
            return {name: value for name, value in told.items() if value is not None}

    return Telling


class NoReward(Toy):
    def step(self, action: Any) -> Any:
        observation, _, ended, over, info = super().step(action)
        return observation, float("nan"), ended, over, info


class NumPyFlags(Toy):
    def ends(self) -> Any:
        return np.False_, np.False_


class Remembers(Toy):
    """Something of the episode before is left."""

    left = 0.0

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = self.place + self.left
        self.left += 1e-9
        return self.observe(), self.info()

    def observe(self) -> Observation:
        return super().observe() | {"speed": np.array(1e9 * self.left, F32)}


class OneOfMany(Toy):
    """Every instance is another."""

    numbers = count()

    def __init__(self) -> None:
        super().__init__()
        self.number = next(self.numbers)

    def observe(self) -> Observation:
        return super().observe() | {"rgb": np.full((4, 5, 3), self.number % 256, np.uint8)}


class Forgets(Toy):
    """The number of steps is no part of its state."""

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        super().set_state({**state, "steps": [0]})
        return self.observe()


class ForgetsForLater(Toy):
    """What is forgotten shows in the next step only."""

    drift = 0.0

    def step(self, action: Any) -> Any:
        self.drift = self.drift + 0.1
        self.place = self.place + self.drift
        return super().step(action)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.drift = 0.0
        return super().reset(seed=seed)


class LiveState(Toy):
    def step(self, action: Any) -> Any:
        before = self.place
        given = super().step(action)
        before[:] = self.place
        self.place = before
        return given

    def get_state(self) -> State:
        return super().get_state() | {"place": self.place}


class StateWithNaN(Toy):
    def get_state(self) -> State:
        return super().get_state() | {"nothing": np.array([np.nan])}


class ArraysOnly(Toy):
    def set_state(self, state: Mapping[str, Any]) -> Observation:
        return super().set_state({name: value.astype(float) for name, value in state.items()})


class TakesNaN(Toy):
    def checked(self, values: np.ndarray) -> np.ndarray:
        return super().checked(np.nan_to_num(values))


class TakesAnyLength(Toy):
    def checked(self, values: np.ndarray) -> np.ndarray:
        return super().checked(np.resize(values, 5))


class NeedsNoReset(Toy):
    def checked(self, values: np.ndarray) -> np.ndarray:
        self.steps = max(self.steps, 0)
        return super().checked(values)


def led_by(act: Any) -> type[Toy]:
    """A toy whose expert acts so: a function of the expert and what it would do."""

    class Led(ToyExpert):
        def act(self, obs: Mapping[str, Any]) -> Any:
            return act(self, super().act(obs))

    class Leading(Toy):
        def expert(self) -> Any:
            return Led(self)

    return Leading


def pushing(expert: ToyExpert, parts: Any) -> Any:
    expert.env.place = expert.env.place + 0.25
    return parts


def moody(expert: ToyExpert, parts: Any) -> Any:
    return [parts[0], np.full(2, (id(expert) >> 4) % 1000 / 1000 - 0.5, F32)]


def speechless(expert: ToyExpert, parts: Any) -> Any:
    expert.phase = None  # type: ignore[assignment]
    return parts


class BothFlags(Toy):
    def ends(self) -> tuple[bool, bool]:
        return self.steps >= 5, self.steps >= 5


class NoEnd(Toy):
    def ends(self) -> tuple[bool, bool]:
        return False, False


FAULTS: list[tuple[str, type[Toy], str]] = [
    ("check_gymnasium", NoSeed, "seed"),
    ("check_spaces", FewerNumbers, "action_space: expected a Box of 5 numbers"),
    ("check_spaces", WideWheel, r"action_space: wheel: expected -1 .. 1, got -2 .. 2"),
    ("check_spaces", NoDict, "observation_space: expected a Dict"),
    ("check_observations", NotInItsSpace, "observation speed at step 0: .* values outside"),
    ("check_observations", MoreThanItsSpace, r"besides \['extra'\]"),
    ("check_observations", showing(rgb=None), "observation rgb: expected .*, got nothing"),
    ("check_observations", showing(rgb=np.zeros((5, 4, 3), np.uint8)), r"uint8\[4, 5, 3\]"),
    ("check_observations", showing(q_a=np.zeros(2)), "observation q_a: .* got float64"),
    ("check_observations", showing(speed=None), "observation speed: expected float32"),
    ("check_observations", showing(points_mask=None), "observation points_mask: expected bool"),
    ("check_observations", showing(points_mask=np.ones(ROOM, bool)), "observation points: exp"),
    ("check_observations", showing(points=np.zeros((ROOM, 3), F32)), "observation points: exp"),
    ("check_observations", showing(grip_a=np.zeros((), F32)), r"\['grip_a'\]"),
    ("check_observations", showing(wheel=np.zeros(2, F32)), r"\['wheel'\]"),
    ("check_info", telling(success=None), "info: expected success"),
    ("check_info", telling(success=np.True_), "info success: expected bool"),
    ("check_info", telling(task=3), "info task: expected str"),
    ("check_info", telling(instruction="go up"), "instruction: expected 'go up'"),
    ("check_info", telling(targets=None), r"info targets: expected the fields \['way'\]"),
    ("check_info", telling(targets={"way": np.zeros(3, F32)}), "info targets: way: expected"),
    ("check_info", telling(targets={"way": np.full(2, np.nan, F32)}), "info targets: way: exp"),
    ("check_observations", showing(way=np.zeros(2, F32)), r"\['way'\]"),
    ("check_info", NoReward, "reward: expected a finite number"),
    ("check_info", NumPyFlags, "terminated: expected bool"),
    ("check_repeats", Remembers, "second episode of the same seed: .* others in speed at step 0"),
    ("check_fresh", OneOfMany, "fresh environment: .* others in rgb at step 0"),
    ("check_state", Forgets, "set_state: expected the same bits, got others in points"),
    ("check_state", ForgetsForLater, "set_state, going on: .* at step 0"),
    ("check_state", LiveState, "get_state: expected a copy"),
    ("check_state", StateWithNaN, "get_state: expected arrays of finite numbers"),
    ("check_state", ArraysOnly, "astype"),
    ("check_refusals", TakesNaN, "an action with nan at .: expected SimulationError"),
    ("check_refusals", TakesAnyLength, "an action that is too short: expected"),
    ("check_refusals", NeedsNoReset, "a step before any reset: expected"),
    ("check_expert", led_by(lambda _, parts: parts[:1]), r"command: expected parts of \[3, 2\]"),
    ("check_expert", led_by(lambda _, p: [p[0] * 3, p[1]]), "expert: expected a command in Box"),
    ("check_expert", led_by(lambda _, p: [p[0] * np.nan, p[1]]), "expert: expected finite"),
    ("check_expert", led_by(pushing), "expert: expected to look on"),
    ("check_expert", led_by(moody), "expert: expected the same commands"),
    ("check_expert", led_by(speechless), "expert.phase: expected str"),
    ("check_ends", NoEnd, "truncated: expected an end at max_steps, got none after 12 steps"),
    ("check_ends", BothFlags, "truncated: expected False where terminated is True"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "said"), FAULTS, ids=[f"{name}-{at}" for at, (name, *_) in enumerate(FAULTS)]
)
def test_a_check_finds_what_breaks_its_rule(name: str, kind: type[Toy], said: str) -> None:
    check = next(check for check in CHECKS if check.__name__ == name)
    with pytest.raises(Exception, match=said):
        check(kind)
    assert [fault.split(":")[0] for fault in find_faults(kind, checks=[check])] == [name]


def test_every_check_has_an_environment_that_it_refuses() -> None:
    assert {name for name, *_ in FAULTS} == {check.__name__ for check in CHECKS}


def test_without_expert_and_state_an_environment_passes() -> None:
    class Plain(Toy):
        def expert(self) -> Any:
            raise SimulationError("expert", "one", "none")

        def get_state(self) -> State:
            raise SimulationError("state", "one", "none")

    assert find_faults(Plain) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", environments())
def test_every_environment_keeps_the_rules_for_long(name: str) -> None:
    try:
        assert find_faults(partial(made, name), steps=60) == []
    except MissingDependencyError as error:
        pytest.skip(str(error))
