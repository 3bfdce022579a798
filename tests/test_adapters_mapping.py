"""Foreign numbers become fields, a command an action; what does not fit is told."""

from __future__ import annotations

import copy
import logging
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from pydantic import ValidationError

from teamvla.errors import (
    ConfigError,
    MissingDependencyError,
    RegistryError,
    SimulationError,
)
from teamvla.sim.adapters.ids import CONFIGS, config_for
from teamvla.sim.adapters.mapping import split_key
from teamvla.sim.adapters.task import GymnasiumConfig, GymnasiumTask
from teamvla.sim.testing import find_faults


class Workcell(gymnasium.Env[Any, Any]):
    """Remembers its last action, and shows all that a mapping can read."""

    action_space: Any = spaces.Box(-5.0, 5.0, (4,), np.float64)
    observation_space: Any = spaces.Dict()

    def __init__(self, **changes: Any) -> None:
        self.changes = changes
        self.last: Any = None
        self.angle = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if self.changes.get("fails_at_reset"):
            raise OSError("no camera")
        self.angle = float(self.np_random.uniform())
        self.last = np.zeros(4)
        return self._seen(), {"goal": "left", "done": False}

    def step(self, action: Any) -> Any:
        self.last = action
        if self.changes.get("fails"):
            raise RuntimeError("the motor is on fire")
        reward = float(np.sum(np.asarray(action)[:1]))
        return self._seen(), reward, reward > 4, False, {"goal": "left", "done": reward > 2}

    def _seen(self) -> Any:
        top = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
        seen = {
            "robot": {"joints": np.array([self.angle, 90.0, 0.5]), "speed": np.array([1.0])},
            "pixels": {"top": top, "front": (top / 255.0).transpose(2, 0, 1)},
            "mission": "stack the blocks",
            "mode": 2,
        }
        return {**seen, **self.changes.get("seen", {})}


class Switch(gymnasium.Env[Any, Any]):
    """Discrete actions; says which one it was given."""

    observation_space: Any = spaces.Discrete(9)
    action_space: Any = spaces.Discrete(6)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: Any) -> Any:
        return int(action), 0.0, False, False, {}


gymnasium.register("tests/Workcell-v0", Workcell, max_episode_steps=2)
gymnasium.register("tests/Switch-v0", Switch)

TASK: dict[str, Any] = {
    "name": "gymnasium",
    "id": "tests/Workcell-v0",
    "max_steps": 4,
    "hold_steps": 2,
    "state": ["angle", "last"],
    "camera": {"height": 8, "width": 8},
    "mapping": {
        "embodiment": "single_arm",
        "arms": {
            "a": {
                "joints": ["shoulder", "elbow"],
                "q": {"key": "robot.joints[0:2]", "scale": [1, 0.0174532925], "offset": 0.5},
                "grip_q": {"key": "robot.joints[2]", "scale": -1, "offset": 1},
            }
        },
        "pictures": {
            "rgb_top": {"key": "pixels.top"},
            "rgb_front": {"key": "pixels.front", "scale": 255, "layout": "chw"},
        },
        "signals": {
            "speed": "robot.speed",
            "mode": {"key": "mode", "dtype": "int64", "choices": ["idle", "slow", "fast"]},
            "goal_mode": {"key": "mode", "dtype": "int64", "role": "target"},
            "lamp": {"role": "action", "low": 0, "high": 1},
        },
        "action": [
            {"command": "grip_a", "scale": -2, "offset": 1, "clip": [-1, 1]},
            {"command": "action_a", "scale": 10},
            {"command": "lamp"},
        ],
        "success": {"key": "info:done"},
        "instruction": "mission",
    },
}
TASK["mapping"]["signals"]["speed"] = {"key": "robot.speed", "shape": [1]}


