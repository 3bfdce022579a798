"""Playing an environment, and comparing what it showed to the bit."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from teamvla.errors import SimulationError
from teamvla.sim.interface import Observation, RobotEnv
from teamvla.sim.testing.fields import WORDS, check_command, require_type

Moment = dict[str, Any]
Step = tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]
SEED = 20


def commands_for(env: RobotEnv, count: int) -> list[NDArray[Any]]:
    """Joined commands from anywhere in the action space; the same in each call."""
    space = copy.deepcopy(env.action_space)
    space.seed(SEED)
    return [space.sample() for _ in range(count)]


def demonstration(env: RobotEnv, steps: int, thorough: bool = False) -> list[NDArray[Any]]:
    """What the expert commands in the first steps; without one, commands from anywhere.

    ``thorough``: each command is checked.
    """
    observation, info = env.reset(seed=SEED)
    try:
        expert = env.expert()
    except SimulationError:
        return commands_for(env, steps)
    expert.reset()
    joined: list[NDArray[Any]] = []
    for _ in range(steps):
        words: dict[str, Any] = {w: info[w] for w in ("instruction", "task") if w in info}
        seen = {**observation, **words}
        before = as_json(_state_of(env)) if thorough else ""
        parts = expert.act(seen)
        joined.append(np.concatenate([np.ravel(part) for part in parts]))
        if thorough:
            check_command(env, parts, joined[-1])
            require_type("expert.phase", expert.phase, str)
            if as_json(_state_of(env)) != before:
                raise SimulationError("expert", "to look on", "a state that it changed")
        observation, _, ended, truncated, info = env.step(joined[-1])
        if ended or truncated:
            break
    return joined


def _state_of(env: RobotEnv) -> Mapping[str, Any]:
    try:
        return env.get_state()
    except SimulationError:
        return {}


def advance(env: RobotEnv, commands: Sequence[NDArray[Any]]) -> Observation:
    """Start over and go on with ``commands``, but not to the episode's end."""
    observation, _ = env.reset(seed=SEED)
    for count, command in enumerate(commands):
        observation, _, ended, truncated, _ = env.step(command)
        if ended or truncated:
            return advance(env, commands[:count])
    return observation


def play(env: RobotEnv, seed: int, commands: Sequence[NDArray[Any]]) -> list[Moment]:
    """All that an episode shows."""
    observation, info = env.reset(seed=seed)
    return [moment_of(observation, info), *go_on(env, commands)]


def taken(env: RobotEnv, commands: Sequence[NDArray[Any]]) -> Iterator[Step]:
    """What each step gives, up to the episode's end or to where the environment cannot go on."""
    with suppress(SimulationError):
        for command in commands:
            given = env.step(command)
            yield given
            if given[2] or given[3]:
                return


def go_on(env: RobotEnv, commands: Sequence[NDArray[Any]]) -> list[Moment]:
    """All that the next steps show; that it cannot go on must repeat itself, too."""
    moments: list[Moment] = []
    for command in commands:
        try:
            observation, reward, ended, truncated, info = env.step(command)
        except SimulationError as error:
            return [*moments, {"error": str(error)}]
        told = {"reward": float(reward), "terminated": ended, "truncated": truncated}
        moments.append(moment_of(observation, info) | told)
        if ended or truncated:
            break
    return moments


def moment_of(observation: Observation, info: Mapping[str, Any] | None = None) -> Moment:
    """What can be compared; copies, for what an environment gives may change later."""
    told = (info or {}).get("targets", {})
    arrays = {name: np.asarray(value) for name, value in {**observation, **told}.items()}
    seen = {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in arrays.items()}
    return {**seen, **{word: (info or {}).get(word) for word in WORDS}}


def require_same(where: str, one: list[Moment], two: list[Moment]) -> None:
    for step, (left, right) in enumerate(zip(one, two, strict=False)):
        told = WORDS if all(left.get(w) is None or right.get(w) is None for w in WORDS) else ()
        names = sorted({*left, *right} - {*told})
        if differing := [name for name in names if left.get(name) != right.get(name)]:
            said = f"others in {', '.join(differing)} at step {step}"
            raise SimulationError(where, "the same bits", said)
    if len(one) != len(two):
        raise SimulationError(where, f"{len(one)} steps", str(len(two)))


def as_json(state: Mapping[str, Any]) -> str:
    lists = {name: np.asarray(value).tolist() for name, value in state.items()}
    try:
        return json.dumps(lists, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SimulationError("get_state", "arrays of finite numbers", str(error)) from None
