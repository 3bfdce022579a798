"""Heads for an action, or for each part of it."""

from __future__ import annotations

import logging
from typing import Any

from teamvla.errors import ConfigError
from teamvla.models.heads.base import ActionHead, HeadConfig
from teamvla.models.normalization import NormalizationConfig
from teamvla.models.registries import ACTION_HEAD_REGISTRY
from teamvla.models.spaces import Spaces

_LOG = logging.getLogger(__name__)


def make_heads(
    config: HeadConfig, spaces: Spaces, input_dim: int, chunk_size: int, separate: bool
) -> list[ActionHead]:
    """One head for the joined action, or one for each part of it.

    Raises:
        ConfigError: there are choices, and the head gives real numbers.
    """
    kind, heads = ACTION_HEAD_REGISTRY.get(config.type), []
    for group in spaces.action_groups if separate else [spaces.whole_action]:
        # Heads of others may know of no choices.
        besides: dict[str, Any] = {"choices": group.choices} if group.choices else {}
        sizes = (input_dim, group.size, chunk_size)
        heads.append(kind(*sizes, grippers=group.grippers, config=config, **besides))
    return heads


def require_reach(heads: list[ActionHead], config: NormalizationConfig, fitted: bool) -> None:
    """Refuse heads that cannot reach all actions, as they are normalised.

    Args:
        fitted: whether there are statistics.

    Raises:
        ConfigError: there are actions outside what they can give.
    """
    bounded = [head.config.type for head in heads if head.bounded]
    if bounded and config.actions != "min_max":
        raise ConfigError(
            "model.normalization.actions",
            f"min_max, as head {bounded[0]!r} only reaches [-1, 1]",
            config.actions,
            "Take min_max, or a head without bounds.",
        )
    if bounded and not fitted:
        _LOG.warning(
            "head %r only reaches [-1, 1], and without statistics that is taken for rad", bounded[0]
        )
