"""Checkpoints as actors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from teamvla.checkpoint import read_header
from teamvla.config import Project
from teamvla.config.differences import differences
from teamvla.errors import ConfigError, RegistryError
from teamvla.evaluation.baselines import BASELINES, Blind, Deaf
from teamvla.models.base import Policy, PolicyConfig
from teamvla.models.device import one_thread
from teamvla.models.loading import config_of, load_policy
from teamvla.record.guards import open_expert
from teamvla.registry import did_you_mean
from teamvla.rollout import Actor, Observation
from teamvla.sim import RobotEnv


@dataclass(frozen=True)
class PolicyFromCheckpoint:
    """Opens a checkpoint's policy in whatever process it is called; picklable.

    Args:
        overrides: ``--set`` items laid over the checkpoint's own configuration.
        blind: black out the pictures.
        deaf: leave the instruction out.
    """

    path: Path
    device: str = "cpu"
    overrides: tuple[str, ...] = ()
    blind: bool = False
    deaf: bool = False

    def project(self) -> Project:
        """The configuration in the checkpoint with the overrides; reads the header alone.

        Raises:
            CheckpointError: it holds no configuration that can be used.
            ConfigError: an override is wrong, or would make it another model.
        """
        own = config_of(read_header(self.path))
        project = own.override(self.overrides)
        before, after = (p.section("model", PolicyConfig) for p in (own, project))
        other = differences(before.fixed(), after.fixed())
        if other:
            named = ", ".join(f"model.{name}" for name in before.adjustable)
            raise ConfigError(
                "--set model", f"a change of {named} at most",
                f"another model ({'; '.join(other[:3])})",
                "What was trained cannot be changed; how it acts can.",
            )  # fmt: skip
        return project

    def tasks(self) -> tuple[str, ...]:
        """The tasks in its training data; empty if the checkpoint does not tell."""
        tasks = read_header(self.path).meta.get("tasks")
        return tuple(map(str, tasks)) if isinstance(tasks, list) else ()

    def __call__(self, env: RobotEnv) -> Actor:
        """The policy; ContractError if it means something else than ``env`` by its numbers."""
        policy, _ = load_policy(self.path, self.device)
        policy.contract.require(env.contract, str(self.path), "the simulator")
        policy.adjust(self.project().section("model", PolicyConfig))
        actor: Actor = OnOneThread(policy)
        actor = Blind(actor) if self.blind else actor
        return Deaf(actor) if self.deaf else actor


@dataclass(frozen=True)
class NamedActor:
    """Opens an actor that needs no checkpoint: ``expert``, ``nothing``, ``random``, or a class of
    your own, ``module:Class``, which is called with the environment. Picklable.

    Raises:
        RegistryError: there is no actor of that name.
    """

    name: str

    def __post_init__(self) -> None:
        if self.name not in BASELINES and ":" not in self.name:
            known = did_you_mean(self.name, [*BASELINES])
            expected = f"{', '.join(BASELINES)} or MODULE:CLASS"
            raise RegistryError(f"actor {self.name!r}", expected, "none of them", known)

    def __call__(self, env: RobotEnv) -> Actor:
        """The actor; ConfigError if its class cannot be imported or made."""
        if self.name in BASELINES:
            return BASELINES[self.name](env)
        return open_expert(env, self.name, "actor")


class OnOneThread:
    """A policy that acts on one CPU thread, with the same result in any process.

    A small network gains nothing from more, and the number of threads can change last bits.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def reset(self) -> None:
        self._policy.reset()

    def act(self, observation: Observation) -> Sequence[np.ndarray]:
        with one_thread():
            return self._policy.act(observation)
