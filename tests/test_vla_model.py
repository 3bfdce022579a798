"""The policy around pretrained models, with tiny ones through the real path."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from pretrained_models import LLMS, save_llm, save_vision
from small_policies import (
    CHUNK,
    CONTRACT,
    DIM,
    HEADS,
    STATISTICS,
    make_batch,
    rows_of,
    small_head,
    train,
)

from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.models import LossConfig, Policy, build_policy
from teamvla.models.base import PolicyConfig
from teamvla.models.loading import from_arrays, load_policy, to_arrays
from teamvla.models.pretrained import weights_follow
from teamvla.models.vla_model import VLAModel, VLAModelConfig
from teamvla.train import bc_trainer
from teamvla.train.runs import resume_run

pytest.importorskip("transformers")
every_head = pytest.mark.parametrize("head", HEADS)
PROJECTORS = {
    "mlp": {"type": "mlp"},
    "attention_pooling": {"type": "attention_pooling", "num_queries": 4, "num_heads": 4},
    "perceiver": {
        "type": "perceiver", "num_latents": 4, "num_layers": 1, "hidden_dim": 16, "num_heads": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny encoder of pictures and tiny language models."""
    root = tmp_path_factory.mktemp("models")
    save_vision("siglip", root / "siglip")
    for name in LLMS:
        save_llm(name, root / name)
    return root


def make(models: Path, head: str = "mlp", **changes: Any) -> Policy:
    """A small policy; of its pretrained parts only the language model is trained."""
    data = {
        "chunk_size": CHUNK,
        "vision": {"model_name": str(models / "siglip")},
        "llm": {"model_name": str(models / "qwen2")},
        "head": small_head(head),
        **changes,
    }
    config = VLAModelConfig.model_validate(data)
    return build_policy(config, CONTRACT, STATISTICS, LossConfig(collision=0))


def predicted(policy: Policy, batch: dict[str, Any]) -> torch.Tensor:
    chunk = policy.predict_action_chunk(batch["observations"], batch["language"])
    assert chunk.shape == (len(batch["language"]), policy.config.chunk_size, DIM)
    assert chunk.isfinite().all()
    return chunk


@every_head
def test_a_finite_gradient_reaches_what_is_trained_and_nothing_else(head, models):
    torch.manual_seed(0)
    policy, batch = make(models, head), make_batch()
    train(policy, batch)  # blocks that start as the identity pass nothing on at first
    policy.train().loss(batch)["loss"].backward()
    for name, parameter in policy.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    frozen = {name.split(".")[0] for name, p in policy.named_parameters() if not p.requires_grad}
    assert frozen == {"vision"}


@every_head
def test_weights_that_were_saved_and_loaded_give_the_same_bits(head, models):
    torch.manual_seed(0)
    policy, batch = make(models, head), make_batch()
    train(policy, batch)
    with weights_follow():
        other = build_policy(policy.config, CONTRACT, None, seed=9).eval()
    other.load_state_dict(from_arrays("model", to_arrays("model", policy.state_dict())))
    assert torch.equal(predicted(other, batch), predicted(policy, batch))


@every_head
def test_a_batch_gets_what_its_rows_get_alone(head, models):
    policy, batch = make(models, head).eval(), make_batch()
    alone = torch.cat([predicted(policy, rows_of(batch, row)) for row in range(3)])
    torch.testing.assert_close(predicted(policy, batch), alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["causal", "prefix"])
@pytest.mark.parametrize("llm", LLMS)
def test_every_language_model_sees_reads_and_feels(llm, attention, models):
    settings = {"model_name": str(models / llm), "attention": attention}
    policy, batch = make(models, llm=settings).eval(), make_batch(1)
    before = predicted(policy, batch)
    for name, value in batch["observations"].items():
        changed = 255 - value if name == "image" else -value
        other = {**batch, "observations": {**batch["observations"], name: changed}}
        assert not torch.allclose(predicted(policy, other), before, atol=1e-5), name
    assert not torch.allclose(predicted(policy, {**batch, "language": ["hold"]}), before, atol=1e-5)


@pytest.mark.parametrize("projector", PROJECTORS)
def test_every_projector_brings_the_pictures_to_it(projector, models):
    policy, batch = make(models, projector=PROJECTORS[projector]).eval(), make_batch(2)
    kept = 4 if "num" in str(PROJECTORS[projector]) else 16
    features = policy.encode(batch)[0]
    assert features.tokens.values.shape[1] == 2 * kept + 3 + 1 + 1
    assert not torch.equal(*predicted(policy, batch))


