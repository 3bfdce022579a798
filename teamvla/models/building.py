"""Policies with fresh weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from teamvla.contract import Contract
from teamvla.models.adaptation import adapt
from teamvla.models.base import Policy, PolicyConfig, policy_kind
from teamvla.models.losses import LossConfig
from teamvla.models.pretrained.settings import completed
from teamvla.models.spaces import Spaces
from teamvla.seeds import Domain, integer


def build_policy(
    config: PolicyConfig,
    contract: Contract | Spaces,
    statistics: Mapping[str, Any] | None = None,
    loss: LossConfig | None = None,
    *,
    seed: int = 0,
) -> Policy:
    """A policy with fresh weights, which depend on ``seed`` and nothing else.

    Args:
        config: settings; their ``type`` names the model.
        contract: what the numbers of data and environment mean; or plain sizes.
        statistics: normalisation statistics of the training split.
        loss: weights of sync and collision.
        seed: of the weights.

    Raises:
        RegistryError: there is no such model, or it is no policy.
        ContractError: the statistics do not fit the contract.
        ConfigError: ``config.adaptation`` names what it does not have.
        MissingDependencyError: low-rank adapters, without peft.
    """
    kind, config = policy_kind(config.type), completed(config)
    # Weights made in inference mode could never be trained, nor tell that they were written.
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer(seed, Domain.INITIALISE))
        policy = kind(config, contract, statistics, loss)
        adapt(policy, config.adaptation)
        return policy
