"""``teamvla train --dry-run``: what a training will take, before anything of it is there."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from torch.utils._pytree import tree_leaves

from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.data import IndexConfig, build_index
from teamvla.errors import ConfigError
from teamvla.models.base import Policy
from teamvla.record import RecordConfig, Recorder, record
from teamvla.sim.tasks import TaskConfig
from teamvla.train.estimate import Estimate, estimate
from teamvla.train.runs import open_run
from teamvla.train.tracing import Trace, pretending, without_weights

#: small shapes of every policy that is followed, without what takes long to follow
FAST = ("loss.sync=0", "loss.collision=0", "trainer.precision=fp32", "dataset.batch_size=16")
KINDS = {
    "single_brain": ("model.fusion.hidden_dim=64",),
    "bc": ("model.fusion.hidden_dim=64",),
    "vla": ("model.vision.embed_dim=32", "model.fusion.embed_dim=32", "model.language.embed_dim=32",
            "model.vision.num_layers=2"),
    "act": ("model.vision.width=8", "model.fusion.embed_dim=32"),
    "diffusion_policy": ("model.fusion.hidden_dim=64",),
    "msg_passing": ("model.language.type=words",),
}  # fmt: skip


def project_of(root: Path, *changes: str, config: str = "train_bc") -> Project:
    return Project.load(config, [*SMALL, *FAST, *changes]).replace("dataset", roots=[str(root)])


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operations are reckoned after a moment: a test looks at no clock."""
    from teamvla.train import estimate as module

    whole = module.time_calls
    monkeypatch.setattr(module, "time_calls", lambda calls: whole(calls, 0.05))


def peak_of_a_real_step(project: Project, folder: Path) -> int:
    """Bytes that the operations of a real step hold at most, beside weights and batch."""
    training = open_run(project, folder)
    batch = next(iter(training.train_loader))
    policy = training.learner.policy.train()
    known = [x for x in tree_leaves(batch) if isinstance(x, torch.Tensor)]
    trace = Trace([*policy.parameters(), *policy.buffers(), *known])
    with trace:
        policy.loss(batch)["loss"].backward()
    return trace.peak


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_of_a_step_is_that_of_a_real_one(kind, lift_root, tmp_path):
    project = project_of(lift_root, *KINDS[kind], config=f"model/{kind}")
    found, real = estimate(project), peak_of_a_real_step(project, tmp_path)
    told = found.memory["activations"] + found.memory["gradients"]
    assert found.unknown is None
    assert told == pytest.approx(real, rel=0.15)


@pytest.mark.parametrize("steps", ["null", "5"])
def test_the_memory_of_a_step_on_sequences_is_that_of_a_real_one(steps, lift_root, tmp_path):
    sequences = ("dataset.sequence_length=20", "dataset.batch_size=2")
    temporal = ("model.temporal.type=memory", f"model.temporal.steps={steps}")
    project = project_of(lift_root, *sequences, *temporal, config="model/single_brain")
    found, real = estimate(project), peak_of_a_real_step(project, tmp_path)
    assert found.unknown is None
    told = found.memory["activations"] + found.memory["gradients"]
    assert told == pytest.approx(real, rel=0.15)


#: recipes that learn from driving -> what makes them small
ON_THE_ROAD = {
    "train_world": (
        "dataset.sequence_length=20", "model.senses.hidden_dim=16", "model.senses.picture_size=8",
        "model.rssm.deterministic=16",
    ),
    # Its IMU goes through an LSTM, whose operations leave notes for each other.
    "train_driving": ("task.lidar={columns: 40, beams: 4}", "trainer.precision=bf16"),
}  # fmt: skip


@pytest.mark.parametrize("recipe", ON_THE_ROAD)
def test_recipes_for_driving_are_followed(recipe, tmp_path):
    sets = (
        "task.max_steps=40", "task.camera={height: 16, width: 16}", "dataset.batch_size=2",
        "index={val_fraction: 0, only_successful: false}", *ON_THE_ROAD[recipe],
    )  # fmt: skip
    project = Project.load(recipe, sets).replace("dataset", roots=[str(tmp_path / "data")])
    task, config = project.section("task", TaskConfig), project.section("record", RecordConfig)
    config = config.model_copy(
        update={"expert": "teamvla.record.explorers:Wanderer", "keep_failures": True}
    )
    record(Recorder(task, config, tmp_path / "data", seed=0), episodes=2)
    found, real = estimate(project), peak_of_a_real_step(project, tmp_path / "run")
    assert found.unknown is None
    assert found.seconds["compute"] > 0
    told = found.memory["activations"] + found.memory["gradients"]
    assert told == pytest.approx(real, rel=0.15)