def test_encoders_of_our_own_see_for_it_too(models):
    policy, batch = make(models, vision={"type": "cnn", "width": 8, "grid": 4}), make_batch()
    policy.train().loss(batch)["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.parameters())


@pytest.mark.parametrize("missing", ["vision", "use_state"])
def test_it_goes_without_pictures_or_state(missing, models):
    policy = make(models, **{missing: None if missing == "vision" else False}).eval()
    assert not torch.equal(*predicted(policy, make_batch(2)))


def test_frozen_models_stay_as_they_are(models):
    frozen = {"model_name": str(models / "qwen2"), "freeze": True}
    policy, batch = make(models, llm=frozen), make_batch()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    train(policy, batch, steps=3)
    policy.requires_grad_(True).train()
    policy.vision.keep_frozen()
    policy.llm.keep_frozen()
    pretrained = [*policy.vision.model.parameters(), *policy.llm.parameters()]
    assert not any(parameter.requires_grad for parameter in pretrained)
    parts = [*policy.vision.model.modules(), *policy.llm.model.modules()]
    assert not any(part.training for part in parts)
    changed = {n for n, value in policy.state_dict().items() if not torch.equal(value, before[n])}
    assert {name.split(".")[0] for name in changed} == {
        "action", "cameras", "places", "projector", "from_state", "norm", "heads",
    }  # fmt: skip


def test_bf16_weights_go_through_a_checkpoint_unchanged(models):
    settings = {"model_name": str(models / "qwen2"), "freeze": True, "dtype": "bf16"}
    policy, batch = make(models, llm=settings).eval(), make_batch()
    assert policy.llm.model.norm.weight.dtype == torch.bfloat16
    with weights_follow():
        other = build_policy(policy.config, CONTRACT, None).eval()
    other.load_state_dict(from_arrays("model", to_arrays("model", policy.state_dict())))
    assert torch.equal(predicted(other, batch), predicted(policy, batch))


def test_it_learns_a_batch(models):
    torch.manual_seed(0)
    policy, batch = make(models), make_batch()
    wrong = predicted(train(policy, batch, 120, lr=3e-3), batch) - batch["actions"]
    kept = ~batch["action_is_pad"].unsqueeze(-1)
    assert float((wrong.abs() * kept).sum() / (kept.sum() * DIM)) < 0.08


def test_it_acts_in_an_environment(models):
    policy = make(models).eval()
    policy.reset()
    pictures = {f"rgb_{arm}": np.zeros((32, 32, 3), np.uint8) for arm in "ab"}
    joints = {f"q_{arm}": np.zeros(6, np.float32) for arm in "ab"}
    grips = {f"grip_q_{arm}": np.float32(0) for arm in "ab"}
    actions = policy.act({**pictures, **joints, **grips, "instruction": "lift the tray"})
    assert [action.shape for action in actions] == [(7,)] * 2
    assert all(np.isfinite(action).all() for action in actions)


# Through the command line's trainer, and checkpoints that need no folder.


def project(models: Path, root: Path, config: str, *settings: str) -> Project:
    small = ("trainer.epochs=2", "task.max_steps=5", *settings)
    return Project.load(config, (*SMALL, *small)).replace("dataset", roots=[str(root)])


@pytest.fixture
def own_models(tmp_path: Path) -> Path:
    """Models that a test may remove."""
    save_vision("siglip", tmp_path / "models" / "siglip")
    save_llm("qwen2", tmp_path / "models" / "qwen2")
    return tmp_path / "models"


def test_it_is_trained_resumed_loaded_and_evaluated_from_yaml(lift_root, own_models, tmp_path):
    settings = (
        f"model.vision.model_name={own_models / 'siglip'}", "model.vision.image_size=16",
        f"model.llm.model_name={own_models / 'qwen2'}", "model.projector.num_latents=2",
        "model.projector.hidden_dim=16", "model.head.type=flow", "optimizer.lr=1e-3",
    )  # fmt: skip
    given = project(own_models, lift_root, "model/vla_model", *settings)
    trained = bc_trainer.main(given, tmp_path / "run")
    batch = next(iter(trained.train_loader))
    policy = trained.learner.policy.eval()
    assert isinstance(policy, VLAModel)
    shutil.rmtree(own_models)

    best = trained.checkpoints / "best.ckpt"
    last, header = load_policy(trained.checkpoints / "last.ckpt")
    assert torch.equal(predicted(last, batch), predicted(policy, batch))
    assert header.meta["config"]["model"]["llm"]["architecture"]["model_type"] == "qwen2"
    resumed = resume_run(tmp_path / "run")
    assert torch.equal(predicted(resumed.learner.policy.eval(), batch), predicted(policy, batch))
    words = ["eval", str(best), "-n", "1", "--no-pictures", "-q", "--out", str(tmp_path / "out")]
    assert run(words) == 0


def test_any_policy_may_have_a_pretrained_encoder(lift_root, own_models, tmp_path):
    vision = f"{{type: pretrained, model_name: {own_models / 'siglip'}, image_size: 16}}"
    given = project(own_models, lift_root, "train_bc", f"model.vision={vision}")
    trained = bc_trainer.main(given, tmp_path / "run")
    batch = next(iter(trained.train_loader))
    shutil.rmtree(own_models)
    loaded, _ = load_policy(trained.checkpoints / "last.ckpt")
    averaged = trained.learner.best_weights.eval()
    assert torch.equal(predicted(loaded, batch), predicted(averaged, batch))


def test_settings_of_another_model_are_refused_with_what_was_kept(models):
    kept = make(models).config.llm.architecture
    other = {"model_name": str(models / "llama3"), "architecture": kept}
    with pytest.raises(Exception, match=r"model_type llama, as in its folder, got qwen2"):
        make(models, llm=other)


def test_its_settings_survive_json(models):
    config = make(models).config
    kind = PolicyConfig.choose({"type": "vla_model"})
    assert kind.model_validate(config.model_dump(mode="json")) == config
