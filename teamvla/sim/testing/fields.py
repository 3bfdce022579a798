"""Whether what an environment gives fits its contract and its spaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from teamvla.contract import Contract, Signal
from teamvla.errors import SimulationError
from teamvla.sim.interface import Observation, RobotEnv

WORDS = ("instruction", "task", "success")


def check_command(env: RobotEnv, parts: Sequence[Any], joined: NDArray[Any]) -> None:
    env.contract.command_fields(parts)
    if not np.isfinite(joined).all():
        raise SimulationError("expert", "finite numbers", str(joined))
    command = joined.astype(np.float32)
    if not env.action_space.contains(command):
        raise SimulationError("expert", f"a command in {env.action_space}", str(command))


def require_type(where: str, value: Any, kind: type) -> None:
    if type(value) is not kind:
        raise SimulationError(where, kind.__name__, repr(value))


def check_words(env: RobotEnv, info: Mapping[str, Any]) -> None:
    for word, kind in zip(WORDS, (str, str, bool), strict=True):
        if word not in info:
            raise SimulationError("info", word, f"only {', '.join(info) or 'nothing'}")
        require_type(f"info {word}", info[word], kind)
    if info["instruction"] != env.instruction:
        raise SimulationError("instruction", repr(info["instruction"]), repr(env.instruction))
    told = info.get("targets", {})
    fields = [signal.field for signal in env.contract.signals if signal.role == "target"]
    if sorted(told) != sorted(fields):
        raise SimulationError("info targets", f"the fields {fields}", str(list(told)))
    for signal in env.contract.signals:
        if signal.role == "target":
            _check_target(signal, told[signal.field])


def _check_target(signal: Signal, value: Any) -> None:
    rows = value.shape[:1] if signal.varies and isinstance(value, np.ndarray) else ()
    shape = (*rows, *signal.shape[1:]) if signal.varies else signal.shape
    fits = isinstance(value, np.ndarray | np.generic)
    if not fits or (value.dtype, value.shape) != (signal.dtype, shape):
        got = f"{value.dtype}{list(value.shape)}" if fits else repr(value)
        raise SimulationError(f"info targets: {signal.field}", str(signal), got)
    low, high = signal.limits
    if not ((value >= low) & (value <= high) & np.isfinite(value)).all():
        raise SimulationError(f"info targets: {signal.field}", str(signal), "others")


def check_bounds(contract: Contract, space: spaces.Box[Any]) -> None:
    """An action signal's limits are those of the space, where the contract tells any."""
    at = contract.action_dim - sum(signal.size for signal in contract.action_signals)
    for signal in contract.action_signals:
        low, high = signal.limits
        part = slice(at, at + signal.size)
        at = part.stop
        if (space.low[part] < low).any() or (space.high[part] > high).any():
            got = f"{space.low[part].min():g} .. {space.high[part].max():g}"
            raise SimulationError(f"action_space: {signal.field}", f"{low:g} .. {high:g}", got)


def check_observation(env: RobotEnv, observation: Observation, step: int) -> None:
    fields = getattr(env.observation_space, "spaces", {})
    if fields.keys() != observation.keys():
        missing, more = fields.keys() - observation.keys(), observation.keys() - fields.keys()
        got = f"without {sorted(missing)}, besides {sorted(more)}"
        raise SimulationError(f"observation at step {step}", "the fields of its space", got)
    for name, space in fields.items():
        value = observation[name]
        # Gymnasium's space of bits has the dtype int8, and takes bool.
        dtypes = [space.dtype, bool] if isinstance(space, spaces.MultiBinary) else [space.dtype]
        fits = isinstance(value, np.ndarray) and value.dtype in dtypes
        fits = fits and value.shape == space.shape
        if not fits or not space.contains(value):
            got = f"{value.dtype}{list(value.shape)}" if not fits else "values outside of it"
            raise SimulationError(f"observation {name} at step {step}", str(space), got)
    _check_contract_fields(env.contract, observation)


def _check_contract_fields(contract: Contract, observation: Observation) -> None:
    for camera in contract.cameras:
        _require_field(observation, camera.field, "uint8", (camera.height, camera.width, 3))
    for arm in contract.arms:
        _require_field(observation, f"q_{arm.name}", "float32", (arm.num_joints,))
    for signal in contract.signals:
        if signal.role == "observation":
            _check_signal(signal, observation)
    # A target in the observation would be seen by policies.
    commands = {f"{stem}_{arm.name}" for arm in contract.arms for stem in ("action", "grip")}
    hidden = {signal.field for signal in contract.signals if signal.role != "observation"}
    if seen := sorted((commands | hidden | {*WORDS}) & observation.keys()):
        raise SimulationError("observation", "nothing of the command or the outcome", str(seen))


def _check_signal(signal: Signal, observation: Observation) -> None:
    shape = signal.shape
    if signal.varies:
        value = observation.get(signal.field)
        rows = -1 if value is None else len(value)
        shape = (rows, *shape[1:])
        _require_field(observation, f"{signal.field}_mask", "bool", (rows,))
    value = _require_field(observation, signal.field, signal.dtype, shape)
    if signal.varies:
        value = value[observation[f"{signal.field}_mask"]]
    low, high = signal.limits
    if not ((value >= low) & (value <= high)).all() or not np.isfinite(value).all():
        raise SimulationError(f"observation {signal.field}", f"{low:g} .. {high:g}", "others")


def _require_field(
    observation: Observation, name: str, dtype: str, shape: tuple[int, ...]
) -> NDArray[Any]:
    value = observation.get(name)
    if value is None or value.dtype != dtype or value.shape != shape:
        got = "nothing" if value is None else f"{value.dtype}{list(value.shape)}"
        expected = f"{dtype}{list(shape)}, as the contract has it"
        raise SimulationError(f"observation {name}", expected, got)
    return value
