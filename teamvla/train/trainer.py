"""The training loop: one readable step, and what surrounds it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from teamvla.config import Settings
from teamvla.errors import EpisodeError, TeamVLAError
from teamvla.models.base import Policy
from teamvla.train.ema import WeightAverage
from teamvla.train.schedulers import learning_rate

Batch = dict[str, Any]
Metrics = dict[str, float]
#: episodes, and steps of each, that a message names
_SHOWN = 4


class TrainerConfig(Settings):
    """Section ``trainer``."""

    epochs: int = Field(default=12, gt=0, description="Passes over the training split.")
    clip_norm: float = Field(default=1.0, gt=0, description="Largest gradient norm.")
    ema_decay: float | None = Field(
        default=0.96, gt=0, lt=1, description="Averaging of the weights; null switches it off."
    )
    ema_every: int = Field(default=4, gt=0, description="Steps between updates of the average.")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="bf16 autocast where the processor is faster with it."
    )
    threads: int | None = Field(
        default=None,
        gt=0,
        le=1024,
        description="CPU threads; null: torch's choice.",
    )
    log_every: int = Field(default=20, gt=0, description="Steps between rows of metrics.jsonl.")
    metadata: bool = Field(
        default=False, description="Whether a JSON file beside each checkpoint tells what it is."
    )
    wandb: str | None = Field(
        default=None,
        min_length=1,
        description="Project of Weights & Biases that metrics go to as well; null: none.",
    )
    save: Literal["all", "trained"] = Field(
        default="all",
        description="all, or trained: checkpoints without what is frozen, which find it in the "
        "checkpoint of --init-from.",
    )
    checkpoint_every: int = Field(default=4, gt=0, description="Epochs between epoch_N.ckpt files.")
    rollout_every: int = Field(
        default=4,
        ge=0,
        description="Epochs between ranking rollouts; 0: rank by loss.",
    )
    rollout_after: float = Field(
        default=0.5, ge=0, le=1, description="Share of the training before the first rollouts."
    )
    rollout_episodes: int = Field(
        default=20, gt=0, description="Initial states per ranking, of each task."
    )
    rollout_tasks: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Configurations whose tasks rank, by their mean success; null: section task.",
    )

    @field_validator("rollout_tasks", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("rollout_tasks")
    @classmethod
    def _each_task_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("a task stands there twice")
        return value


@dataclass
class TrainingState:
    """How far a training is. Everything here is in the checkpoint.

    Attributes:
        epoch: finished epochs.
        step: finished optimiser steps.
        samples: training samples seen.
        seconds: time spent training, over all sessions.
        best_epoch, best_success, best_val_loss: of the checkpoint that is best.ckpt.
    """

    epoch: int = 0
    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    best_epoch: int | None = None
    best_success: float | None = None
    best_val_loss: float | None = None

    def is_better(self, success: float | None, val_loss: float | None) -> bool:
        """Whether a checkpoint beats the best: by success, then by loss, then by being later.

        What was not measured ranks below everything that was.
        """
        best = (self.best_success, self.best_val_loss)
        return self.best_epoch is None or _rank(success, val_loss) >= _rank(*best)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def _rank(success: float | None, val_loss: float | None) -> tuple[float, float]:
    return (-1.0 if success is None else success, -math.inf if val_loss is None else -val_loss)


@dataclass
class Learner:
    """What a training step changes."""

    policy: Policy
    optimizer: Optimizer
    scheduler: LRScheduler
    ema: WeightAverage[Policy] | None
    device: torch.device
    clip_norm: float
    autocast: bool
    state: TrainingState = field(default_factory=TrainingState)

    @property
    def best_weights(self) -> Policy:
        """The averaged policy if there is one: what is validated, rolled out and deployed."""
        return self.policy if self.ema is None else self.ema.averaged

    def step(self, batch: Batch) -> dict[str, torch.Tensor]:
        """One optimiser step; returns the losses and the gradient norm, detached."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            losses = self.policy.loss(batch)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.policy.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step()
        self.state.step += 1
        if self.ema is not None:
            self.ema.update(self.state.step)
        self.state.samples += len(batch["language"])
        return {name: value.detach() for name, value in losses.items()} | {"grad_norm": norm}

    def end_epoch(self, val_loss: float | None) -> None:
        """Let a schedule that goes by the validation loss have a look at it."""
        if isinstance(self.scheduler, ReduceLROnPlateau) and val_loss is not None:
            self.scheduler.step(val_loss)


