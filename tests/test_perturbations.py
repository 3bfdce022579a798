"""Perturbations: each changes what it is named after, and nothing else."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from teamvla.errors import ConfigError, RegistryError, SimulationError
from teamvla.sim import TwoArmEnv, make_env
from teamvla.sim.interface import RobotEnv
from teamvla.sim.perturbations import PERTURBATIONS, fitting, parse_perturbations, perturbed
from teamvla.sim.scene import HOME
from teamvla.sim.tasks import TASKS, TwoArmTaskConfig
from teamvla.sim.testing import CHECKS, check_environment
from teamvla.sim.testing.checks import check_state

STAY = np.array([*HOME, 0.0] * 2, np.float32)
PICTURES = ("rgb_a", "rgb_b")
TWO_ARM_TASKS = ("lift", "handoff", "drawer", "sort", "recall")
OF_THE_SCENE = (
    "camera_shift", "lighting", "object_colour", "object_size", "object_mass", "distractor"
)  # fmt: skip


def plain(**task: object) -> TwoArmEnv:
    camera = {"height": 24, "width": 24}
    env = make_env(TwoArmTaskConfig.model_validate({"camera": camera, **task}))
    assert isinstance(env, TwoArmEnv)
    return env


def tiny(task: str = "lift", **settings: object) -> TwoArmEnv:
    camera = {"height": 8, "width": 8, "shadows": False}
    config = TASKS.get(task).Config.model_validate({"name": task, "camera": camera, **settings})
    env = make_env(config)
    assert isinstance(env, TwoArmEnv)
    return env


def pair(text: str, seed: int = 3) -> tuple[TwoArmEnv, TwoArmEnv, dict, dict]:
    """The control and the perturbed environment with their first observations."""
    control, env = plain(), perturbed(plain(), parse_perturbations(text))
    seen, _ = control.reset(seed=seed)
    changed, _ = env.reset(seed=seed)
    return control, env.unwrapped, seen, changed


def colours(env: TwoArmEnv) -> np.ndarray:
    return np.array(env.world.model.geom("tray").rgba[:3])


@pytest.mark.parametrize("name", list(PERTURBATIONS))
def test_the_control_begins_alike_in_all_that_is_drawn(name: str) -> None:
    control, env, *_ = pair(name)
    before, after = control.get_state(), env.get_state()
    drawn = set(before) - {"physics"}
    assert all(np.array_equal(before[key], after[key]) for key in drawn)


@pytest.mark.parametrize("name", list(PERTURBATIONS))
def test_an_episode_is_the_same_each_time_and_after_others(name: str) -> None:
    def play(env: RobotEnv, seed: int) -> list[bytes]:
        rng = np.random.default_rng(0)
        obs, info = env.reset(seed=seed)
        said = [info["instruction"].encode()]
        for _ in range(8):
            said += [obs[field].tobytes() for field in sorted(obs)]
            obs, *_ = env.step(STAY + rng.normal(0, 0.05, 14).astype(np.float32))
        return said

    env = perturbed(plain(max_steps=20), parse_perturbations(name))
    first = play(env, 5)
    play(env, 6)
    assert play(env, 5) == first
    assert play(perturbed(plain(max_steps=20), parse_perturbations(name)), 5) == first


def test_camera_shift_moves_every_fixed_camera_by_its_strength() -> None:
    control, env, seen, changed = pair("camera_shift=0.1")
    for camera in PICTURES:
        moved = env.world.data.camera(camera).xpos - control.world.data.camera(camera).xpos
        assert np.linalg.norm(moved) == pytest.approx(0.1)
        assert not np.array_equal(seen[camera], changed[camera])
    np.testing.assert_array_equal(seen["q_a"], changed["q_a"])


def test_blackout_takes_its_share_of_the_pictures_and_no_joints() -> None:
    env = perturbed(plain(), {"blackout": 0.3})
    obs, _ = env.reset(seed=0)
    black = 0
    for _ in range(100):
        black += sum(not obs[field].any() for field in PICTURES)
        assert obs["q_a"].any()
        obs, *_ = env.step(STAY)
    assert 40 <= black <= 80


DEPTH_AND_SEGMENTS = {"height": 8, "width": 8, "depth": True, "segmentation": True, "top": True}


def test_blackout_leaves_no_depth_and_no_segments_to_read() -> None:
    env = perturbed(plain(camera=DEPTH_AND_SEGMENTS), {"blackout": 0.5})
    obs, _ = env.reset(seed=0)
    lost = 0
    for _ in range(10):
        for stem in ("a", "b", "top"):
            black = not obs[f"rgb_{stem}"].any()
            assert np.isinf(obs[f"depth_{stem}"]).all() == black
            assert (not obs[f"seg_{stem}"].any()) == black
            lost += black
        assert env.observation_space.contains(obs)
        obs, *_ = env.step(STAY)
    assert 8 <= lost <= 22


def test_camera_noise_leaves_depth_and_segments_alone() -> None:
    control = plain(camera=DEPTH_AND_SEGMENTS)
    env = perturbed(plain(camera=DEPTH_AND_SEGMENTS), {"camera_noise": 50.0})
    seen, changed = control.reset(seed=0)[0], env.reset(seed=0)[0]
    same = {name for name in seen if np.array_equal(seen[name], changed[name])}
    assert {name for name in seen if name not in same} == {"rgb_a", "rgb_b", "rgb_top"}


def test_camera_noise_has_its_standard_deviation() -> None:
    _, _, seen, changed = pair("camera_noise=10")
    difference = changed["rgb_a"].astype(float) - seen["rgb_a"]
    inside = (seen["rgb_a"] > 60) & (seen["rgb_a"] < 195)  # away from where levels are cut off
    assert difference[inside].std() == pytest.approx(10, rel=0.15)


def test_lighting_brightens_some_episodes_and_darkens_others() -> None:
    factors = {
        round(changed["rgb_a"].mean() / seen["rgb_a"].mean(), 1)
        for _, _, seen, changed in (pair("lighting=0.4", seed) for seed in range(6))
    }
    assert min(factors) < 0.8
    assert max(factors) > 1.1


def test_object_colour_moves_each_channel_of_the_object_alone() -> None:
    control, env, *_ = pair("object_colour=0.1")
    np.testing.assert_allclose(np.abs(colours(env) - colours(control)), 0.1, atol=1e-6)
    table = [scene.world.model.geom("table").rgba for scene in (control, env)]
    np.testing.assert_array_equal(*table)


def test_object_size_and_mass_scale_the_object() -> None:
    control, env, *_ = pair("object_size=0.1+object_mass=0.5")
    ratio = env.world.model.geom("tray").size / control.world.model.geom("tray").size
    assert ratio[0] == pytest.approx(1.1) or ratio[0] == pytest.approx(0.9)
    np.testing.assert_allclose(ratio, ratio[0])
    mass = env.world.model.body("tray").mass / control.world.model.body("tray").mass
    assert mass == pytest.approx(1.5)


def things(env: TwoArmEnv) -> list[str]:
    names = (env.world.model.geom(at).name for at in range(env.world.model.ngeom))
    return [name for name in names if name.startswith("distractor_")]


@pytest.mark.parametrize("task", TWO_ARM_TASKS)
def test_distractors_touch_the_table_alone(task: str) -> None:
    env = perturbed(tiny(task), {"distractor": 6.0})
    inner = env.unwrapped
    placed = 0
    for seed in range(25):
        env.reset(seed=seed)
        world, mine = inner.world, things(inner)
        every = {world.model.geom(at).name for at in range(world.model.ngeom)} - {"", "table"}
        for name in mine:
            assert not world.touching(world.geoms(name), world.geoms(*(every - {name})))
            assert world.touching(world.geoms(name), world.geoms("table"))
        placed += len(mine)
    assert placed > 0.9 * 6 * 25


GOALS = [("handoff", "goal"), ("sort", "plate"), ("recall", "plate"), ("recall", "lamp_socket")]


@pytest.mark.parametrize(("task", "goal"), GOALS)
def test_distractors_leave_the_goals_free(task: str, goal: str) -> None:
    env = perturbed(tiny(task), {"distractor": 6.0})
    world = env.unwrapped.world
    for seed in range(25):
        env.reset(seed=seed)
        place, radius = world.data.geom(goal).xpos[:2], world.model.geom(goal).size[0]
        for name in things(env.unwrapped):
            assert np.linalg.norm(world.pose(name)[0][:2] - place) > radius + 0.10


def test_distractors_leave_room_for_an_open_drawer() -> None:
    env = perturbed(tiny("drawer"), {"distractor": 6.0})
    world = env.unwrapped.world
    for seed in range(25):
        env.reset(seed=seed)
        origin, turn = world.pose("cabinet")
        for name in things(env.unwrapped):
            x, y, _ = turn.T @ (world.pose(name)[0] - origin)
            # The handle's bar ends 22 cm before the cabinet's middle and comes out by 19 cm.
            assert not (-0.51 < x < 0.11 and abs(y) < 0.15)


def test_distractors_leave_the_ends_of_a_tray_free() -> None:
    env = perturbed(tiny(), {"distractor": 6.0})
    world = env.unwrapped.world
    for seed in range(25):
        env.reset(seed=seed)
        for handle in ("handle_a", "handle_b"):
            place = world.data.geom(handle).xpos[:2]
            gaps = [
                np.linalg.norm(world.pose(name)[0][:2] - place) for name in things(env.unwrapped)
            ]
            assert min(gaps) > 0.12


@pytest.mark.parametrize("task", TWO_ARM_TASKS[1:])
@pytest.mark.parametrize("name", OF_THE_SCENE)
def test_the_scene_of_every_task_can_be_changed(task: str, name: str) -> None:
    control, env = tiny(task), perturbed(tiny(task), parse_perturbations(name))
    control.reset(seed=4)
    env.reset(seed=4)
    one, other = control.world, env.unwrapped.world

    def looks(world: object) -> dict[str, np.ndarray]:
        model = world.model  # type: ignore[attr-defined]
        parts = ("cam_pos", "light_diffuse", "geom_rgba", "geom_size", "body_mass")
        return {part: np.array(getattr(model, part)) for part in parts}

    before, after = looks(one), looks(other)
    changed = {part for part in before if not np.array_equal(before[part], after[part])}
    expected = {
        "camera_shift": {"cam_pos"},
        "lighting": {"light_diffuse"},
        "object_colour": {"geom_rgba"},
        "object_size": {"geom_size"},
        "object_mass": {"body_mass"},
        "distractor": {"geom_rgba", "geom_size", "body_mass"},
    }
    assert changed == expected[name]
    env.step(STAY)


def test_a_push_comes_once_with_its_speed() -> None:
    env = perturbed(plain(max_steps=60), {"push": 0.5})
    env.reset(seed=1)
    speeds = []
    inner = env.unwrapped
    pushed = inner.world.push
    inner.world.push = lambda body, velocity: (speeds.append(velocity), pushed(body, velocity))
    moved = inner.world.pose("tray")[0]
    for _ in range(60):
        env.step(STAY)
    assert [np.linalg.norm(velocity) for velocity in speeds] == [pytest.approx(0.5)]
    assert np.linalg.norm(inner.world.pose("tray")[0] - moved) > 0.005


def test_delayed_commands_are_carried_out_later_and_in_order() -> None:
    env = perturbed(plain(), {"action_delay": 3.0})
    obs, _ = env.reset(seed=0)
    still = obs["q_a"][0]
    executed = []
    for step in range(6):
        command = STAY.copy()
        command[0] = 0.01 * (step + 1)
        env.step(command)
        executed.append(env.unwrapped.world.command("a")[0])
    np.testing.assert_allclose(executed, [still] * 3 + [0.01, 0.02, 0.03], atol=1e-6)


def test_action_noise_shakes_the_joints_and_leaves_the_grippers() -> None:
    env = perturbed(plain(), {"action_noise": 0.02})
    env.reset(seed=0)
    executed = []
    for _ in range(200):
        env.step(STAY)
        executed.append(env.unwrapped.world.command("b"))
    spread = np.std(executed, axis=0)
    np.testing.assert_allclose(spread[:-1], 0.02, rtol=0.25)
    assert spread[-1] == 0.0


def test_a_paraphrase_is_none_of_the_recorded_phrasings() -> None:
    inner = plain()
    env = perturbed(inner, {"paraphrase": 1.0})
    said = {env.reset(seed=seed)[1]["instruction"] for seed in range(10)}
    assert len(said) > 1
    assert not said & set(inner.config.instructions)


def test_a_swap_is_the_instruction_of_something_else() -> None:
    inner = plain()
    env = perturbed(inner, {"swap": 1.0})
    for seed in range(5):
        instruction = env.reset(seed=seed)[1]["instruction"]
        assert instruction in inner.other_instructions()
        assert instruction not in inner.config.instructions
        assert env.step(STAY)[4]["instruction"] == instruction == env.instruction


def test_gibberish_has_as_many_letters_and_no_words() -> None:
    inner = plain()
    env = perturbed(inner, {"gibberish": 1.0})
    words = env.reset(seed=0)[1]["instruction"].split()
    meant = inner.instruction.split()
    assert [len(word) for word in words] == [len(word) for word in meant]
    assert words != meant


def test_half_of_the_episodes_is_about_half() -> None:
    inner = plain()
    env = perturbed(inner, {"gibberish": 0.5})
    changed = 0
    for seed in range(40):
        changed += env.reset(seed=seed)[1]["instruction"] != inner.instruction
    assert 10 <= changed <= 30


def test_the_expert_of_a_perturbed_environment_still_lifts() -> None:
    env = perturbed(plain(), parse_perturbations("object_colour+lighting+camera_shift+swap"))
    obs, _ = env.reset(seed=0)
    expert = env.expert()
    expert.reset()
    over = False
    while not over:
        obs, _, ended, late, _ = env.step(np.concatenate(expert.act(obs)))
        over = ended or late
    assert ended


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("camera_shift=9", r"camera_shift: expected a strength above 0, at most 0.5 \(m\), got 9"),
        ("push=0", "expected a strength above 0"),
        ("push=nan", "expected a strength above 0"),
        ("push=hard", "got hard"),
        ("push+push", "each name once, got push twice"),
    ],
)
def test_a_strength_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_perturbations(text)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(RegistryError, match="Did you mean 'camera_shift'"):
        parse_perturbations("camera_shft")


def test_strengths_default_and_combine() -> None:
    assert parse_perturbations("push + blackout=0.5") == {"push": 0.3, "blackout": 0.5}


def test_a_perturbed_environment_says_that_it_has_no_state() -> None:
    env = perturbed(plain(), {"push": 0.3})
    env.reset(seed=0)
    with pytest.raises(SimulationError, match="under a perturbation"):
        env.get_state()
    with pytest.raises(SimulationError, match="Reset it with the same seed"):
        env.set_state({})


@pytest.mark.parametrize("name", list(PERTURBATIONS))
def test_a_perturbed_environment_keeps_the_rules_of_environments(name: str) -> None:
    checks = [check for check in CHECKS if check is not check_state]
    make = lambda: perturbed(tiny(max_steps=12), parse_perturbations(name))  # noqa: E731
    check_environment(make, steps=4, checks=checks)


@pytest.mark.parametrize("name", list(PERTURBATIONS))
def test_what_the_plain_environment_refuses_is_refused_in_its_words(name: str) -> None:
    control, env = tiny(), perturbed(tiny(), parse_perturbations(name))

    def complaint(one: RobotEnv, action: object) -> str:
        with pytest.raises(SimulationError) as caught:
            one.step(action)
        return str(caught.value)

    assert complaint(env, STAY) == complaint(control, STAY)
    control.reset(seed=0)
    env.reset(seed=0)
    for wrong in (STAY[:-1], np.append(STAY, 0.0), STAY * np.nan, STAY[None]):
        assert complaint(env, wrong) == complaint(control, wrong)


def test_a_reset_without_a_seed_goes_on_from_the_one_before_it() -> None:
    def places(env: RobotEnv) -> list[bytes]:
        env.reset(seed=1)
        said = []
        for _ in range(3):
            env.reset()
            said.append(env.unwrapped.get_state()["tray_pose"].tobytes())
        return said

    env = perturbed(tiny(), {"push": 0.3, "blackout": 0.5})
    first = places(env)
    assert len(set(first)) == 3
    assert places(env) == first == places(perturbed(tiny(), {"push": 0.3, "blackout": 0.5}))


def test_a_task_without_objects_or_paraphrases_has_nothing_to_perturb_there() -> None:
    env = tiny()
    env.task.objects = env.task.paraphrases = ()  # type: ignore[misc]
    assert "push" in fitting(tiny())
    for name in ("push", "object_size", "object_mass", "object_colour", "paraphrase"):
        assert name not in fitting(env)
        with pytest.raises(ConfigError, match=f"perturbation {name}: expected a task"):
            perturbed(env, parse_perturbations(name))
    assert {"distractor", "lighting", "swap"} <= set(fitting(env))


def test_driving_offers_pictures_words_and_its_pedals() -> None:
    from teamvla.config import Project
    from teamvla.sim.tasks import TaskConfig

    small = ["task.camera.height=8", "task.camera.width=8", "task.max_steps=6"]
    config = Project.load("driving", small).section("task", TaskConfig)
    with closing(make_env(config)) as env:
        assert fitting(env) == ["action_delay", "blackout", "camera_noise", "gibberish"]
        with pytest.raises(ConfigError, match="push: expected a task of the two-arm simulator"):
            perturbed(env, {"push": 0.3})
    checks = [check for check in CHECKS if check is not check_state]
    strengths = {"action_delay": 2.0, "blackout": 0.5, "gibberish": 1.0}
    check_environment(lambda: perturbed(make_env(config), strengths), steps=3, checks=checks)
