"""Every shipped configuration of a model: trained, loaded again, and evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL

from teamvla.cli.app import run
from teamvla.config import Project
from teamvla.models import Policy
from teamvla.models.loading import load_policy
from teamvla.train import bc_trainer

ROOT = Path(__file__).parent.parent
#: needs weights of somebody else's: tests/test_vla_model.py
ELSEWHERE = {"vla_model"}
#: what a robot with two arms lacks
WITHOUT = {"multi_sensor": ("model.sensors=null",)}
FILES = (ROOT / "configs" / "model").glob("*.yaml")
NAMES = sorted(path.stem for path in FILES if path.stem not in ELSEWHERE)


def predicted(policy: Policy, batch: Mapping[str, Any]) -> torch.Tensor:
    return policy.eval().predict_action_chunk(batch["observations"], batch["language"])


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_model_is_trained_loaded_and_evaluated(name, lift_root, tmp_path):
    settings = (*SMALL, *WITHOUT.get(name, ()), "trainer.epochs=1", "task.max_steps=5")
    project = Project.load(f"model/{name}", settings).replace("dataset", roots=[str(lift_root)])
    trained = bc_trainer.main(project, tmp_path / "run")
    batch, learner = next(iter(trained.train_loader)), trained.learner
    averaged = predicted(learner.best_weights, batch)
    assert not torch.equal(averaged, predicted(learner.policy, batch))

    best = trained.checkpoints / "best.ckpt"
    assert torch.equal(predicted(load_policy(best)[0], batch), averaged)
    words = ["eval", str(best), "-n", "1", "--no-pictures", "-q", "--out", str(tmp_path / "out")]
    assert run(words) == 0