class Window:
    """Running means since they were last taken; reads tensors only then, not every step."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self.count = 0
        self._started = time.perf_counter()

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self.count += 1

    def take(self) -> Metrics:
        """The means and the steps per second, and start over."""
        elapsed = time.perf_counter() - self._started
        means = {name: float(total) / self.count for name, total in self._sums.items()}
        means["steps_per_s"] = self.count / elapsed
        self.__init__()  # type: ignore[misc]
        return means


def train_one_epoch(
    learner: Learner,
    batches: Iterable[Batch],
    *,
    log_every: int = 20,
    on_step: Callable[[], None] = lambda: None,
    on_metrics: Callable[[Metrics], None] = lambda metrics: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Train on what is left of an epoch, or until ``stop`` turns true.

    Args:
        batches: yields batches as ``make_dataloader`` does.
        log_every: steps between calls of ``on_metrics``, which gets means over them.
        on_step: called after every step.

    Raises:
        TeamVLAError: the loss is not a finite number any more.
    """
    learner.policy.train()
    window = Window()
    for batch in batches:
        window.add(learner.step(to_device(batch, learner.device)))
        on_step()
        if learner.state.step % log_every == 0:
            on_metrics(_checked(window.take(), learner))
        if stop():
            break
    if window.count:
        on_metrics(_checked(window.take(), learner))


def sound(batches: Iterable[Batch], where: Callable[[int], tuple[Path, int]]) -> Iterator[Batch]:
    """The batches, as long as all observations and actions in them are finite numbers.

    Args:
        batches: yields batches as ``make_dataloader`` does.
        where: tells of a sample's number its episode and step.

    Raises:
        EpisodeError: a batch holds NaN or infinity; the message names episodes and steps.
    """
    for batch in batches:
        names = (*batch["observations"], "actions")
        places = [place for name in names for place in _not_finite(batch, name)]
        if places:
            raise _unsound(places, where)
        yield batch


def _not_finite(batch: Batch, name: str) -> Iterator[tuple[str, int, int]]:
    """Name, sample number and steps from there of the values that are no finite numbers."""
    values = batch.get(name, batch["observations"].get(name))
    if values is None or not values.is_floating_point():
        return
    if math.isfinite(float(values.sum())):  # large numbers may fail the sum
        return
    bad = ~values.isfinite()
    bad = bad.any(-1) & ~batch["action_is_pad"] if name == "actions" else bad.flatten(1).any(1)
    for row, *ahead in bad.nonzero().tolist():
        yield name, int(batch["index"][row]), sum(ahead)


def _unsound(
    places: Sequence[tuple[str, int, int]], where: Callable[[int], tuple[Path, int]]
) -> EpisodeError:
    found: dict[str, set[int]] = {}
    for _, index, ahead in places:
        path, step = where(index)
        found.setdefault(str(path), set()).add(step + ahead)
    lines = [
        f"{path} (step {', '.join(map(str, sorted(steps)[:_SHOWN]))}"
        f"{', ...' if len(steps) > _SHOWN else ''})"
        for path, steps in sorted(found.items())
    ]
    more = [f"{len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else []
    roots = sorted({str(Path(path).parent) for path in found})
    return EpisodeError(
        ", ".join(lines[:_SHOWN] + more),
        "finite numbers in a batch",
        f"NaN or infinity in {' and '.join(dict.fromkeys(name for name, *_ in places))}",
        f"Look at them with `teamvla validate {roots[0]}`; if they are sound, a transform is not.",
    )


def _checked(metrics: Metrics, learner: Learner) -> Metrics:
    require_finite(metrics, f"training step {learner.state.step}")
    return {**metrics, "lr": learning_rate(learner.optimizer)}


def require_finite(metrics: Metrics, where: str) -> None:
    """TeamVLAError if any of the metrics is not a finite number."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TeamVLAError(
                where, f"a finite {name}", str(value),
                "Lower optimizer.lr, or look at the data with `teamvla validate`.",
            )  # fmt: skip


@torch.inference_mode()
def evaluate(policy: Policy, batches: Iterable[Batch], device: torch.device) -> Metrics:
    """Mean losses over a split, each sample weighted alike, without augmentation or dropout."""
    policy.eval()
    sums: dict[str, float] = {}
    count = 0
    for batch in batches:
        size = len(batch["language"])
        for name, value in policy.loss(to_device(batch, device)).items():
            sums[name] = sums.get(name, 0.0) + size * float(value)
        count += size
    return {name: total / count for name, total in sums.items()}


def to_device(value: Any, device: torch.device) -> Any:
    """Tensors inside dicts moved to ``device``; everything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return value


def wants_bf16(precision: str, device: torch.device) -> bool:
    """Whether to autocast: asked for, or ``auto`` on hardware that multiplies bf16."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
