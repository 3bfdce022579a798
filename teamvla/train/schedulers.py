"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from teamvla.config import Settings
from teamvla.errors import ConfigError
from teamvla.models.adaptation import matching

Decay = Annotated[float, Field(ge=0, lt=1)]


class GroupConfig(Settings):
    """Parameters that are trained otherwise than the rest."""

    pattern: str = Field(description="Of their full names, as `vision.*`; the first that fits.")
    lr_scale: float = Field(default=1.0, gt=0, description="Their learning rate, of the others'.")
    weight_decay: float | None = Field(
        default=None, ge=0, description="On their matrices; null: as of the others."
    )


class OptimizerConfig(Settings):
    """Section ``optimizer``."""

    type: Literal["adamw", "sgd"] = Field(default="adamw", description="adamw or sgd.")
    lr: float = Field(default=7e-4, gt=0, description="Peak learning rate.")
    weight_decay: float = Field(default=1e-4, ge=0, description="On matrices alone.")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="AdamW's moment decays.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD's momentum.")
    groups: tuple[GroupConfig, ...] = Field(
        default=(),
        description="Parameters trained otherwise, each {pattern, lr_scale, weight_decay}.",
    )


class SchedulerConfig(Settings):
    """Section ``scheduler``."""

    type: Literal["cosine_with_warmup", "constant", "plateau"] = Field(
        default="cosine_with_warmup",
        description="cosine_with_warmup, constant, or plateau: lower where the validation loss "
        "stays what it was.",
    )
    warmup_steps: int = Field(
        default=200, ge=0, description="Steps of linear rise from zero; plateau has none."
    )
    min_ratio: float = Field(
        default=0.0, ge=0, le=1, description="End of the cosine, or of plateau, of the peak."
    )
    patience: int = Field(
        default=5, ge=0, description="plateau: epochs without a better loss before it is lowered."
    )
    factor: float = Field(default=0.5, gt=0, lt=1, description="plateau: by which it is lowered.")


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimiser over a model's trainable parameters; weight decay on matrices alone.

    Raises:
        ConfigError: nothing is trained, or a group's pattern matches nothing that is.
    """
    groups = parameter_groups(model, config)
    parameters = [p for group in groups for p in group["params"]]
    if config.type == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum)
    # The fused kernel does the same arithmetic in one pass; on a CPU it saves a few ms a step.
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    return AdamW(groups, lr=config.lr, betas=config.betas, fused=fused)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """What is trained, in torch's groups: matrices and the rest, first those of no pattern."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ConfigError(
            "optimizer", "parameters to train", "none",
            "model.adaptation.freeze names all of them: leave some out.",
        )  # fmt: skip
    matching([group.pattern for group in config.groups], trained, "optimizer.groups")
    members: list[list[nn.Parameter]] = [[] for _ in range(len(config.groups) + 1)]
    for name, parameter in trained.items():
        members[_place(name, config.groups)].append(parameter)
    groups = []
    for group, parameters in zip([None, *config.groups], members, strict=True):
        own = None if group is None else group.weight_decay
        decay = config.weight_decay if own is None else own
        lr = config.lr * (1.0 if group is None else group.lr_scale)
        matrices = [p for p in parameters if p.ndim >= 2]
        others = [p for p in parameters if p.ndim < 2]
        groups.append({"params": matrices, "weight_decay": decay, "lr": lr})
        groups.append({"params": others, "weight_decay": 0.0, "lr": lr})
    return groups


def _place(name: str, groups: Sequence[GroupConfig]) -> int:
    """1 for the first group that has a parameter of this name, ...; 0 for none."""
    fits = (n for n, group in enumerate(groups, 1) if fnmatchcase(name, group.pattern))
    return next(fits, 0)


def cosine_with_warmup(
    optimizer: Optimizer, warmup_steps: int, total_steps: int, min_ratio: float = 0.0
) -> LambdaLR:
    """Linear warm-up, then half a cosine down to ``min_ratio`` at ``total_steps``."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        share = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * share))

    return LambdaLR(optimizer, factor)


def make_scheduler(optimizer: Optimizer, config: SchedulerConfig, total_steps: int) -> LRScheduler:
    """The schedule that ``config`` names, over ``total_steps`` optimiser steps."""
    if config.type == "plateau":
        least = [config.min_ratio * group["lr"] for group in optimizer.param_groups]
        return ReduceLROnPlateau(
            optimizer, factor=config.factor, patience=config.patience, min_lr=least
        )
    warmup = min(config.warmup_steps, total_steps // 4)
    floor = 1.0 if config.type == "constant" else config.min_ratio
    return cosine_with_warmup(optimizer, warmup, total_steps, floor)


def learning_rate(optimizer: Optimizer) -> float:
    """The learning rate of the first group."""
    rate = optimizer.param_groups[0]["lr"]
    return float(rate.item() if isinstance(rate, torch.Tensor) else rate)


def schedule_state(scheduler: LRScheduler) -> dict[str, Any]:
    """How far a schedule is, as JSON-able data."""
    state: dict[str, Any] = {"step": scheduler.last_epoch}
    if isinstance(scheduler, ReduceLROnPlateau):
        best = scheduler.best if math.isfinite(scheduler.best) else None
        state |= {"best": best, "bad_epochs": scheduler.num_bad_epochs}
    return state


def restore_schedule(
    scheduler: LRScheduler, saved: Mapping[str, Any], rates: Sequence[float]
) -> None:
    """Put a schedule where :func:`schedule_state` found it, with these learning rates."""
    step = int(saved["step"])
    state = {**scheduler.state_dict(), "last_epoch": step, "_last_lr": [*rates]}
    if isinstance(scheduler, ReduceLROnPlateau):
        best = math.inf if saved["best"] is None else float(saved["best"])
        state |= {"best": best, "num_bad_epochs": int(saved["bad_epochs"])}
    else:
        state["_step_count"] = step + 1
    scheduler.load_state_dict(state)
