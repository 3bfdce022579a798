"""Checkpoints as actors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teamvla.checkpoint import read_header
from teamvla.config import Project
from teamvla.errors import CheckpointError
from teamvla.evaluation.baselines import Blind
from teamvla.models.base import Policy
from teamvla.models.loading import load_policy
from teamvla.rollout import Actor
from teamvla.sim import TwoArmEnv


@dataclass(frozen=True)
class PolicyFromCheckpoint:
    """Opens a checkpoint's policy in whatever process it is called; picklable.

    Args:
        overrides: ``--set`` items laid over the checkpoint's own configuration.
        blind: black out the pictures.
    """

    path: Path
    device: str = "cpu"
    overrides: tuple[str, ...] = ()
    blind: bool = False

    def project(self) -> Project:
        """The configuration in the checkpoint with the overrides; reads the header alone."""
        config = read_header(self.path).meta.get("config")
        if not isinstance(config, dict):
            raise CheckpointError(str(self.path), "a policy checkpoint", "no configuration in it")
        return Project.from_data(config).override(self.overrides)

    def __call__(self, env: TwoArmEnv) -> Actor:
        """The policy; ContractError if it means something else than ``env`` by its numbers."""
        policy = self._load(env)
        return Blind(policy) if self.blind else policy

    def _load(self, env: Any) -> Policy:
        import torch

        # One thread a process: a small network gains nothing from more, workers lose.
        torch.set_num_threads(1)
        policy, _ = load_policy(self.path, self.device)
        policy.contract.require(env.contract, str(self.path), "the simulator")
        return policy