def test_the_host_reads_what_follows_from_no_weight_and_no_sample():
    layer: Any = torch.nn.Linear(4, 2)
    with pretending(layer, torch.device("cpu")) as numbers:
        is_pad = torch.zeros(3, 5, dtype=torch.bool)
        assert (~is_pad).sum(1).tolist() == [5, 5, 5]
        assert 0 <= int(torch.randint(4, ())) < 4
        is_pad[0, 2:] = True
        with Trace(numbers=numbers):
            assert tuple(torch.empty(3, 5, 4)[is_pad].shape) == (3, 4)
        is_pad.copy_(torch.empty(3, 5, dtype=torch.bool))  # by now nobody knows
        with pytest.raises(RuntimeError, match="_local_scalar_dense"):
            int(is_pad.sum())


def test_parameters_steps_and_standing_memory_are_those_of_the_run(lift_root, tmp_path):
    project = project_of(lift_root, "model.adaptation.freeze=[vision.*]")
    found, training = estimate(project), open_run(project, tmp_path)
    policy, learner = training.learner.policy, training.learner
    trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert found.parameters == (sum(p.numel() for p in policy.parameters()), trained)
    assert found.parts["vision"][1] == 0
    assert (found.steps_per_epoch, found.epochs) == (len(training.train_loader), 2)
    learner.step(next(iter(training.train_loader)))
    moments = [x for entry in learner.optimizer.state.values() for x in entry.values()]
    assert found.memory["optimizer"] == sum(4 * x.numel() for x in moments if x.ndim)
    assert found.memory["gradients"] == found.memory["average"] == 4 * trained


def test_checkpointed_blocks_and_frozen_parts_take_less(lift_root):
    plain = estimate(project_of(lift_root, config="model/vla"))
    checkpointing = "model.adaptation.gradient_checkpointing=true"
    again = estimate(project_of(lift_root, checkpointing, config="model/vla"))
    assert again.memory["activations"] < 0.7 * plain.memory["activations"]
    assert again.flops > plain.flops
    frozen = estimate(
        project_of(lift_root, "model.adaptation.freeze=[vision.*]", config="model/vla")
    )
    assert frozen.total_bytes < plain.total_bytes
    assert frozen.flops < plain.flops


def test_what_a_mask_chooses_is_taken_for_all_of_it():
    class Choosing(torch.nn.Linear):
        device = torch.device("cpu")

    layer: Any = Choosing(4, 2)
    with pretending(layer, torch.device("cpu")):
        rows, mask = torch.empty(3, 5, 4), torch.empty(3, 5, dtype=torch.bool)
        with Trace():
            chosen = layer(rows[mask])
    assert tuple(chosen.shape) == (15, 2)


def test_a_trace_forgets_what_was_let_go():
    trace = Trace()
    with trace:
        kept = torch.zeros(100)
        gone = weakref.ref(torch.zeros(1000))
    assert gone() is None
    assert (trace.live, trace.peak) == (400, 4400)
    del kept
    assert trace.live == 0


def test_no_weight_is_ever_there(lift_root, monkeypatch):
    built: list[Policy] = []
    from teamvla.train import estimate as module

    whole = module.build_model
    monkeypatch.setattr(module, "build_model", lambda *a: built.append(whole(*a)) or built[-1])
    estimate(project_of(lift_root))
    with without_weights():
        assert torch.empty(3).is_meta
        assert torch.tensor([1.0, 2.0]).sum() == 3
    assert all(type(p.data).__name__ == "FakeTensor" or p.is_meta for p in built[0].parameters())


def test_a_step_that_needs_its_numbers_is_told(lift_root, registries, monkeypatch, caplog):
    from teamvla.models.bc import BCPolicy

    def loss(self: BCPolicy, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"loss": torch.zeros(()) if float(batch["actions"].sum()) else torch.ones(())}

    monkeypatch.setattr(BCPolicy, "loss", loss)
    found = estimate(project_of(lift_root, config="model/bc"))
    assert found.unknown is not None
    assert "activations" not in found.memory
    assert found.seconds == {}
    assert "cannot be followed" in caplog.text


