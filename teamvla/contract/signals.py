"""Fields of a step that are neither an arm's nor a picture: sensors, discrete moves, targets."""

from __future__ import annotations

import math
import re
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from teamvla.config.settings import Settings
from teamvla.contract.arms import require_field, require_name
from teamvla.errors import ContractError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CHOICE = re.compile(r"\S(.{0,62}\S)?")

_RANGES = {"int64": (-(2.0**53), 2.0**53), "uint8": (0, 255), "bool": (0, 1)}
"""Of the whole numbers; float64, which a command goes through, is exact to 2**53."""


class Signal(Settings):
    """One field of a step that is neither an arm's nor a picture.

    ``observation``: what a policy sees besides, such as LiDAR points or a direction; a vector
    or a single number of float32 is a part of the joined state.
    ``action``: a part of the command that is no arm's, such as steering and pedals, or one of
    several discrete moves. ``target``: what a policy may learn to tell and never sees; an
    environment gives it in ``info["targets"]`` under its field.
    """

    field: str
    role: Literal["observation", "action", "target"] = "observation"
    dtype: Literal["float32", "int64", "uint8", "bool"] = "float32"
    shape: tuple[int, ...] = Field(
        default=(), description="Of one step; -1, as the first alone, for a length that varies."
    )
    unit: str = Field(default="", description="Of the numbers; also what stands where.")
    low: float | None = Field(default=None, description="Smallest legal value.")
    high: float | None = Field(default=None, description="Largest legal value.")
    choices: tuple[str, ...] = Field(
        default=(), description="Names of a discrete value 0, 1, ...: int64 without a shape."
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        require_field("a signal's field", self.field)
        if any(size < 1 for size in self.shape[self.varies :]):
            raise ValueError(f"signal {self.field}: sizes are 1 or more; -1 stands first alone")
        if self.varies and self.role == "action":
            raise ValueError(f"signal {self.field}: an action has the same length in each step")
        self._check_limits()
        if self.choices:
            self._check_choices()
        return self

    def _check_limits(self) -> None:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"signal {self.field}: low is not smaller than high")
        if self.dtype == "bool" and (self.low, self.high) != (None, None):
            raise ValueError(f"signal {self.field}: bool has no low and high")

    def _check_choices(self) -> None:
        if (self.dtype, self.shape, self.low, self.high) != ("int64", (), None, None):
            plain = "choices go with int64, no shape, no low and no high"
            raise ValueError(f"signal {self.field}: {plain}")
        for name in self.choices:
            require_name("a choice", name, _CHOICE)
        if len(set(self.choices)) != len(self.choices):
            raise ValueError(f"signal {self.field}: each of choices needs a name of its own")

    @property
    def count(self) -> int:
        """How many choices there are; 0 where it is a quantity."""
        return 2 if self.dtype == "bool" and not self.shape else len(self.choices)

    @property
    def varies(self) -> bool:
        """Whether a step has as many rows as there are."""
        return self.shape[:1] == (-1,)

    @property
    def in_state(self) -> bool:
        """Whether it is a part of the joined state: plain float32 numbers that are observed."""
        plain = self.dtype == "float32" and len(self.shape) <= 1 and not self.varies
        return plain and self.role == "observation"

    @property
    def names(self) -> list[str]:
        """What its numbers are called in a joined vector: ``ego[0]``, or ``speed`` alone."""
        sizes = self.shape[self.varies :]
        places = product(*map(range, sizes))
        at = (",".join(map(str, place)) for place in places)
        return [f"{self.field}[{place}]" if place else self.field for place in at]

    @property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest legal value; infinite where there is none."""
        if self.choices:
            return 0.0, len(self.choices) - 1.0
        low, high = self.low, self.high
        return -math.inf if low is None else low, math.inf if high is None else high

    @property
    def size(self) -> int:
        """How many numbers a step has of it, or each of its rows where their number varies."""
        return math.prod(self.shape[self.varies :])

    def typed(self, values: NDArray[Any]) -> NDArray[Any]:
        """These numbers as the signal has them: whole ones where it has whole ones.

        Raises:
            ContractError: a number that its dtype cannot hold.
        """
        import numpy as np  # here, so that reading a contract stays light

        if self.dtype == "float32":
            return np.asarray(values, np.float32).reshape(self.shape)
        whole = np.rint(np.asarray(values, np.float64))
        low, high = _RANGES[self.dtype]
        if not ((whole >= low) & (whole <= high)).all():
            raise ContractError(f"signal {self.field}", f"{self.dtype}", f"{np.ravel(values)[:8]}")
        return np.asarray(whole.astype(self.dtype)).reshape(self.shape)

    def __str__(self) -> str:
        sizes = ",".join("P" if size == -1 else str(size) for size in self.shape)
        low, high = self.limits
        parts = [self.role, self.dtype + (f"[{sizes}]" if sizes else ""), self.unit]
        parts.append(f"{low:g}..{high:g}" if (low, high) != (-math.inf, math.inf) else "")
        return " ".join(part for part in (*parts, "|".join(self.choices)) if part)