def config(**changes: Any) -> GymnasiumConfig:
    """The settings above; ``mapping__arms__a__q="x"`` changes one of them."""
    data = copy.deepcopy(TASK)
    for path, value in changes.items():
        *inner, last = path.split("__")
        place: Any = data
        for step in inner:
            place = place[int(step) if step.isdigit() else step]
        place[int(last) if last.isdigit() else last] = value
    return GymnasiumConfig.model_validate(data)


def make(**changes: Any) -> Any:
    return GymnasiumTask.make(config(**changes))


def test_an_observation_becomes_the_fields_of_a_step():
    env = make()
    seen, info = env.reset(seed=3)
    angle = env.foreign.unwrapped.angle
    np.testing.assert_allclose(seen["q_a"], [angle + 0.5, np.pi / 2 + 0.5], rtol=1e-6)
    assert seen["q_a"].dtype == np.float32
    assert seen["grip_q_a"] == np.float32(0.5)
    assert seen["grip_q_a"].shape == ()
    assert seen["speed"].tolist() == [1.0]
    assert seen["mode"] == 2
    assert info == {
        "success": False,
        "task": "workcell_v0",
        "instruction": "stack the blocks",
        "targets": {"goal_mode": np.array(2)},
    }
    assert "goal_mode" not in seen


def test_pictures_are_brought_to_one_size_whatever_their_layout():
    seen, _ = make().reset(seed=0)
    picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    assert seen["rgb_top"].shape == (8, 8, 3)
    block = picture[2:4, 4:6].astype(float).mean(axis=(0, 1))
    np.testing.assert_allclose(seen["rgb_top"][1, 2], block, atol=1)
    np.testing.assert_array_equal(seen["rgb_front"], seen["rgb_top"])


def test_a_command_becomes_the_action_in_its_order_and_units():
    env = make()
    env.reset(seed=0)
    env.step(np.array([0.1, 0.2, 0.75, 1.0], np.float32))
    np.testing.assert_allclose(env.foreign.unwrapped.last, [-0.5, 1.0, 2.0, 1.0], rtol=1e-6)
    env.step(np.array([0.1, 0.2, 7.0, 1.0], np.float32))
    assert env.foreign.unwrapped.last[0] == -1.0


def test_discrete_choices_have_the_environments_numbers():
    moves = {"role": "action", "dtype": "int64", "choices": ["off", "on", "blink"]}
    env = GymnasiumTask.make(
        GymnasiumConfig(
            id="tests/Switch-v0",
            mapping={
                "signals": {"light": {"key": ".", "dtype": "int64"}, "move": moves},
                "action": [{"command": "move", "values": [4, 0, 5]}],
                "success": {"terminated": True},
            },
        )
    )
    env.reset(seed=0)
    assert [int(env.step(np.array([n]))[0]["light"]) for n in (0, 1, 2)] == [4, 0, 5]
    with pytest.raises(SimulationError, match=r"a choice in 0\.\.2, got \[3\]"):
        env.step(np.array([3]))


def test_success_must_hold_and_ends_the_episode():
    env = make(mapping__action__0={"command": "grip_a", "scale": 3})
    env.reset(seed=0)
    ends = []
    for grip in (1.0, 0.0, 1.0, 1.0):
        *_, ended, truncated, info = env.step(np.array([0, 0, grip, 0], np.float32))
        ends.append((info["success"], ended, truncated))
    assert [success for success, _, _ in ends] == [True, False, True, True]
    assert [ended for _, ended, _ in ends] == [False, False, False, True]
    assert not any(truncated for _, _, truncated in ends)


def test_the_limit_of_steps_is_the_tasks_own():
    env = make()
    env.reset(seed=0)
    ends = [env.step(np.zeros(4, np.float32))[3] for _ in range(4)]
    assert ends == [False, False, False, True]


