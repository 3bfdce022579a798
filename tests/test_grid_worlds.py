"""Grid worlds: their experts, starts, saved states, and recordings of moves."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.data import IndexConfig, build_index, find_episodes, read_episode, validate_file
from teamvla.data.dataloader import make_dataloader
from teamvla.errors import SimulationError
from teamvla.record import RecordConfig, Recorder, record
from teamvla.replay import execute, open_recorded_env
from teamvla.sim.adapters.ids import CONFIGS
from teamvla.sim.adapters.task import GymnasiumConfig, GymnasiumTask

pytest.importorskip("minigrid")
LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(6)
WORLDS = [name for name in CONFIGS.values() if name.startswith(("minigrid", "babyai"))]
DOOR = "minigrid_door_key"


def config(name: str, pictures: bool = False) -> GymnasiumConfig:
    """The shipped settings, with small pictures or none."""
    task = Project.load(name).source.data["task"]
    task = {**task, "camera": {"height": 8, "width": 8}}
    if not pictures:
        task["mapping"] = {**task["mapping"], "pictures": {}}
    return GymnasiumConfig.model_validate(task)


def make(name: str, seed: int = 0) -> Any:
    env = GymnasiumTask.make(config(name))
    env.reset(seed=seed)
    return env


def expert_of(env: Any) -> Any:
    expert = env.expert()
    expert.reset()
    return expert


def next_move(expert: Any) -> int:
    [move] = expert.act({})
    return int(move)


def moves_to_the_end(env: Any, expert: Any) -> list[int]:
    """What the expert does until the episode ends, which must be in success."""
    moves: list[int] = []
    ended = truncated = False
    while not (ended or truncated):
        moves.append(move := next_move(expert))
        _, _, ended, truncated, info = env.step(np.array([move]))
    assert ended
    assert info["success"]
    return moves


def fewest_moves(env: Any) -> int:
    """Found by trying all moves out in the simulator, again and again, till the goal is reached."""
    world = copy.deepcopy(env.foreign.unwrapped)
    world.gen_obs = dict  # nobody looks
    world.max_steps = 10**6
    start = place_of(world)
    here, seen = {start[0]: start}, {start[0]}
    for count in range(1, 200):
        reached: dict[Any, Any] = {}
        for place in here.values():
            for move in range(6):
                following, reward = tried(world, place, move)
                if reward > 0:
                    return count
                reached[following[0]] = following
        here = {name: place for name, place in reached.items() if name not in seen}
        seen |= here.keys()
    raise AssertionError("the goal was not reached")


def place_of(world: Any, things: Any = None) -> Any:
    """What can be compared, and what is put back to go on from there: agent, things."""
    things = things or (world.carrying, world.grid, world.grid.encode().tobytes())
    cell, facing = tuple(map(int, world.agent_pos)), int(world.agent_dir)
    held = things[0] and things[0].encode()
    return (cell, facing, held, things[2]), cell, facing, things


def tried(world: Any, place: Any, move: int) -> tuple[Any, float]:
    """Where a move leads from a place, and its reward."""
    _, world.agent_pos, world.agent_dir, things = place
    world.carrying, world.grid, _ = things
    before = world.grid.get(*world.front_pos)
    moves_things = move in (PICKUP, DROP, TOGGLE) and (before or world.carrying)
    if moves_things:
        world.carrying, world.grid = copy.deepcopy((world.carrying, world.grid))
    _, reward, *_ = world.step(move)
    return place_of(world, None if moves_things else things), float(reward)


# Experts.


@pytest.mark.parametrize(
    ("name", "seeds"),
    [
        ("minigrid_empty_5x5", 12),
        ("minigrid_empty_6x6", 12),
        ("minigrid_empty", 12),
        ("minigrid_empty_16x16", 4),
        ("minigrid_four_rooms", 4),
        (DOOR, 4),
    ],
)
def test_no_other_moves_in_the_simulator_reach_the_goal_sooner(name, seeds):
    for seed in range(seeds):
        env = make(name, seed)
        fewest = fewest_moves(env)
        assert len(moves_to_the_end(env, expert_of(env))) == fewest, seed


def test_the_key_is_fetched_and_the_door_opened_on_the_way_to_the_goal():
    env = make(DOOR, 4)
    expert, phases = expert_of(env), []
    ended = False
    while not ended:
        move = next_move(expert)
        phases.append(expert.phase)
        ended = env.step(np.array([move]))[2]
    steps = [phase for phase in phases if phase in ("pick", "open")]
    assert steps == ["pick", "open"]
    assert set(phases) == {"turn", "walk", "pick", "open"}
    assert phases[-1] == "walk"
    world = env.foreign.unwrapped
    [door] = [thing for thing in world.grid.grid if thing is not None and thing.type == "door"]
    assert door.is_open
    assert world.carrying.type == "key"


@pytest.mark.parametrize("name", ["minigrid_four_rooms", DOOR])
def test_after_a_move_of_somebody_elses_it_takes_the_shortest_way_from_there(name):
    chance = np.random.default_rng(0)
    for seed in range(3):
        env = make(name, seed)
        expert = expert_of(env)
        for _ in range(4):
            env.step(np.array([next_move(expert)]))
            next_move(expert)
            env.step(chance.integers(0, 3, 1))
        fewest = fewest_moves(env)
        assert len(moves_to_the_end(env, expert)) == fewest


@pytest.mark.parametrize(
    ("after", "disturbance"), [(PICKUP, [DROP]), (TOGGLE, [TOGGLE]), (TOGGLE, [LEFT, DROP])]
)
def test_a_key_that_is_dropped_or_a_door_that_is_shut_is_no_end(after, disturbance):
    env = make(DOOR, 4)
    expert = expert_of(env)
    while (move := next_move(expert)) != after:
        env.step(np.array([move]))
    env.step(np.array([move]))
    next_move(expert)
    for move in disturbance:
        env.step(np.array([move]))
    fewest = fewest_moves(env)
    assert len(moves_to_the_end(env, expert)) == fewest


def take_the_key(env: Any, colour: str | None = None) -> None:
    """Put the key of the room into the agent's hand, or one of another colour."""
    world = env.foreign.unwrapped
    for at, thing in enumerate(world.grid.grid):
        if thing is not None and thing.type == "key":
            world.grid.grid[at], world.carrying = None, thing
    world.carrying.color = colour or world.carrying.color


