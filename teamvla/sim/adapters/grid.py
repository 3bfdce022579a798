"""Scripted expert for MiniGrid: the shortest way to the goal."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from teamvla.errors import SimulationError

if TYPE_CHECKING:
    from teamvla.sim.adapters.env import GymnasiumEnv

LEFT, RIGHT, FORWARD = 0, 1, 2
_AHEAD = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up
_Pose = tuple[int, int, int]


class GridExpert:
    """Breadth-first search over cells and directions: no shorter sequence of moves exists.

    It walks where nothing stands (or the goal does) and opens no doors.

    Attributes:
        phase: ``turn`` or ``walk``.
    """

    def __init__(self, env: GymnasiumEnv) -> None:
        self._grid_world: Any = env.foreign.unwrapped
        self.phase = ""

    def reset(self) -> None:
        """Nothing is remembered: each move is planned from where the agent stands."""
        self.phase = ""

    def act(self, obs: Mapping[str, Any]) -> list[NDArray[np.int64]]:
        """The first move of the shortest way, int64[].

        Raises:
            SimulationError: no way leads to the goal.
        """
        x, y = self._grid_world.agent_pos
        move = self._first_move((int(x), int(y), int(self._grid_world.agent_dir)))
        self.phase = "walk" if move == FORWARD else "turn"
        return [np.array(move, np.int64)]

    def _first_move(self, start: _Pose) -> int:
        # The move that began the way to each pose; the start began none.
        begun: dict[_Pose, int | None] = {start: None}
        frontier = deque([start])
        while frontier:
            pose = frontier.popleft()
            if self._is_goal(pose):
                return begun[pose] or LEFT
            for move, following in self._moves(pose):
                if following not in begun:
                    first = begun[pose]
                    begun[following] = move if first is None else first
                    frontier.append(following)
        raise SimulationError("expert of the grid", "a way to the goal", "none")

    def _moves(self, pose: _Pose) -> list[tuple[int, _Pose]]:
        x, y, facing = pose
        ahead = (x + _AHEAD[facing][0], y + _AHEAD[facing][1], facing)
        turns = [(LEFT, (x, y, (facing - 1) % 4)), (RIGHT, (x, y, (facing + 1) % 4))]
        return [(FORWARD, ahead), *turns] if self._is_free(ahead) else turns

    def _is_free(self, pose: _Pose) -> bool:
        cell = self._grid_world.grid.get(*pose[:2])
        return cell is None or cell.type == "goal"

    def _is_goal(self, pose: _Pose) -> bool:
        cell = self._grid_world.grid.get(*pose[:2])
        return cell is not None and cell.type == "goal"