@pytest.mark.parametrize(
    ("rule", "ends"),
    [({"reward": 2.5}, [True, False]), ({"terminated": True}, [True, True])],
)
def test_success_by_reward_and_by_the_end(rule, ends):
    env = make(
        mapping__success=rule, mapping__action__0={"command": "grip_a", "scale": 5}, hold_steps=1
    )
    env.reset(seed=0)
    *_, ended, _, info = env.step(np.array([0, 0, 1.0, 0], np.float32))
    assert (info["success"], ended) == (True, True)


def test_phrasings_are_drawn_where_the_environment_has_no_words():
    env = make(mapping__instruction=None, instructions=["one", "two", "three"])
    drawn = {env.reset(seed=seed)[1]["instruction"] for seed in range(20)}
    assert drawn == {"one", "two", "three"}
    assert env.reset(seed=4)[1]["instruction"] == env.reset(seed=4)[1]["instruction"]


def test_it_keeps_the_rules_of_every_environment():
    assert find_faults(make, steps=6) == []


def test_a_seed_of_many_bits_is_folded_for_those_that_take_few():
    env = make(seed_bits=32)
    first = env.reset(seed=5)[0]["q_a"]
    far = env.reset(seed=5 << 90)[0]["q_a"]
    assert far[0] != first[0]
    assert make().reset(seed=5)[0]["q_a"][0] == first[0]


# What does not fit.

UNFIT = [
    (
        {"mapping__arms__a__q": "robot.joint[0:2]"},
        "task.mapping.arms.a.q: key 'robot.joint[0:2]': expected a key that is there, got none "
        "like it. Did you mean 'robot.joints'? Known: robot.joints, robot.speed",
    ),
    (
        {"mapping__arms__a__q": "robot.joints[0:3]"},
        "task.mapping.arms.a.q: key 'robot.joints[0:3]': expected float32[2], got float64[3]. "
        "Let the mapping say what the environment gives",
    ),
    (
        {"mapping__arms__a__q": "robot.joints[2:4]"},
        "task.mapping.arms.a.q: key 'robot.joints[2:4]': expected a vector of 4 or more entries, "
        "got float64[3]. Let the mapping say what the environment gives",
    ),
    (
        {"mapping__arms__a__q": "robot"},
        "task.mapping.arms.a.q: key 'robot': expected a value, got a dictionary with joints, "
        "speed. Let the mapping say what the environment gives",
    ),
    (
        {"mapping__arms__a__q": "mode.x"},
        "task.mapping.arms.a.q: key 'mode.x': expected keys inside 'mode', got int64[]. "
        "Let the mapping say what the environment gives",
    ),
    (
        {"mapping__arms__a__grip_q": "mission"},
        "task.mapping.arms.a.grip_q: key 'mission': expected float32[], got text. "
        "Let the mapping say what the environment gives",
    ),
    (
        {"mapping__arms__a__q": {"key": "robot.joints[0:2]", "scale": [1, 2, 3]}},
        "task.mapping.arms.a.q: expected scale and offset for 2 entries, got 3 and 1",
    ),
    (
        {"mapping__pictures__rgb_top": {"key": "robot.joints"}},
        "task.mapping.pictures.rgb_top: key 'robot.joints': expected a picture [H,W,3], "
        "got float64[3]. Let the mapping say what the environment gives",
    ),
    (
        {"mapping__pictures__rgb_front": {"key": "pixels.front", "layout": "chw", "scale": 300}},
        "task.mapping.pictures.rgb_front: key 'pixels.front': expected brightness in 0..255, got "
        "0..300 with scale 300. Let the mapping say what the environment gives",
    ),
    (
        {"mapping__signals__mode": {"key": "mode", "dtype": "int64", "choices": ["on", "off"]}},
        "task.mapping.signals.mode: key 'mode': expected 0..1, got 2..2. "
        "Let the mapping say what the environment gives",
    ),
    (
        {"mapping__instruction": "info:words"},
        "task.mapping.instruction: key 'info:words': expected a key that is there, got none like "
        "it. Known: done, goal",
    ),
    (
        {"mapping__pictures__rgb_top": {"camera": "top"}},
        "task.mapping.pictures.rgb_top: expected key, for tests/Workcell-v0 has no MuJoCo model, "
        "got camera 'top'",
    ),
    (
        {"mapping__action": [{"command": "action_a"}, {"command": "grip_a"}]},
        "task.mapping.action: expected 4 entries for Box(-5.0, 5.0, (4,), float64), got 3 from "
        "action_a, grip_a",
    ),
    (
        {"mapping__action__0": {"command": "grip_b"}},
        "task.mapping.action[0]: expected a field of the command, got 'grip_b'. "
        "Did you mean 'grip_a'? Known: action_a, grip_a, lamp",
    ),
    (
        {"mapping__action__1": {"command": "action_a[0:3]"}},
        "task.mapping.action[1]: expected entries of the 2 of action_a, got 'action_a[0:3]'",
    ),
    (
        {"mapping__action__1": {"command": "action_a", "scale": [1, 2, 3]}},
        "task.mapping.action[1].scale: expected one number or 2, got 3",
    ),
    (
        {"wrap": "nowhere:wrap"},
        "task.wrap 'nowhere:wrap': expected a class or function that can be imported, "
        "got ModuleNotFoundError: No module named 'nowhere'",
    ),
    (
        {"wrap": "os:getpid"},
        "task.wrap 'os:getpid': expected an environment, made with the environment, "
        "got TypeError: posix.getpid() takes no arguments (1 given)",
    ),
    (
        {"wrap": "builtins:str"},
        "task.wrap 'builtins:str': expected an environment, made with the environment, got a str",
    ),
    (
        {"kwargs": {"fails_at_reset": True}},
        "environment tests/Workcell-v0: expected a reset, got OSError: no camera",
    ),
]