def test_with_the_key_in_hand_it_goes_to_the_door():
    env = make(DOOR, 4)
    take_the_key(env)
    fewest = fewest_moves(env)
    moves = moves_to_the_end(env, expert_of(env))
    assert len(moves) == fewest
    assert PICKUP not in moves
    assert moves.count(TOGGLE) == 1


def test_a_door_without_its_key_is_told():
    env = make(DOOR, 4)
    take_the_key(env, colour="purple")
    with pytest.raises(SimulationError, match="a way to the goal, got none"):
        expert_of(env).act({})
    env.foreign.unwrapped.carrying = None
    with pytest.raises(SimulationError, match="a way to the goal, got none"):
        expert_of(env).act({})


def test_the_bot_of_babyai_goes_to_what_is_named_and_tells_what_it_is_at():
    env = make("babyai_go_to_local")
    instructions, phases = set(), set()
    for seed in range(20):
        env.reset(seed=seed)
        instructions.add(env.instruction)
        expert = expert_of(env)
        ended = truncated = False
        while not (ended or truncated):
            move = next_move(expert)
            phases.add(expert.phase)
            _, _, ended, truncated, info = env.step(np.array([move]))
        assert ended, seed
        assert info["success"], seed
    assert len(instructions) > 10
    assert all(words.startswith("go to ") for words in instructions)
    assert "GoNextTo" in phases
    assert all(phase.isalpha() for phase in phases)


# Starts and states.


def test_a_reset_prints_nothing(capsys):
    env = make("babyai_go_to_local")
    env.foreign.reset(seed=8)
    assert "Sampling rejected" in capsys.readouterr().out  # it would
    env.reset(seed=8)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("id_", [id_ for id_, name in CONFIGS.items() if name in WORLDS])
def test_an_id_opens_its_world_with_another_start_for_another_seed(id_):
    task = config(CONFIGS[id_])
    assert (task.id, task.task_name) == (id_, CONFIGS[id_])
    env = GymnasiumTask.make(task)
    starts = []
    for seed in [*range(12), *range(12)]:
        seen, _ = env.reset(seed=seed)
        world = env.foreign.unwrapped
        place = (*map(int, world.agent_pos), int(world.agent_dir), world.grid.encode().tobytes())
        starts.append((place, seen["grid"].tobytes(), int(seen["direction"])))
    assert starts[:12] == starts[12:]
    assert len(set(starts)) >= 8


