"""Several tasks in one training: how they are mixed, and how they rank its checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import SMALL

from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.errors import ConfigError, InputError
from teamvla.evaluation.suites import Score, Trial
from teamvla.sim.tasks import TwoArmTaskConfig
from teamvla.train import bc_trainer
from teamvla.train.journal import read_metrics
from teamvla.train.ranking import mean_success, ranking_tasks
from teamvla.train.runs import open_run, resume_run

SIZE = [word for item in SMALL[:2] for word in ("--set", item)]
LITTLE = (*SMALL, "model.fusion.hidden_dim=16", "trainer.epochs=1", "trainer.rollout_episodes=1")
TRAIN = [word for item in LITTLE for word in ("--set", item)]
RANKED = ["--set", "trainer.rollout_every=1"]


@pytest.fixture(scope="module")
def root(lift_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four demonstrations of lift and two of sort."""
    root = tmp_path_factory.mktemp("two") / "data"
    shutil.copytree(lift_root / "lift", root / "lift")
    assert run(["record", "--task", "sort", "-n", "2", "-o", str(root), *SIZE, "-q"]) == 0
    assert run(["index", str(root), "--set", "index.val_fraction=0.2", "-q"]) == 0
    return root


@pytest.fixture
def project(root: Path) -> Project:
    return Project.load("train_bc", LITTLE).replace("dataset", roots=[str(root)])


