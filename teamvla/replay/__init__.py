"""A recorded episode to look at, and its actions executed once more."""

from teamvla.replay.animation import animation, cameras_of
from teamvla.replay.comparison import Deviation
from teamvla.replay.execution import Replayed, execute, open_recorded_env

__all__ = [
    "Deviation",
    "Replayed",
    "animation",
    "cameras_of",
    "execute",
    "open_recorded_env",
]
