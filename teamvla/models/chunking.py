"""Executing action chunks: receding horizon or temporal ensembling, with a stall-breaker.

A policy predicts the next K actions at once. How many of them are executed before it
looks again decides a lot: averaging the overlapping chunks of a policy that replans
every other tick (temporal ensembling, Zhao et al. 2023, arXiv 2304.13705) cures most
jerks, but can settle on a fixed point, where the first few actions of every chunk
say "stay". Executing one whole chunk without looking leaves it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, Field

from teamvla.config import Settings
from teamvla.errors import ConfigError

Array = NDArray[np.float32]
#: K, by any of its names
ChunkSize = Annotated[
    int,
    Field(
        ge=1,
        validation_alias=AliasChoices("chunk_size", "action_horizon", "horizon"),
        description="K: how many actions are predicted at once.",
    ),
]


class ExecutionConfig(Settings):
    """How predicted chunks become commands. May differ between training and evaluation."""

    mode: Literal["ensemble", "receding"] = Field(
        default="ensemble",
        description="ensemble: replan often and average overlapping chunks; "
        "receding: execute n_action_steps of a chunk, then replan.",
    )
    n_action_steps: int = Field(
        default=8, ge=1, description="receding: steps executed of a chunk before the next."
    )
    replan_every: int = Field(default=2, ge=1, description="ensemble: steps per prediction.")
    ensemble_decay: float = Field(
        default=0.0,
        description="ensemble: chunk i, the oldest being 0, weighs exp(-decay * i). "
        "0 is the plain mean, above 0 trusts old chunks more, below 0 new ones.",
    )
    fresh_noise: bool = Field(
        default=False,
        description="Heads that sample draw anew at each prediction of an episode, instead of the "
        "same every time; all episodes draw alike.",
    )
    stall_steps: int = Field(
        default=20,
        ge=0,
        description="Steps without motion after which one whole chunk is executed without "
        "looking; 0 never does.",
    )
    stall_tolerance: float = Field(
        default=0.01,
        gt=0,
        description="Largest range of any joint (rad) or gripper (0..1) that counts as no motion.",
    )


class ActionChunker:
    """Turns predicted chunks into one action a tick. Holds the state of one episode.

    Each tick: :meth:`observe` the measured state; if :attr:`wants_chunk`, :meth:`add` a
    prediction made from this observation; take :meth:`next_action`.

    Args:
        config: execution mode and its parameters.
        chunk_size: K, rows of every chunk.
        choices: places in an action that are one of several moves: of these the one with most
            weight is taken, as there is no mean of them.

    Raises:
        ConfigError: a prediction would run out before the next is made.
    """

    def __init__(
        self, config: ExecutionConfig, chunk_size: int, choices: Sequence[int] = ()
    ) -> None:
        self.config, self.chunk_size, self._choices = config, chunk_size, tuple(choices)
        name = "replan_every" if config.mode == "ensemble" else "n_action_steps"
        self._period: int = getattr(config, name)
        if self._period > chunk_size:
            where = f"model.execution.{name}"
            raise ConfigError(
                where, f"at most chunk_size = {chunk_size}", f"{self._period}",
                "Lower it, or predict longer chunks.",
            )  # fmt: skip
        self._recent: deque[Array] = deque(maxlen=max(config.stall_steps, 1))
        self.reset()

    def reset(self) -> None:
        """Forget the episode."""
        self._tick = 0
        self._next_plan = 0
        self._open_loop = False
        self._chunks: list[tuple[int, Array]] = []
        self._recent.clear()

    @property
    def wants_chunk(self) -> bool:
        """Whether :meth:`add` has to be called before :meth:`next_action`."""
        return self._tick >= self._next_plan

    def observe(self, state: Array) -> None:
        """Note the measured state [D]; plan anew, for a whole chunk, if nothing has moved."""
        if self.wants_chunk:
            self._open_loop = False
        if self.config.stall_steps == 0 or self._open_loop:
            return
        self._recent.append(np.asarray(state, dtype=np.float32).copy())
        if self._has_stalled():
            self._recent.clear()
            self._open_loop = True
            self._next_plan = self._tick

    def add(self, chunk: Array) -> None:
        """Take a prediction [K, D] whose first row is the action of this tick."""
        if chunk.shape[0] != self.chunk_size:
            raise ValueError(f"expected a chunk of {self.chunk_size} rows, got {chunk.shape[0]}")
        if self._open_loop or self.config.mode == "receding":
            self._chunks.clear()
        self._chunks.append((self._tick, chunk))
        self._next_plan = self._tick + (self.chunk_size if self._open_loop else self._period)

    def next_action(self) -> Array:
        """The action [D] of this tick; the clock moves on by one."""
        oldest = self._tick - self.chunk_size
        self._chunks = [entry for entry in self._chunks if entry[0] > oldest]
        rows = np.stack([chunk[self._tick - start] for start, chunk in self._chunks])
        self._tick += 1
        weights = np.exp(-self.config.ensemble_decay * np.arange(len(rows)))
        mean: Array = (weights / weights.sum()).astype(np.float32) @ rows.astype(np.float32)
        for place in self._choices:
            mean[place] = _most_weighty(rows[:, place], weights)
        return mean

    def _has_stalled(self) -> bool:
        # Where nothing is felt, nobody knows whether anything moves.
        if len(self._recent) < self.config.stall_steps or not self._recent[0].size:
            return False
        moved = np.ptp(np.stack(self._recent), axis=0)
        return bool((moved < self.config.stall_tolerance).all())


def _most_weighty(values: Array, weights: NDArray[np.float64]) -> np.float32:
    """The value with most weight; among equals that of the newest chunk."""
    of_each = {value: weights[values == value].sum() for value in values[::-1]}
    return max(of_each, key=lambda value: of_each[value])