@pytest.mark.parametrize(("changes", "line"), UNFIT)
def test_what_does_not_fit_is_told_when_the_environment_is_made(changes, line):
    with pytest.raises(ConfigError) as caught:
        make(**changes)
    assert str(caught.value) == line


@pytest.mark.parametrize(
    "changes",
    [{"wrap": "os:getpid"}, {"kwargs": {"fails_at_reset": True}}, UNFIT[0][0]],
)
def test_what_cannot_be_used_is_closed(changes, monkeypatch):
    closed = []
    monkeypatch.setattr(Workcell, "close", lambda env: closed.append(env))
    with pytest.raises(ConfigError):
        make(**changes)
    assert len(closed) == 1


def test_an_expert_that_cannot_be_made_is_told():
    with pytest.raises(ConfigError, match=r"task.expert 'os:getpid': .*made with the environment"):
        make(expert="os:getpid").expert()


def test_divergence_is_told_once_and_not_by_dm_control_too(caplog):
    make()
    absl = logging.getLogger("absl")
    absl.warning("Nan, Inf or huge value in QACC at DOF 8. The simulation is unstable.")
    absl.warning("Something else")
    assert [record.message for record in caplog.records] == ["Something else"]


def test_what_fits_no_longer_is_told_at_that_step():
    env = make()
    env.reset(seed=0)
    env.foreign.unwrapped.changes["seen"] = {"robot": {"joints": np.full(3, np.nan)}}
    with pytest.raises(SimulationError, match=r"arms\.a\.q: .*expected finite numbers"):
        env.step(np.zeros(4, np.float32))


def test_an_environment_that_fails_is_one_clear_error():
    env = make(kwargs={"fails": True})
    env.reset(seed=0)
    with pytest.raises(SimulationError, match="got RuntimeError: the motor is on fire"):
        env.step(np.zeros(4, np.float32))


def test_a_command_that_is_no_number_is_named():
    env = make()
    env.reset(seed=0)
    with pytest.raises(SimulationError, match="action, grip_a: expected a finite number, got nan"):
        env.step(np.array([0, 0, np.nan, 0], np.float32))


