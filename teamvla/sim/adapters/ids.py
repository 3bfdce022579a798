"""Which shipped configuration describes the environment of a Gymnasium id."""

from __future__ import annotations

from teamvla.errors import RegistryError
from teamvla.registry import did_you_mean
from teamvla.sim.registration import IDS

#: id -> name of the configuration; those of this package are called like their tasks
CONFIGS = {
    **IDS,
    "gym_aloha/AlohaTransferCube-v0": "aloha_transfer",
    "gym_aloha/AlohaInsertion-v0": "aloha_insertion",
    "MiniGrid-Empty-5x5-v0": "minigrid_empty_5x5",
    "MiniGrid-Empty-6x6-v0": "minigrid_empty_6x6",
    "MiniGrid-Empty-8x8-v0": "minigrid_empty",
    "MiniGrid-Empty-16x16-v0": "minigrid_empty_16x16",
    "MiniGrid-FourRooms-v0": "minigrid_four_rooms",
    "MiniGrid-DoorKey-6x6-v0": "minigrid_door_key",
    "BabyAI-GoToLocal-v0": "babyai_go_to_local",
    "FetchPickAndPlace-v4": "fetch_pick",
}


def config_for(env_id: str) -> str:
    """Name of the shipped configuration whose environment has this id.

    Raises:
        RegistryError: no configuration that ships describes it; names the nearest id.
    """
    if env_id in CONFIGS:
        return CONFIGS[env_id]
    raise RegistryError(
        f"environment {env_id!r}",
        "an id that a shipped configuration has",
        mend=f"{did_you_mean(env_id, [*CONFIGS])}. Any other id needs a mapping of its numbers: "
        "--config FILE (docs/environments.md)",
    )
