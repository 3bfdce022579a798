"""Whether a state that is handed in can be one that was saved: checked before it is used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from teamvla.errors import SimulationError

_GREATEST = 1e10  # MuJoCo takes what is greater for a simulation that blew up
_MEND = "It is damaged, or was saved by another task or version."

Shapes = Mapping[str, tuple[int, ...]]
Bound = float | tuple[float, ...]


def arrays(state: Mapping[str, Any], greatest: float = _GREATEST) -> dict[str, NDArray[np.float64]]:
    """The entries of ``state`` as new arrays; lists become arrays.

    Raises:
        SimulationError: an entry is none of numbers, all finite and at most ``greatest``.
    """
    if not isinstance(state, Mapping):
        raise _wrong("state", "entries by name", type(state).__name__)
    return {str(name): _numbers(str(name), value, greatest) for name, value in state.items()}


def require_shapes(given: Mapping[str, NDArray[Any]], known: Shapes) -> None:
    """Raise SimulationError unless the entries and their shapes are ``known``."""
    if missing := sorted(known.keys() ^ given.keys()):
        raise _wrong("state", f"the entries {', '.join(known)}", f"others in {', '.join(missing)}")
    for name, shape in known.items():
        if given[name].shape != shape:
            raise _wrong(f"state: {name}", f"shape {shape}", str(given[name].shape))


def require_whole(name: str, values: NDArray[np.float64], least: Bound, most: Bound) -> None:
    """Raise SimulationError unless all are whole numbers from ``least`` to ``most``."""
    if (values != np.round(values)).any() or (values < least).any() or (values > most).any():
        raise _wrong(f"state: {name}", f"whole numbers, {least} to {most}", str(values.tolist()))


def require_within(name: str, values: NDArray[np.float64], least: Bound, most: Bound) -> None:
    """Raise SimulationError unless all are numbers from ``least`` to ``most``."""
    if (values < least).any() or (values > most).any():
        outside = values[(values < least) | (values > most)].flat[0]
        raise _wrong(f"state: {name}", f"numbers from {least} to {most}", f"{outside:g}")


@contextmanager
def checked(name: str) -> Iterator[None]:
    """Let whatever numbers of no sense lead to in the block be a SimulationError."""
    try:
        yield
    except (ValueError, IndexError, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise _wrong(f"state: {name}", "one that can be simulated", said) from None


def _numbers(name: str, value: Any, greatest: float) -> NDArray[np.float64]:
    try:
        numbers = np.array(value, np.float64)
    except (TypeError, ValueError):
        raise _wrong(f"state: {name}", "numbers", repr(value)[:60]) from None
    if not (np.abs(numbers) <= greatest).all():
        raise _wrong(f"state: {name}", "finite numbers", "others")
    return numbers


def _wrong(where: str, expected: str, got: str) -> SimulationError:
    return SimulationError(where, expected, got, _MEND)
