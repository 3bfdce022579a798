"""What lies beside the weights of a published OpenVLA: ranges of actions, and parts of OFT."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from teamvla.errors import ConfigError
from teamvla.models.normalization import Normalizer
from teamvla.models.openvla.heads import ParallelHead
from teamvla.models.openvla.layout import Layout, Rename, read_config, read_json
from teamvla.models.spaces import Spaces
from teamvla.registry import did_you_mean

_LOG = logging.getLogger(__name__)
_STATISTICS = "dataset_statistics.json"
#: of the files of OpenVLA-OFT, whose names tell the step of training too
_HEAD, _STATE = "action_head", "proprio_projector"
_HEAD_LAYOUT = Layout(
    [
        Rename("model.mlp_resnet_blocks.{n}.ffn.0.{w}", ("model.blocks.{n}.0.{w}",)),
        Rename("model.mlp_resnet_blocks.{n}.ffn.1.{w}", ("model.blocks.{n}.1.{w}",)),
        Rename("model.{rest}", ("model.{rest}",)),
    ]
)
_STATE_LAYOUT = Layout([Rename("{rest}", ("{rest}",))])


def load_finetuned_parts(head: nn.Module, state: nn.Module | None, folder: Path) -> None:
    """Take over the head and the state's projector of OpenVLA-OFT where a folder has them.

    Parts for another robot, whose action or state is of another length, stay as they are.

    Raises:
        ConfigError: there are several of a part, or one is damaged.
    """
    if isinstance(head, ParallelHead):
        _load_part(head, _HEAD_LAYOUT, folder, _HEAD)
    if state is not None:
        _load_part(state, _STATE_LAYOUT, folder, _STATE)


def save_finetuned_parts(head: nn.Module, state: nn.Module | None, folder: Path) -> None:
    """Write what :func:`load_finetuned_parts` reads."""
    if isinstance(head, ParallelHead):
        _save_part(_HEAD_LAYOUT.outward(head.state_dict()), folder, _HEAD)
    if state is not None:
        _save_part(_STATE_LAYOUT.outward(state.state_dict()), folder, _STATE)


def _save_part(theirs: Mapping[str, Tensor], folder: Path, name: str) -> None:
    torch.save(dict(theirs), folder / f"{name}--latest_checkpoint.pt")


def _load_part(part: nn.Module, layout: Layout, folder: Path, name: str) -> None:
    files = sorted(folder.glob(f"{name}--*checkpoint.pt"))
    if not files:
        return
    if len(files) > 1:
        raise ConfigError(str(folder), f"one {name}", ", ".join(file.name for file in files))
    theirs = _read_part(files[0])
    own, ours = part.state_dict(), dict(layout.inward(theirs.items(), str(files[0])))
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in ours.items()}:
        _LOG.warning("%s is for another robot or chunk: that part starts afresh", files[0])
        return
    layout.fill(part, theirs.items(), str(files[0]))


def _read_part(path: Path) -> dict[str, Tensor]:
    try:
        theirs = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise types of their own
        raise ConfigError(str(path), "tensors that torch saved", type(error).__name__) from None
    if not isinstance(theirs, dict) or not all(isinstance(t, Tensor) for t in theirs.values()):
        raise ConfigError(str(path), "tensors by name", type(theirs).__name__)
    return {str(name).removeprefix("module."): tensor for name, tensor in theirs.items()}


def take_statistics(normalizer: Normalizer, spaces: Spaces, folder: Path, key: str) -> None:
    """Let a policy scale as a published one does: q01 to -1, q99 to 1, or not where it is masked.

    The state is scaled so too where the folder has statistics of one of its length.

    Raises:
        ConfigError: there are none under this name, or of other lengths.
    """
    path = folder / _STATISTICS
    known = read_json(path) if path.is_file() else read_config(folder).get("norm_stats") or {}
    if key not in known:
        mend = did_you_mean(key, list(known))
        raise ConfigError("model.unnorm_key", f"statistics in {folder}", repr(key), mend)
    center, scale = _range(known[key].get("action"), spaces.action_dim, f"{path}: {key}")
    normalizer.action_center.copy_(center)
    normalizer.action_scale.copy_(scale)
    felt = known[key].get("proprio")
    if isinstance(felt, Mapping) and len(felt.get("q01", ())) == spaces.state_dim > 0:
        center, scale = _range(felt, spaces.state_dim, f"{path}: {key}")
        normalizer.state_mean.copy_(center)
        normalizer.state_std.copy_(scale)


def statistics_of(normalizer: Normalizer) -> dict[str, Any]:
    """The ranges of a policy as published ones have theirs, under the name ``teamvla``."""
    pairs = {
        "action": (normalizer.action_center, normalizer.action_scale),
        "proprio": (normalizer.state_mean, normalizer.state_std),
    }
    return {
        "teamvla": {
            name: {
                "q01": (center - scale).tolist(),
                "q99": (center + scale).tolist(),
                "mask": [True] * len(center),
            }
            for name, (center, scale) in pairs.items()
        }
    }


def _range(given: Any, dim: int, where: str) -> tuple[Tensor, Tensor]:
    try:
        low, high = (torch.tensor(given[name], dtype=torch.float64) for name in ("q01", "q99"))
        mask = torch.tensor(given.get("mask", [True] * dim), dtype=torch.bool)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(where, f"q01 and q99 of {dim} numbers", "something else") from None
    if {low.shape, high.shape, mask.shape} != {torch.Size([dim])}:
        got = f"{len(low)}" if low.dim() == 1 else "none"
        mend = "Leave model.unnorm_key out, to take the ranges of the data."
        raise ConfigError(where, f"ranges of {dim} numbers", got, mend)
    center, scale = (low + high) / 2, (high - low) / 2
    return (
        torch.where(mask, center, 0.0).float(),
        # A number that never moved is scaled by nothing else than 0, which cannot be undone.
        torch.where(mask & (scale > 0), scale, 1.0).float(),
    )
