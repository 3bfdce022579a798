"""Models that cannot be, and batches that must not be learned from: one clear error each."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import SMALL
from pydantic import Field

from teamvla.checkpoint import read_checkpoint, read_header, write_checkpoint
from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.errors import CheckpointError, ConfigError, EpisodeError
from teamvla.models.encoders.language import CharacterConfig, SimpleLanguageEncoder
from teamvla.models.encoders.vision import ConvConfig, ConvEncoder
from teamvla.models.fusion.concat import ConcatConfig, ConcatFusion
from teamvla.models.heads.base import ActionHead, HeadConfig, HeadLoss
from teamvla.models.heads.mlp import MLPActionHead, MLPHeadConfig
from teamvla.models.loading import load_policy
from teamvla.models.registries import (
    ACTION_HEAD_REGISTRY,
    ENCODER_REGISTRY,
    FUSION_REGISTRY,
    MODELS,
    TEXT_ENCODER_REGISTRY,
)
from teamvla.models.registry import register_model
from teamvla.models.vla_singlebrain import SingleBrainConfig, SingleBrainVLA
from teamvla.registry import Registry
from teamvla.train import bc_trainer
from teamvla.train.runs import open_run, resume_run, start_run
from teamvla.train.trainer import sound

LITTLE = (*SMALL, "model.fusion.hidden_dim=16", "trainer.epochs=1")
TRAIN = [word for item in LITTLE for word in ("--set", item)]
pytestmark = pytest.mark.usefixtures("registries")


@pytest.fixture
def project(lift_root: Path) -> Project:
    return Project.load("train_bc", LITTLE).replace("dataset", roots=[str(lift_root)])


class MyHeadConfig(MLPHeadConfig):
    type: Literal["mine"] = Field(default="mine", description="Somebody's own.")  # type: ignore[assignment]


class MyHead(MLPActionHead):
    Config = MyHeadConfig


class MyEncoderConfig(ConvConfig):
    type: Literal["mine"] = Field(default="mine", description="Somebody's own.")  # type: ignore[assignment]


class MyEncoder(ConvEncoder):
    Config = MyEncoderConfig


class MyTextConfig(CharacterConfig):
    type: Literal["mine"] = Field(default="mine", description="Somebody's own.")  # type: ignore[assignment]


class MyText(SimpleLanguageEncoder):
    Config = MyTextConfig


class MyFusionConfig(ConcatConfig):
    type: Literal["mine"] = Field(default="mine", description="Somebody's own.")  # type: ignore[assignment]


class MyFusion(ConcatFusion):
    Config = MyFusionConfig


class MyPolicyConfig(SingleBrainConfig):
    type: Literal["mine"] = Field(default="mine", description="Somebody's own.")  # type: ignore[assignment]


class MyPolicy(SingleBrainVLA):
    Config = MyPolicyConfig


class DreamConfig(HeadConfig):
    type: Literal["dream"] = Field(default="dream", description="Predicts only when it acts.")


class DreamHead(ActionHead):
    Config = DreamConfig

    def __init__(self, input_dim: int, action_dim: int, chunk_size: int = 1, **options: Any):
        super().__init__(input_dim, action_dim, chunk_size, **options)
        self.layer = torch.nn.Linear(input_dim, chunk_size * action_dim)

    def loss(self, features, target, is_pad):
        return HeadLoss(self.sample(features).square().mean(), {})

    def sample(self, features, generator=None):
        return self.layer(features.summary).unflatten(1, (self.chunk_size, self.action_dim))


# --- settings -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.type=singel_brain", "Did you mean 'single_brain'? Known: "),
        ("model.head.type=transfomer", "model.head.type: no such choice, got 'transfomer'; "
         "did you mean 'transformer'? (known: "),
        ("model.vision.type=cnm", "model.vision.type: no such choice, got 'cnm'; "
         "did you mean 'cnn'? (known: "),
        ("model.language.type=character", "model.language.type: no such choice, got 'character'; "
         "did you mean 'characters'? (known: "),
        ("model.fusion.type=concatt", "model.fusion.type: no such choice, got 'concatt'; "
         "did you mean 'concat'? (known: "),
        ("model.language.num_heads=5", "model.language: num_heads 5 must divide embed_dim 64"),
    ],
)  # fmt: skip
def test_settings_that_name_nothing_are_refused_where_they_stand(
    setting, said, lift_root, capsys, tmp_path
):
    words = ["train", "--data", str(lift_root), "--out", str(tmp_path / "run"), *TRAIN]
    assert run([*words, "--set", setting]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert setting in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["model.head.tanh_output=true", "model.normalization.actions=quantiles"],
            "model.normalization.actions: expected min_max, as head 'mlp' only reaches [-1, 1], "
            "got quantiles. Take min_max, or a head without bounds.",
        ),
        (
            ["model.vision={type: vit, patch_size: 12, embed_dim: 16}"],
            "patch_size: expected a divisor of the picture's 32 x 32 pixels, got 12. "
            "The nearest that work are 8 or 16",
        ),
        (
            ["model.chunk_size=1", "dataset.chunk_size=1"],
            "model.execution.replan_every: expected at most chunk_size = 1, got 2. "
            "Lower it, or predict longer chunks.",
        ),
        (
            ["model.chunk_size=200", "dataset.chunk_size=200"],
            "dataset.chunk_size: expected at most ",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused_before_anything_is_written(
    settings, said, lift_root, capsys, tmp_path
):
    words = ["train", "--data", str(lift_root), "--out", str(tmp_path / "run"), *TRAIN]
    assert run([*words, *[word for item in settings for word in ("--set", item)]]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_chunk_may_be_as_long_as_the_longest_episode_and_no_longer(project, tmp_path):
    data = bc_trainer.build_data(open_run(project, tmp_path).train_loader.dataset.config)[0].dataset
    table = data.index.episodes
    longest = max(data.episodes, key=lambda row: table["num_steps"][row])
    steps, name = int(table["num_steps"][longest]), table.text("path", int(longest))

    def chunks(size: int) -> Project:
        return project.replace("dataset", chunk_size=size).replace("model", chunk_size=size)

    open_run(chunks(steps), tmp_path)
    expected = f"at most {steps}, the steps of the longest episode \\({name}\\), got {steps + 1}"
    with pytest.raises(ConfigError, match=expected):
        open_run(chunks(steps + 1), tmp_path)


def test_an_instruction_that_is_too_long_is_cut_with_one_warning(project, tmp_path, caplog):
    told = project.replace("model", language={"max_text_len": 5})
    with caplog.at_level(logging.WARNING, "teamvla"):
        bc_trainer.main(told, tmp_path / "run")
    warnings = [r.getMessage() for r in caplog.records if "max_text_len" in r.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith("of instructions only the first 5 tokens are read")


# --- heads that predict nothing in training -----------------------------------------------


def left_out(project: Project, folder: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.WARNING, "teamvla"):
        start_run(project, folder / "run")
    return [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]


def test_losses_that_a_head_cannot_have_are_left_out_with_one_warning(project, tmp_path, caplog):
    ACTION_HEAD_REGISTRY["dream"] = DreamHead
    [said] = left_out(project.override(["model.head.type=dream"]), tmp_path, caplog)
    assert said == (
        "loss.sync and loss.collision left out: head 'dream' predicts no actions while it is "
        "trained. To say so: --set loss.sync=0 --set loss.collision=0"
    )


@pytest.mark.parametrize(
    "settings",
    [["model.head.type=dream", "loss.sync=0", "loss.collision=0"], ["model.head.type=mlp"]],
)
def test_without_anything_to_leave_out_nothing_is_said(settings, project, tmp_path, caplog):
    ACTION_HEAD_REGISTRY["dream"] = DreamHead
    assert left_out(project.override(settings), tmp_path, caplog) == []


def test_looking_at_the_first_loss_draws_nothing(project, tmp_path):
    open_run(project.override(["model.fusion.dropout=0.5"]), tmp_path)
    state = torch.get_rng_state()
    open_run(project.override(["model.fusion.dropout=0.5", "loss.sync=0", "loss.collision=0"]),
             tmp_path)  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)


# --- checkpoints of what is not installed -------------------------------------------------


@pytest.mark.parametrize(
    ("registry", "entry", "settings", "name"),
    [
        (MODELS, MyPolicy, ["model.type=mine"], "model 'mine'"),
        (ACTION_HEAD_REGISTRY, MyHead, ["model.head.type=mine"], "action head 'mine'"),
        (ENCODER_REGISTRY, MyEncoder, ["model.vision.type=mine"], "vision encoder 'mine'"),
        (TEXT_ENCODER_REGISTRY, MyText, ["model.language.type=mine"], "text encoder 'mine'"),
        (FUSION_REGISTRY, MyFusion, ["model.fusion.type=mine"], "fusion 'mine'"),
    ],
)
def test_a_checkpoint_of_a_part_that_is_not_installed_says_which(
    registry: Registry[Any], entry, settings, name, project, tmp_path, monkeypatch, capsys
):
    registry["mine"] = entry
    run_ = start_run(project.override(settings), tmp_path / "run")
    bc_trainer.train(run_, stop=lambda: True)
    last = run_.checkpoints / "last.ckpt"
    load_policy(last)
    monkeypatch.delitem(registry._targets, "mine")
    with pytest.raises(CheckpointError) as refused:
        load_policy(last)
    said = str(refused.value)
    assert said.startswith(f"{last}: expected the {name}, which it was made with, to be installed")
    assert "Install the package that registers it" in said
    assert run(["eval", str(last), "-n", "1"]) == 1
    assert f"the {name}" in capsys.readouterr().err
    assert run(["ckpt-inspect", str(last), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["model"]["chunk_size"] == 16


def test_a_registered_name_makes_the_same_checkpoint_usable_again(project, tmp_path):
    register_model("mine")(MyPolicy)
    run_ = start_run(project.override(["model.type=mine"]), tmp_path / "run")
    bc_trainer.train(run_, stop=lambda: True)
    policy, _ = load_policy(run_.checkpoints / "last.ckpt")
    assert isinstance(policy, MyPolicy)


# --- NaN in a batch -----------------------------------------------------------------------


class Spoil:
    """A transform that puts a value into a field of one sample."""

    def __init__(self, name: str, index: int, value: float, ahead: int = 0) -> None:
        self.name, self.index, self.value, self.ahead = name, index, value, ahead

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = np.flatnonzero(batch["index"] == self.index)
        values = batch.get(self.name, batch["observations"].get(self.name))
        where = (rows, self.ahead, 3) if self.name == "actions" else (rows, 3)
        values[where] = self.value
        return batch


@pytest.mark.parametrize("name", ["state", "actions"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_or_infinity_stops_before_the_step_and_names_the_episode(
    name, value, project, tmp_path
):
    run_ = start_run(project.replace("dataset", batch_size=10_000), tmp_path / "run")
    data = run_.train_loader.dataset
    data.transforms = (Spoil(name, 50, value, ahead=2),)
    before = {key: tensor.clone() for key, tensor in run_.learner.policy.state_dict().items()}
    path, step = data.where(50)
    with pytest.raises(EpisodeError) as refused:
        bc_trainer.train(run_)
    step += 2 * (name == "actions")
    said = str(refused.value)
    assert said.startswith(f"{path} (step {step}): expected finite numbers in a batch")
    assert f"got NaN or infinity in {name}. Look at them with `teamvla validate " in said
    # One batch holds all samples: nothing was learned at all.
    assert run_.state.step == 0
    after = run_.learner.policy.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_the_last_checkpoint_stays_when_a_batch_is_spoilt(project, tmp_path, capsys):
    run_ = start_run(project.replace("trainer", epochs=2), tmp_path / "run")
    bc_trainer.train(run_, stop=lambda: run_.state.step == 2)
    last = run_.checkpoints / "last.ckpt"
    before = last.read_bytes()
    resumed = resume_run(run_.folder)
    resumed.train_loader.dataset.transforms = (lambda batch: spoilt(batch),)
    with pytest.raises(EpisodeError) as refused:
        bc_trainer.train(resumed)
    assert "more: expected" in str(refused.value) or ", ...)" in str(refused.value)
    assert last.read_bytes() == before
    assert sorted(path.name for path in run_.checkpoints.iterdir()) == ["last.ckpt"]
    assert resumed.state.step == 2
    finished = resume_run(run_.folder)
    assert bc_trainer.train(finished)
    assert read_header(last).meta["state"]["epoch"] == 2


def spoilt(batch: dict[str, Any]) -> dict[str, Any]:
    batch["observations"]["state"][:, 0] = np.nan
    return batch


def test_a_spoilt_held_out_episode_is_named_too(project, tmp_path):
    run_ = start_run(project, tmp_path / "run")
    held_out = run_.val_loader.dataset
    held_out.transforms = (Spoil("state", 0, float("nan")),)
    with pytest.raises(EpisodeError, match=str(held_out.where(0)[0])):
        bc_trainer.train(run_)
    assert not run_.checkpoints.exists()


def test_nan_in_padding_and_large_finite_numbers_go_through():
    batch = {
        "observations": {"state": torch.full((2, 14), 3e38)},
        "actions": torch.zeros(2, 4, 14),
        "action_is_pad": torch.tensor([[False] * 4, [False, False, True, True]]),
        "index": torch.arange(2),
    }
    batch["actions"][1, 2:] = float("nan")
    assert list(sound([batch], lambda index: (Path("x"), index))) == [batch]
    batch["actions"][1, 1, 5] = float("nan")
    with pytest.raises(EpisodeError, match=r"^x \(step 2\)"):
        list(sound([batch], lambda index: (Path("x"), index)))


def test_the_place_of_a_sample_is_that_of_its_row_in_the_file(project, tmp_path):
    from teamvla.data import read_episode

    data = open_run(project, tmp_path).train_loader.dataset
    for index in (0, 1, len(data) // 2, len(data) - 1):
        path, step = data.where(index)
        fields, sample = read_episode(path).fields, data[index]
        assert np.array_equal(sample["actions"][0, :6], fields["action_a"][step])
    with pytest.raises(IndexError):
        data.where(len(data))


def test_a_checkpoint_without_types_is_still_read(project, tmp_path):
    run_ = start_run(project, tmp_path / "run")
    bc_trainer.train(run_, stop=lambda: True)
    header, arrays = read_checkpoint(run_.checkpoints / "last.ckpt")
    config = header.meta["config"]
    del config["model"]["head"]["type"]
    meta = {key: value for key, value in header.meta.items() if key != "format_version"}
    path = write_checkpoint(tmp_path / "a.ckpt", {**meta, "config": config}, arrays)
    assert load_policy(path)[0].config.head.type == "mlp"


def test_nan_is_found_in_any_observation_of_floating_numbers():
    depth = torch.zeros(2, 1, 3, 4, 4)
    depth[1, 0, 2, 3, 1] = float("nan")
    batch = {
        "observations": {"image": torch.zeros(2, 4, dtype=torch.uint8), "depth": depth},
        "actions": torch.zeros(2, 5, 3),
        "action_is_pad": torch.zeros(2, 5, dtype=torch.bool),
        "index": torch.tensor([6, 7]),
    }
    with pytest.raises(EpisodeError, match=r"data/a.npz \(step 7\): .* NaN or infinity in depth"):
        next(sound([batch], lambda index: (Path("data/a.npz"), index)))