def test_every_id_names_a_configuration_of_its_own():
    assert len(set(CONFIGS.values())) == len(CONFIGS)
    for id_, name in CONFIGS.items():
        task = Project.load(name).source.data.get("task", {})
        assert task.get("id", id_) == id_


@pytest.mark.parametrize("held", [True, False])
def test_a_saved_state_goes_on_to_the_bit_with_the_key_in_hand_and_without(held):
    env = GymnasiumTask.make(config(DOOR, pictures=True))
    env.reset(seed=4)
    expert = expert_of(env)
    moves = []
    while held and env.foreign.unwrapped.carrying is None:
        env.step(np.array([next_move(expert)]))
    # As it stands in an episode's metadata.
    state = json.loads(json.dumps({k: v.tolist() for k, v in env.get_state().items()}))
    other = GymnasiumTask.make(config(DOOR, pictures=True))
    other.reset(seed=1)
    take_the_key(other, colour="grey")  # what was in the hand before is not in it then
    seen = other.set_state(state)
    assert (other.foreign.unwrapped.carrying is not None) == held
    assert seen.keys() == other.observation_space.spaces.keys()
    ended = False
    while not ended:
        moves.append(next_move(expert))
        told, again = (one.step(np.array(moves[-1:])) for one in (env, other))
        assert told[1:] == again[1:]
        for field, value in told[0].items():
            assert np.array_equal(value, again[0][field]), field
        ended = told[2]
    assert TOGGLE in moves
    assert (PICKUP in moves) != held


# Recordings.


def recorded(name: str, root: Path, episodes: int = 3) -> list[Path]:
    record(Recorder(config(name, pictures=True), RecordConfig(), root, seed=0), episodes)
    return find_episodes(root)


def test_a_recording_of_moves_is_read_as_it_was_made(tmp_path):
    paths = recorded("minigrid_empty", tmp_path)
    assert [validate_file(path) for path in paths] == [[]] * 3
    build_index(tmp_path, config=IndexConfig(val_fraction=0.0))
    chunk, settings = 4, {"shuffle": False, "batch_size": 100, "drop_last": False}
    data = {"roots": [str(tmp_path)], "chunk_size": chunk, "fields": ["actions", "language"]}
    [batch] = make_dataloader({**data, **settings})
    row = 0
    for path in paths:
        fields, meta = read_episode(path).fields, read_episode(path).meta
        moves = fields["action"].tolist()
        for step in range(len(moves)):
            seen = {name: values[row] for name, values in batch["observations"].items()}
            assert torch.equal(seen["grid"], torch.from_numpy(fields["grid"][step]))
            assert seen["grid"].dtype == torch.uint8
            assert int(seen["direction"]) == fields["direction"][step]
            ahead = moves[step : step + chunk]
            assert batch["actions"][row, : len(ahead), 0].tolist() == ahead
            assert batch["action_is_pad"][row].tolist() == [k >= len(ahead) for k in range(chunk)]
            assert batch["language"][row] == meta["instruction"]
            row += 1
        assert set(moves) <= {LEFT, RIGHT, FORWARD}
    assert row == len(batch["language"])


@pytest.mark.parametrize(
    ("name", "start"), [(DOOR, "reset_state"), ("babyai_go_to_local", "reset_seed")]
)
def test_a_recorded_episode_happens_again_to_the_bit(name, start, tmp_path):
    for path in recorded(name, tmp_path, episodes=2):
        episode = read_episode(path)
        again = execute(episode, open_recorded_env(episode.meta, str(path)))
        assert again.start == start
        assert again.is_exact
        assert again.outcome.success


def test_a_policy_of_moves_is_evaluated_in_its_world(tmp_path, capsys):
    recorded("minigrid_empty_5x5", tmp_path / "data")
    sizes = ("model.chunk_size=4", "dataset.chunk_size=4", "trainer.epochs=1")
    small = ("model.head.hidden_dim=16", "model.head.n_layers=1", "model.head.num_heads=2")
    camera = ("task.camera.height=8", "task.camera.width=8", "task.max_steps=20")
    world = ("task.id=MiniGrid-Empty-5x5-v0", "task.slug=minigrid_empty_5x5")
    changes = [word for item in (*sizes, *small, *camera, *world) for word in ("--set", item)]
    train = ["train", "--config", "minigrid_empty", "--data", str(tmp_path / "data"), *changes]
    assert run([*train, "--out", str(tmp_path / "run"), "--json", "-q"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    assert run(["eval", best, "-n", "2", "--no-pictures", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["task"], told["episodes"]) == ("minigrid_empty_5x5", 2)
