"""Scripted experts for MiniGrid: the shortest way to the goal, and BabyAI's bot."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teamvla.errors import SimulationError

if TYPE_CHECKING:
    from teamvla.sim.adapters.env import GymnasiumEnv

LEFT, RIGHT, FORWARD, PICKUP, TOGGLE = 0, 1, 2, 3, 5
_AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up
_PHASES = {LEFT: "turn", RIGHT: "turn", FORWARD: "walk", PICKUP: "pick", TOGGLE: "open"}
_Cell = tuple[int, int]


@dataclass(frozen=True)
class _Place:
    """Where the agent is, and what it has done that matters on the way.

    ``key`` is the colour of the key in its hand; ``gone`` are the cells of keys that were picked
    up, ``opened`` those of doors.
    """

    cell: _Cell
    facing: int
    key: str | None
    gone: frozenset[_Cell] = frozenset()
    opened: frozenset[_Cell] = frozenset()

    @property
    def ahead(self) -> _Cell:
        step = _AHEAD[self.facing]
        return self.cell[0] + step[0], self.cell[1] + step[1]


class GridExpert:
    """Breadth-first search over what can be done: no shorter sequence of moves does it.

    It walks where nothing stands (or the goal does), picks up a key, opens doors, and locked
    ones with a key of their colour. It moves nothing else, and puts no key down.

    Attributes:
        phase: ``turn``, ``walk``, ``pick`` or ``open``.
    """

    def __init__(self, env: GymnasiumEnv) -> None:
        self._grid_world: Any = env.foreign.unwrapped
        self._way: dict[_Place, int] = {}
        self.phase = ""

    def reset(self) -> None:
        """Begin an episode."""
        self._way, self.phase = {}, ""

    def act(self, obs: Mapping[str, Any]) -> list[NDArray[np.int64]]:
        """The next move of the shortest way from where the agent stands, int64[].

        Raises:
            SimulationError: there is no goal, or no way leads to it.
        """
        place = self._place()
        if self._way.get(place) not in dict(self._moves(place)):  # somebody shut a door, say
            self._way = self._shortest(place)
        move = self._way[place]
        if move in (PICKUP, TOGGLE):  # the world is another then
            self._way = {}
        self.phase = _PHASES[move]
        return [np.array(move, np.int64)]

    def _place(self) -> _Place:
        world = self._grid_world
        x, y = world.agent_pos
        held = world.carrying
        key = held.color if held is not None and held.type == "key" else None
        return _Place((int(x), int(y)), int(world.agent_dir), key)

    def _shortest(self, start: _Place) -> dict[_Place, int]:
        """The moves on the shortest way, by the places where they are made."""
        before: dict[_Place, tuple[_Place, int] | None] = {start: None}
        frontier = deque([start])
        while frontier:
            place = frontier.popleft()
            if self._kind(place.cell) == "goal":
                return _traced(before, place)
            for move, following in self._moves(place):
                if following not in before:
                    before[following] = place, move
                    frontier.append(following)
        things = (each for each in self._grid_world.grid.grid if each is not None)
        if any(each.type == "goal" for each in things):
            mend = "it moves nothing out of its way: take an expert that does, --expert"
            raise SimulationError("expert of the grid", "a way to the goal", "none", mend)
        mend = "what else is asked for takes another expert: --expert, task.expert"
        raise SimulationError("expert of the grid", "a goal square", "none", mend)

    def _moves(self, place: _Place) -> Iterator[tuple[int, _Place]]:
        """What can be done, walking first: of ways equally short that is the one taken."""
        ahead = place.ahead
        kind = "nothing" if ahead in place.gone else self._kind(ahead)
        if kind in ("nothing", "goal", "floor") or self._is_open(ahead, place):
            yield FORWARD, replace(place, cell=ahead)
        yield LEFT, replace(place, facing=(place.facing - 1) % 4)
        yield RIGHT, replace(place, facing=(place.facing + 1) % 4)
        if kind == "key" and self._grid_world.carrying is None and not place.gone:
            key = self._grid_world.grid.get(*ahead).color
            yield PICKUP, replace(place, key=key, gone=place.gone | {ahead})
        if kind == "door" and self._opens(ahead, place):
            yield TOGGLE, replace(place, opened=place.opened | {ahead})

    def _kind(self, cell: _Cell) -> str:
        thing = self._grid_world.grid.get(*cell)
        return "nothing" if thing is None else str(thing.type)

    def _is_open(self, cell: _Cell, place: _Place) -> bool:
        door = self._grid_world.grid.get(*cell)
        return self._kind(cell) == "door" and bool(door.is_open or cell in place.opened)

    def _opens(self, cell: _Cell, place: _Place) -> bool:
        door = self._grid_world.grid.get(*cell)
        return not self._is_open(cell, place) and (not door.is_locked or door.color == place.key)


def _traced(before: Mapping[_Place, tuple[_Place, int] | None], end: _Place) -> dict[_Place, int]:
    """Back from the end to the start, which nothing is before."""
    way = {end: LEFT}  # an episode ends there: whatever is done at a goal
    while (step := before[end]) is not None:
        end, move = step
        way[end] = move
    return way


class BabyAIExpert:
    """The bot that comes with BabyAI's levels (Chevalier-Boisvert et al. 2019, arXiv 1810.08272).

    It knows no more than it has seen, and explores until it has seen enough.

    Attributes:
        phase: what the bot is at, such as ``GoNextTo`` or ``Explore``.
    """

    def __init__(self, env: GymnasiumEnv) -> None:
        self._env = env.foreign
        self._bot: Any = None
        self.phase = ""

    def reset(self) -> None:
        """Read the mission; nothing has been seen of it yet."""
        from minigrid.utils import baby_ai_bot

        make: Any = baby_ai_bot.BabyAIBot
        self._bot, self.phase = make(self._env), ""

    def act(self, obs: Mapping[str, Any]) -> list[NDArray[np.int64]]:
        """The bot's next move, int64[]."""
        move = int(self._bot.replan())
        stack = self._bot.stack
        self.phase = type(stack[-1]).__name__.removesuffix("Subgoal") if stack else "done"
        return [np.array(move, np.int64)]
