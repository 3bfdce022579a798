"""The six commands one after the other, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import SMALL

from teamvla.cli.app import run

SETTINGS = [part for item in SMALL for part in ("--set", item)]
PICTURES = SETTINGS[:4]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, lift_root) -> Path:
    """The best checkpoint of a small training through the command line."""
    out = tmp_path_factory.mktemp("trained") / "run"
    ranked = ["--set", "trainer.rollout_every=2", "--set", "trainer.rollout_episodes=2"]
    ranked += ["--set", "task.max_steps=20"]
    assert run(["train", "--data", str(lift_root), "--out", str(out), *SETTINGS, *ranked]) == 0
    return out / "checkpoints" / "best.ckpt"


def test_each_command_names_the_next_and_the_path_leads_to_a_checkpoint(shell):
    recorded = shell("record", "--task", "lift", "--episodes", 3, "--out", "data", *PICTURES)
    assert (recorded["recorded"], recorded["next"]) == (3, "teamvla validate data")
    validated = shell("validate", "data")
    assert (validated["episodes"], validated["findings"]) == (3, [])
    assert validated["next"] == "teamvla index data"
    assert shell("index", "data")["next"] == "teamvla train --data data"
    trained = shell("train", "--data", "data", "--out", "run", *SETTINGS)
    assert trained["finished"]
    assert trained["next"] == "teamvla eval run/checkpoints/best.ckpt"
    assert shell("ckpt-inspect", trained["best"], "--verify")["status"] == "ok"


def test_record_reports_the_experts_success(shell):
    answer = shell("record", "--episodes", 2, "--out", "data", *PICTURES)
    assert answer["success_rate"] == answer["successes"] / answer["episodes"]


def test_evaluation_gives_the_same_episodes_for_any_number_of_workers(shell, trained):
    short = ["--episodes", 3, "--set", "task.max_steps=15", "--set", "evaluation.pictures=0"]
    one = shell("eval", trained, *short, "--workers", 1, "--out", "one")
    two = shell("eval", trained, *short, "--workers", 2, "--out", "two")
    assert one["trials"] == two["trials"]
    assert len({trial["reward"] for trial in one["trials"]}) == 3


def test_an_evaluation_leaves_pictures_and_its_numbers(shell, trained):
    options = ["--episodes", 2, "--set", "task.max_steps=10", "--set", "evaluation.pictures=1"]
    answer = shell("eval", trained, *options, "--out", "out")
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "contact_sheet.png", "report.json", "rollouts.webp",
    ]  # fmt: skip
    assert json.loads(Path("out/report.json").read_text())["trials"] == answer["trials"]


def test_a_rate_below_the_asked_one_is_a_finding(shell, trained):
    options = ["--episodes", 1, "--set", "task.max_steps=5", "--set", "evaluation.pictures=0"]
    answer = shell("eval", trained, *options, "--min-success", 0.5, code=1)
    assert (answer["status"], answer["success_rate"]) == ("findings", 0.0)


def test_rollouts_rank_the_checkpoints(trained):
    from teamvla.checkpoint import read_header
    from teamvla.train.journal import read_metrics

    rows = read_metrics(trained.parent.parent / "metrics.jsonl")
    rollouts = [row for row in rows if row["split"] == "rollout"]
    assert [row["epoch"] for row in rollouts] == [2]
    assert read_header(trained).meta["state"]["best_success"] == rollouts[0]["success_rate"]


def test_the_quickstart_does_everything_once(shell):
    small = [*SETTINGS, "--set", "task.max_steps=110", "--set", "trainer.epochs=1"]
    words = ["quickstart", "--episodes", 2, "--eval-episodes", 1, "--workers", 1, *small]
    words += ["--set", "evaluation.baselines=1", "--set", "evaluation.pictures=1"]
    first = shell(*words)
    page = Path(first["report"]).read_text()
    assert "Two arms learn to lift" in page
    assert Path("runs/quickstart/best.ckpt").exists()
    stamp = Path(first["report"]).stat().st_mtime_ns
    second = shell(*words)
    assert Path(first["report"]).stat().st_mtime_ns == stamp
    assert second["seconds"] == first["seconds"]


def test_a_quickstart_of_other_settings_is_not_mixed_in(shell):
    words = ["quickstart", "--episodes", 1, "--eval-episodes", 1, "--workers", 1, *SETTINGS]
    words += ["--set", "task.max_steps=110", "--set", "evaluation.baselines=1"]
    words += ["--set", "evaluation.pictures=1", "--set", "trainer.epochs=1"]
    shell(*words)
    for other in (["--seed", 1], ["--episodes", 2], ["--set", "optimizer.lr=0.1"]):
        answer = shell(*words, *other, code=2)
        assert "holds a quickstart with other settings" in answer["error"]["message"]
    assert shell(*words, "--eval-episodes", 2)["episodes"] == 2


def test_execution_can_be_changed_for_one_evaluation_but_not_the_model(shell, trained):
    short = ["--episodes", 2, "--set", "task.max_steps=15", "--set", "evaluation.pictures=0"]
    usual = shell("eval", trained, *short, "--out", "one")
    receding = ["--set", "model.execution.mode=receding", "--set", "model.execution.stall_steps=0"]
    other = shell("eval", trained, *short, *receding, "--out", "two")
    assert [t["reward"] for t in usual["trials"]] != [t["reward"] for t in other["trials"]]
    answer = shell("eval", trained, *short, "--set", "model.fusion.hidden_dim=7", code=2)
    assert "a change of model.execution at most" in answer["error"]["message"]
    answer = shell("eval", trained, *short, "--set", "model.execution.replan_evry=3", code=2)
    assert "did you mean 'replan_every'?" in answer["error"]["message"]
