"""Every check is a function of what makes the environment and of how many steps it takes."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from teamvla.errors import ContractError, SimulationError
from teamvla.sim.interface import RobotEnv
from teamvla.sim.testing.episodes import (
    SEED,
    advance,
    as_json,
    commands_for,
    demonstration,
    go_on,
    moment_of,
    play,
    require_same,
    taken,
)
from teamvla.sim.testing.fields import check_bounds, check_observation, check_words, require_type

LOG = logging.getLogger(__name__)
STEPS = 20
"""How many steps a check takes, unless it is told."""

Make = Callable[[], RobotEnv]
Check = Callable[..., None]


def check_environment(make: Make, *, steps: int = STEPS, checks: Sequence[Check] = ()) -> None:
    """Run all checks.

    Args:
        make: makes the environment.
        steps: that each of them takes; the more, the more of an episode is seen.
        checks: those to run; all of :data:`CHECKS` by default.

    Raises:
        SimulationError: one line for each check that found something.
    """
    if faults := find_faults(make, steps=steps, checks=checks):
        raise SimulationError("\n".join([f"{len(faults)} checks failed:", *faults]))


def find_faults(make: Make, *, steps: int = STEPS, checks: Sequence[Check] = ()) -> list[str]:
    """What :func:`check_environment` would say, one line per check; empty if all is well."""
    faults = []
    for check in checks or CHECKS:
        try:
            check(make, steps)
        except Exception as error:  # whatever a stranger's environment raises is a finding
            LOG.debug("%s", check.__name__, exc_info=True)
            told = isinstance(error, SimulationError | ContractError)
            faults.append(f"{check.__name__}: {error if told else repr(error)}")
    return faults


def check_gymnasium(make: Make, steps: int = STEPS) -> None:
    """Gymnasium's own checker is satisfied; what it merely advises is left aside."""
    from gymnasium.utils.env_checker import check_env

    with closing(make()) as env, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check_env(env, skip_render_check=env.render_mode is None)


def check_spaces(make: Make, steps: int = STEPS) -> None:
    """The action space takes the contract's joined command; observations are fields by name."""
    with closing(make()) as env:
        space: Any = env.action_space
        seen: Any = env.observation_space
        dim = env.contract.action_dim
        if not isinstance(space, gymnasium.spaces.Box) or space.shape != (dim,):
            raise SimulationError("action_space", f"a Box of {dim} numbers", str(space))
        check_bounds(env.contract, space)
        if not isinstance(seen, gymnasium.spaces.Dict):
            raise SimulationError("observation_space", "a Dict", str(seen))
        if env.max_steps < 1:
            raise SimulationError("max_steps", "at least 1", str(env.max_steps))


def check_observations(make: Make, steps: int = STEPS) -> None:
    """Every observation has the contract's fields, lies in its space, and gives nothing away."""
    with closing(make()) as env:
        for commands in (demonstration(env, steps), commands_for(env, steps)):
            observation, _ = env.reset(seed=SEED)
            check_observation(env, observation, 0)
            for step, (observation, *_) in enumerate(taken(env, commands), 1):
                check_observation(env, observation, step)


def check_info(make: Make, steps: int = STEPS) -> None:
    """``info`` tells success, task and instruction; reward and flags are what they should be."""
    with closing(make()) as env:
        for commands in (demonstration(env, steps), commands_for(env, steps)):
            _, info = env.reset(seed=SEED)
            check_words(env, info)
            for _, reward, ended, truncated, info in taken(env, commands):
                check_words(env, info)
                if not math.isfinite(reward):
                    raise SimulationError("reward", "a finite number", repr(reward))
                for name, flag in (("terminated", ended), ("truncated", truncated)):
                    require_type(name, flag, bool)


def check_repeats(make: Make, steps: int = STEPS) -> None:
    """The same seed and actions give the same bits, also after another episode."""
    with closing(make()) as env:
        commands = commands_for(env, steps)
        first = play(env, SEED, commands)
        play(env, SEED + 1, commands[::-1])
        require_same("a second episode of the same seed", first, play(env, SEED, commands))