def test_without_attributes_to_save_there_is_no_state():
    env = make(state=None)
    env.reset(seed=0)
    with pytest.raises(SimulationError, match=r"expected task\.state to name"):
        env.get_state()
    env = make(state=["angel"])
    env.reset(seed=0)
    with pytest.raises(SimulationError, match="it has no attribute 'angel'"):
        env.get_state()


def test_a_state_of_another_environment_is_refused():
    env = make()
    env.reset(seed=0)
    state = env.get_state()
    del state["env.angle"]
    with pytest.raises(SimulationError, match="got others in env"):
        env.set_state(state)


def test_without_an_expert_it_says_how_to_name_one():
    with pytest.raises(SimulationError, match="--expert module:Class"):
        make().expert()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mapping__arms__a__q": "robot["}, "is no key such as"),
        ({"mapping__arms__a__limits": [[0, 1]]}, "1 limits for 2 joints"),
        ({"mapping__embodiment": "two_arm"}, "embodiment two_arm has arms: 2, not 1"),
        ({"mapping__pictures__rgb_top": {}}, "give either key or camera"),
        ({"mapping__signals__lamp": {"role": "action", "key": "mode"}}, "actions have none"),
        ({"mapping__signals__speed": {"key": "x", "shape": [-1]}}, "shapes are fixed here"),
        ({"mapping__success": {}}, "give one of key, reward and terminated"),
        ({"mapping__action__0__clip": [1, -1]}, "the first is not smaller"),
        ({"mapping__action__0__command": "info:x"}, "is no field of a command"),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_anything_is_made(changes, said):
    with pytest.raises(ValidationError, match=said):
        config(**changes)


def test_an_unknown_id_is_answered_with_the_nearest():
    with pytest.raises(RegistryError) as caught:
        make(id="tests/Workcel-v0")
    assert str(caught.value) == (
        "environment 'tests/Workcel-v0': expected the id of a Gymnasium environment. Did "
        "you mean 'tests/Workcell-v0'? task.module names what registers it"
    )


@pytest.mark.parametrize("module", ["gym_aloha", "minigrid", "gymnasium_robotics"])
def test_a_package_that_is_not_installed_is_told_with_its_extra(module, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    extra = {"gym_aloha": "aloha", "gymnasium_robotics": "robotics"}.get(module, module)
    with pytest.raises(MissingDependencyError) as caught:
        make(module=module)
    assert str(caught.value) == (
        f"{module}: expected the package to be installed, got nothing to import. "
        f"Install it with: pip install 'teamvla[{extra}]'."
    )


def test_a_module_of_ones_own_that_is_missing_is_named():
    with pytest.raises(MissingDependencyError, match="my_envs: expected the package"):
        make(module="my_envs")


def test_arguments_that_it_does_not_take_are_a_matter_of_settings():
    with pytest.raises(ConfigError, match=r"Correct task\.kwargs"):
        GymnasiumTask.make(config(id="tests/Switch-v0", kwargs={"colour": "red"}))


def test_every_id_has_its_configuration_and_others_the_nearest():
    assert config_for("gym_aloha/AlohaInsertion-v0") == "aloha_insertion"
    assert config_for("teamvla/TwoArmLift-v0") == "lift"
    assert len(set(CONFIGS.values())) == len(CONFIGS)
    with pytest.raises(RegistryError, match="Did you mean 'MiniGrid-Empty-8x8-v0'"):
        config_for("MiniGrid-Empty-88-v0")


@pytest.mark.parametrize(
    ("key", "found"),
    [
        (".", (False, (), None)),
        ("a.b_c[2]", (False, ("a", "b_c"), 2)),
        (".[0:3]", (False, (), slice(0, 3))),
        ("info:is_success", (True, ("is_success",), None)),
    ],
)
def test_a_key_is_taken_apart(key, found):
    assert split_key(key) == found