def score(*successes: bool) -> Score:
    return Score(tuple(Trial(i, won, 1, 0.0) for i, won in enumerate(successes)))


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that two tasks ranked."""
    out = tmp_path_factory.mktemp("trained") / "run"
    words = ["train", "--data", str(root), "--task", "sort", "--task", "lift", "-o", str(out)]
    # What is set of a task holds for the first; lift plays at its full length.
    assert run([*words, *TRAIN, *RANKED, "--set", "task.max_steps=5", "-q"]) == 0
    return out


def test_without_a_list_the_section_task_ranks(project):
    [task] = ranking_tasks(project)
    assert (task.task_name, task.camera.height) == ("lift", 32)


def test_listed_tasks_are_the_shipped_ones_through_the_cameras_of_the_run(project):
    told = project.replace("trainer", rollout_tasks=["lift", "sort"])
    lift, sort = ranking_tasks(told.replace("task", max_steps=7))
    shipped = Project.load("sort").section("task", TwoArmTaskConfig)
    assert (lift.task_name, lift.max_steps) == ("lift", 7)
    assert (sort.task_name, sort.max_steps) == ("sort", shipped.max_steps)
    assert (lift.camera.height, sort.camera.height, shipped.camera.height) == (32, 32, 64)
    assert sort.model_copy(update={"camera": shipped.camera}) == shipped


def test_a_configuration_of_ones_own_can_rank_too(project, tmp_path):
    (tmp_path / "short.yaml").write_text("extends: sort\ntask: {max_steps: 3}\n")
    told = project.replace("trainer", rollout_tasks=[str(tmp_path / "short.yaml")])
    [task] = ranking_tasks(told)
    assert (task.task_name, task.max_steps, task.camera.height) == ("sort", 3, 32)


def test_the_mean_of_the_tasks_ranks():
    assert mean_success({"a": score(True, True), "b": score(False, True)}) == 0.75


def test_the_journal_has_a_row_for_each_task_and_one_for_the_mean(trained):
    rows = read_metrics(trained / "metrics.jsonl")
    rates = {row["split"]: row["success_rate"] for row in rows if "rollout" in row["split"]}
    assert rates.keys() == {"rollout", "rollout/sort", "rollout/lift"}
    assert rates["rollout"] == (rates["rollout/sort"] + rates["rollout/lift"]) / 2


def test_the_best_checkpoint_is_that_of_the_best_mean(project, tmp_path, monkeypatch):
    # Of sort alone the first epoch would be best, of lift alone the third.
    wins = {"lift": [(0, 0), (1, 1), (1, 1)], "sort": [(1, 1), (1, 0), (0, 0)]}

    def answer(suite, open_actor, episodes, *, name, **_):
        epoch = int(name.rpartition(" ")[2])
        return score(*map(bool, wins[suite.task.task_name][epoch - 1]))

    monkeypatch.setattr("teamvla.train.ranking.evaluate", answer)
    changes = {"rollout_every": 1, "rollout_after": 0.0, "rollout_episodes": 2, "epochs": 3}
    told = project.replace("trainer", **changes, rollout_tasks=["lift", "sort"])
    state = bc_trainer.main(told, tmp_path / "run").state
    assert (state.best_epoch, state.best_success) == (2, 0.75)


def test_the_run_keeps_its_tasks_and_the_first_is_what_eval_plays(trained, capsys):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["trainer"]["rollout_tasks"] == ["sort", "lift"]
    assert (config["task"]["name"], config["task"]["max_steps"]) == ("sort", 5)
    best = str(trained / "checkpoints" / "best.ckpt")
    assert run(["eval", best, "-n", "1", "--no-pictures", "--json", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "sort"


def test_eval_plays_any_of_the_tasks_of_a_checkpoint_through_its_cameras(trained, capsys):
    best = str(trained / "checkpoints" / "best.ckpt")
    short = ["-n", "1", "--no-pictures", "--set", "task.max_steps=5", "--json", "-q"]
    assert run(["eval", best, "--task", "lift", *short]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["task"], answer["trials"][0]["steps"]) == ("lift", 5)


def test_a_ranking_that_is_stopped_between_tasks_is_done_again(project, tmp_path):
    told = project.replace("trainer", rollout_every=1, rollout_tasks=["lift", "sort"])
    told = told.replace("task", max_steps=3)
    run_ = bc_trainer.start_run(told, tmp_path / "run")
    steps, polls = len(run_.train_loader), []
    # One poll after each step, one before and one after the episode of the first task.
    assert not bc_trainer.train(run_, stop=lambda: polls.append(1) or len(polls) > steps + 1)
    assert not [row for row in read_metrics(run_.journal.path) if "rollout" in row["split"]]
    resumed = resume_run(run_.folder)
    assert resumed.state.epoch == 0
    assert bc_trainer.train(resumed)
    splits = [row["split"] for row in read_metrics(run_.journal.path)]
    assert [split for split in splits if "rollout" in split] == [
        "rollout", "rollout/lift", "rollout/sort",
    ]  # fmt: skip


def test_a_task_that_the_data_do_not_show_is_refused(project, tmp_path):
    told = project.replace("trainer", rollout_every=1, rollout_tasks=["lift", "drawer"])
    with pytest.raises(ConfigError) as refused:
        open_run(told, tmp_path / "run")
    said = "expected one of the data's: lift, sort, got drawer. Give --task lift --task sort."
    assert said in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_task_that_there_is_not_gets_the_nearest_name(project, tmp_path):
    told = project.replace("trainer", rollout_every=1, rollout_tasks=["lift", "srt"])
    with pytest.raises(InputError, match="Did you mean 'sort'"):
        open_run(told, tmp_path / "run")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("[lift, sort, lift]", "trainer.rollout_tasks: a task stands there twice"),
        ("[]", "trainer.rollout_tasks: tuple should have at least 1 item"),
    ],
)
def test_a_list_that_is_none_is_refused(value, said, capsys):
    assert run(["config", "check", "train_bc", "--set", f"trainer.rollout_tasks={value}"]) == 2
    assert said in capsys.readouterr().err


def test_one_task_on_the_command_line_overrides_a_list_in_the_file(root, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("extends: train_bc\ntrainer: {rollout_tasks: [lift, sort]}\n")
    words = ["train", "--data", str(root), "--config", str(own), "-o", str(tmp_path / "run")]
    assert run([*words, "--task", "sort", *TRAIN, "-q"]) == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["trainer"]["rollout_tasks"], config["task"]["name"]) == (None, "sort")


def test_balanced_weights_give_every_task_the_same_share_of_an_epoch(project):
    told = project.replace("dataset", weights={"lift": 1.0, "sort": 1.0}, batch_size=16)
    loader, _ = bc_trainer.build_data(open_run(told, Path("unused")).train_loader.dataset.config)
    of_task = {int(i): task for task, rows in loader.dataset.tasks().items() for i in rows}
    drawn = [of_task[int(i)] for batch in loader for i in batch["index"]]
    steps = {task: len(rows) for task, rows in loader.dataset.tasks().items()}
    assert steps["lift"] != steps["sort"]
    assert abs(drawn.count("lift") - drawn.count("sort")) <= 1
    assert len(drawn) == sum(steps.values())