def files_of(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("stands", ["none", "of other settings", "of other files", "current"])
def test_an_index_is_of_the_given_settings_and_not_written_to_the_data(lift_root, tmp_path, stands):
    root = Path(shutil.copytree(lift_root, tmp_path / "data", ignore=lambda *_: [".index"]))
    last = max(root.rglob("*.npz"))
    if stands == "of other files":
        last.rename(tmp_path / last.name)
    if stands != "none":
        build_index(root, config=IndexConfig(val_fraction=0.6 if "settings" in stands else 0))
    if stands == "of other files":
        (tmp_path / last.name).rename(last)
    before = files_of(root)
    project = project_of(root, "index.val_fraction=0", "dataset.batch_size=1")
    found = estimate(project)
    assert files_of(root) == before
    assert found.steps_per_epoch == len(open_run(project, tmp_path / "run").train_loader)
    assert (
        found.steps_per_epoch
        > estimate(project_of(lift_root, "dataset.batch_size=1")).steps_per_epoch
    )


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optimizer.groups=[{pattern: nothing.*}]", r"optimizer\.groups"),
        ("trainer.save=trained", "Give --init-from"),
    ],
)
def test_wrong_settings_are_refused_as_by_a_training(lift_root, setting, said):
    with pytest.raises(ConfigError, match=said):
        estimate(project_of(lift_root, setting))


def test_the_command_writes_no_run_and_tells_all_of_it(lift_root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sets = [word for item in (*SMALL, *FAST) for word in ("--set", item)]
    words = ["train", "--data", str(lift_root), "--dry-run", *sets]
    assert run([*words, "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "teamvla.train-estimate/1"
    assert told["parameters"]["total"] == sum(
        part["total"] for part in told["parameters"]["parts"].values()
    )
    assert told["memory_bytes"]["total"] > told["memory_bytes"]["weights"] > 0
    assert told["seconds"]["training"] > 0
    assert told["next"].startswith(f"teamvla train --data {lift_root}")
    assert list(tmp_path.iterdir()) == []


def test_the_lines_for_people_name_each_part():
    from teamvla.cli.console import Style
    from teamvla.cli.train import _estimate_lines

    found = Estimate(
        model="vla", device="cpu", precision="fp32", threads=1,
        parts={"vision": (3_000_000, 0), "heads": (1_000_000, 1_000_000)}, epochs=2,
        steps_per_epoch=10, batch_size=64, memory={"weights": 16_000_000, "gradients": 4_000_000},
        seconds={"step": 0.2, "training": 4.0, "validation": 1.0}, measured=1.0, flops=1,
    )  # fmt: skip
    lines = list(_estimate_lines(Style(), found))
    assert lines[0] == "model     vla, fp32, cpu"
    assert lines[2].split() == ["vision", "3,000,000", "0"]
    assert lines[4].split() == ["all", "4,000,000", "1,000,000", "25.0%"]
    assert lines[5] == "steps     10 an epoch, 20 in 2 epochs, 64 samples each"
    assert lines[6] == "memory    20.0 MB beside the process itself"
    assert lines[8] == "time      about 5 s on 1 threads, and the rollouts; 200 ms a step"


def test_a_run_that_goes_on_is_not_estimated(tmp_path, capsys):
    assert run(["train", "--resume", str(tmp_path), "--dry-run", "-q"]) == 2
    assert "--dry-run: expected a training to begin, got --resume" in capsys.readouterr().err


def test_a_pretrained_policy_is_estimated_from_its_configuration_alone(lift_root, tmp_path):
    pytest.importorskip("transformers")
    from pretrained_models import save_llm, save_vision

    save_vision("siglip", tmp_path / "siglip")
    save_llm("qwen2", tmp_path / "qwen2")
    settings = (
        f"model.vision.model_name={tmp_path / 'siglip'}", "model.vision.image_size=16",
        f"model.llm.model_name={tmp_path / 'qwen2'}", "model.adaptation.lora.r=2",
        "model.adaptation.lora.train=[projector.*, heads.*]",
    )  # fmt: skip
    project = project_of(lift_root, *settings, config="model/vla_model")
    real = peak_of_a_real_step(project, tmp_path / "run")
    for weights in tmp_path.glob("*/*.safetensors"):
        weights.write_bytes(b"no weights")
    found = estimate(project)
    told = found.memory["activations"] + found.memory["gradients"]
    assert told == pytest.approx(real, rel=0.15)
    assert found.parameters[1] < found.parameters[0]
