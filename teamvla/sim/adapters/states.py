"""Saves and restores foreign simulators where that can be done to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from teamvla.errors import SimulationError
from teamvla.sim.interface import State

_EVERYTHING = mujoco.mjtState.mjSTATE_INTEGRATION  # physics, commands, mocap, warm start
# Environments that look at poses before they step find those of the last physics step but one.
_POSES = ("xpos", "xquat", "xmat", "site_xpos", "site_xmat")
_BLOWN_UP = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)
_HAND = "carrying"  # attribute of a MiniGrid: a thing, or None
_NOTHING = np.array([1, 0, 0])  # MiniGrid's code of what is empty: kind, colour, state
_WORDS = 8  # of 32 bits, in the two 128-bit numbers of NumPy's generator


def physics_of(env: Any) -> tuple[Any, Any] | None:
    """MjModel and MjData of an environment: Gymnasium's own kind, or dm_control's."""
    bare = env.unwrapped
    model, data = getattr(bare, "model", None), getattr(bare, "data", None)
    if not isinstance(model, mujoco.MjModel):
        physics = getattr(getattr(bare, "_env", None), "physics", None)
        model = getattr(getattr(physics, "model", None), "ptr", None)
        data = getattr(getattr(physics, "data", None), "ptr", None)
    return (model, data) if isinstance(model, mujoco.MjModel) else None


def blown_up(data: Any) -> bool:
    """Whether MuJoCo met positions, velocities or accelerations that are no numbers.

    It starts the model anew then and goes on, and tells in its count of warnings alone.
    """
    return any(data.warning[kind].number for kind in _BLOWN_UP)


def save(env: Any, attributes: tuple[str, ...]) -> State:
    """Physics, random generator and the named attributes of the environment."""
    state: State = {f"env.{name}": _frozen(env, name) for name in attributes}
    state["random"] = _random_state(env.unwrapped.np_random)
    physics = physics_of(env)
    if physics is not None:
        model, data = physics
        state["physics"] = np.empty(mujoco.mj_stateSize(model, _EVERYTHING))
        mujoco.mj_getState(model, data, state["physics"], _EVERYTHING)
        state |= {name: getattr(data, name).copy() for name in _POSES}
    return state


def restore(env: Any, attributes: tuple[str, ...], state: Mapping[str, NDArray[Any]]) -> None:
    """Put back what :func:`save` gave."""
    for name in attributes:
        _thaw(env, name, state[f"env.{name}"])
    _set_random(env.unwrapped.np_random, state["random"])
    physics = physics_of(env)
    if physics is not None:
        model, data = physics
        mujoco.mj_setState(model, data, state["physics"].astype(np.float64), _EVERYTHING)
        mujoco.mj_step1(model, data)  # poses and contacts; it leaves the warm start alone
        for name in _POSES:
            getattr(data, name)[:] = state[name]


def _frozen(env: Any, name: str) -> NDArray[Any]:
    value = _attribute(env, name)
    if value is None and name == _HAND:
        value = _NOTHING
    elif hasattr(value, "encode"):  # a MiniGrid, or a thing in it
        value = value.encode()
    array = np.array(value)
    if array.dtype.kind not in "biufU":
        raise _untold(f"its attribute {name!r} is a {type(value).__name__}")
    return array


def _thaw(env: Any, name: str, array: NDArray[Any]) -> None:
    before = _attribute(env, name)
    if name == _HAND:
        value: Any = _thing(array)
    elif hasattr(before, "encode") and not isinstance(before, str):
        value = type(before).decode(array.astype(np.uint8))[0]
    elif isinstance(before, np.ndarray):
        value = array.astype(before.dtype)
    elif isinstance(before, tuple | list):
        value = type(before)(array.tolist())
    else:
        value = type(before)(array.item())
    setattr(env.unwrapped, name, value)


def _thing(array: NDArray[Any]) -> Any:
    """A thing of a MiniGrid by its kind, colour and state, or None."""
    from minigrid.core.world_object import WorldObj

    decode: Any = WorldObj.decode
    return decode(*map(int, array))


def _attribute(env: Any, name: str) -> Any:
    try:
        return getattr(env.unwrapped, name)
    except AttributeError:
        raise _untold(f"it has no attribute {name!r}") from None


def _untold(why: str) -> SimulationError:
    return SimulationError(
        "state of this environment", "task.state to name numbers and arrays", why
    )


def _random_state(generator: np.random.Generator) -> NDArray[np.int64]:
    """The generator's state as whole numbers that JSON can hold."""
    told = dict(generator.bit_generator.state)
    if told["bit_generator"] != "PCG64":
        raise _untold(f"its generator is {told['bit_generator']}")
    whole = told["state"]["state"] << 128 | told["state"]["inc"]
    words = [whole >> 32 * place & 0xFFFFFFFF for place in range(_WORDS)]
    return np.array([*words, told["has_uint32"], told["uinteger"]], np.int64)


def _set_random(generator: np.random.Generator, words: NDArray[Any]) -> None:
    numbers = [int(word) for word in words]
    whole = sum(word << 32 * place for place, word in enumerate(numbers[:_WORDS]))
    generator.bit_generator.state = {
        "bit_generator": "PCG64",
        "state": {"state": whole >> 128, "inc": whole & (1 << 128) - 1},
        "has_uint32": numbers[_WORDS],
        "uinteger": numbers[_WORDS + 1],
    }