def check_fresh(make: Make, steps: int = STEPS) -> None:
    """Another instance gives the same bits for the same seed and actions."""
    with closing(make()) as env, closing(make()) as fresh:
        commands = commands_for(env, steps)
        play(env, SEED + 1, commands[::-1])
        played = play(env, SEED, commands)
        require_same("a fresh environment", played, play(fresh, SEED, commands))
        if env.contract != fresh.contract:
            env.contract.require(fresh.contract, "one instance", "another")


def check_state(make: Make, steps: int = STEPS) -> None:
    """``set_state`` brings back what ``get_state`` gave, and the future, to the bit.

    As arrays and, having been through JSON, as lists; in the same and in another instance.
    An environment whose ``get_state`` raises SimulationError cannot tell, and passes.
    """
    with closing(make()) as env, closing(make()) as other:
        seen = moment_of(advance(env, demonstration(env, steps)))
        try:
            state = env.get_state()
        except SimulationError as error:
            LOG.info("no state to check: %s", error)
            return
        text = as_json(state)
        commands = commands_for(env, steps)
        future = go_on(env, commands)
        if as_json(state) != text:
            raise SimulationError("get_state", "a copy", "arrays that change with the episode")
        other.reset(seed=SEED + 1)
        for name, target, given in (
            ("set_state", env, state),
            ("set_state in another instance", other, state),
            ("set_state of what was JSON", other, json.loads(text)),
        ):
            require_same(name, [seen], [moment_of(target.set_state(given))])
            require_same(f"{name}, going on", future, go_on(target, commands))


def check_refusals(make: Make, steps: int = STEPS) -> None:
    """Actions of another length or not finite, and a step before any reset, are refused."""
    with closing(make()) as env:
        legal = commands_for(env, 1)[0]
        _refuses(env, "a step before any reset", legal)
        env.reset(seed=SEED)
        _refuses(env, "an action that is too short", legal[:-1])
        _refuses(env, "an action that is too long", np.append(legal, legal[-1:]))
        _refuses(env, "an action with an axis too many", legal[None])
        for place in {0, len(legal) - 1}:
            for value in (np.nan, np.inf):
                wrong = legal.copy()
                wrong[place] = value
                _refuses(env, f"an action with {value} at {place}", wrong)
        env.step(legal)


def check_expert(make: Make, steps: int = STEPS) -> None:
    """The expert's commands fit contract and space, repeat themselves, and leave no trace.

    An environment whose ``expert`` raises SimulationError has none, and passes.
    """
    with closing(make()) as env:
        env.reset(seed=SEED)
        try:
            env.expert()
        except SimulationError as error:
            LOG.info("no expert to check: %s", error)
            return
        first = demonstration(env, steps, thorough=True)
        again = demonstration(env, steps)
        same = len(first) == len(again) and all(map(np.array_equal, first, again))
        if not same:
            raise SimulationError("expert", "the same commands for the same seed", "others")


def check_ends(make: Make, steps: int = STEPS) -> None:
    """No episode is longer than ``max_steps``, the last step says so, and a reset starts over."""
    with closing(make()) as env:
        steady, wild = commands_for(env, 1), commands_for(env, min(env.max_steps, 100))
        for commands in (steady, wild):
            env.reset(seed=SEED)
            for step in range(1, env.max_steps + 1):
                try:
                    *_, ended, truncated, _ = env.step(commands[step % len(commands)])
                except SimulationError:
                    break
                if ended and truncated:
                    raise SimulationError("truncated", "False where terminated is True", "both")
                if ended or truncated:
                    break
            else:
                got = f"none after {env.max_steps} steps"
                raise SimulationError("truncated", "an end at max_steps", got)
        observation, _ = env.reset(seed=SEED)
        check_observation(env, observation, 0)
        env.step(steady[0])


def _refuses(env: RobotEnv, what: str, command: NDArray[Any]) -> None:
    try:
        env.step(command)
    except SimulationError:
        return
    raise SimulationError(what, "SimulationError", "a step as if nothing were wrong")


CHECKS: tuple[Check, ...] = (
    check_gymnasium,
    check_spaces,
    check_observations,
    check_info,
    check_repeats,
    check_fresh,
    check_state,
    check_refusals,
    check_expert,
    check_ends,
)
"""All checks; each takes what makes the environment and, if you like, the number of steps."""
