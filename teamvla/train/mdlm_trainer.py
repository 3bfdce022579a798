"""Masked diffusion trained on batches of one's own, without a dataset of this package.

`teamvla train --config train_mdlm` does the same from an index, with checkpoints and resumption.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator

import torch

from teamvla.errors import ConfigError
from teamvla.models.base import Policy
from teamvla.models.heads.masked import MaskedDiffusionHead
from teamvla.train.schedulers import (
    OptimizerConfig,
    SchedulerConfig,
    learning_rate,
    make_optimizer,
    make_scheduler,
)
from teamvla.train.trainer import (
    Batch,
    Learner,
    Metrics,
    Window,
    evaluate,
    require_finite,
    to_device,
)

#: what a policy of this kind is usually trained by
OPTIMIZER = OptimizerConfig(lr=1e-3, weight_decay=1e-4)
SCHEDULER = SchedulerConfig(type="plateau", patience=5)


class MaskedDiffusionTrainer:
    """Trains a policy whose head denoises masked actions: AdamW, lower rates on a plateau.

    Each batch masks the actions at times t ~ U[0, 1]; see
    :class:`teamvla.models.heads.masked.MaskedDiffusionHead` for the loss.

    Args:
        policy: with the head ``masked``.
        optimizer, scheduler: settings; a schedule over steps needs ``total_steps``.
        clip_norm: largest gradient norm.
        device: where it is trained.
        total_steps: of the whole training, for ``cosine_with_warmup``.

    Raises:
        ConfigError: the policy has another head, or the schedule needs ``total_steps``.
    """

    def __init__(
        self,
        policy: Policy,
        optimizer: OptimizerConfig = OPTIMIZER,
        scheduler: SchedulerConfig = SCHEDULER,
        *,
        clip_norm: float = 1.0,
        device: torch.device | str = "cpu",
        total_steps: int | None = None,
    ) -> None:
        heads = list(policy.heads)
        if not heads or not all(isinstance(head, MaskedDiffusionHead) for head in heads):
            got = ", ".join(sorted({type(head).__name__ for head in heads}))
            raise ConfigError("policy", "one with the head masked", got)
        if total_steps is None and scheduler.type == "cosine_with_warmup":
            expected = "the steps of the whole training, for a schedule over them"
            raise ConfigError("total_steps", expected, "none")
        device = torch.device(device)
        made = make_optimizer(policy.to(device), optimizer)
        schedule = make_scheduler(made, scheduler, total_steps or 1)
        self.learner = Learner(policy, made, schedule, None, device, clip_norm, autocast=False)

    def train_epoch(self, batches: Iterable[Batch]) -> Metrics:
        """Train on batches once.

        Returns:
            Means over the steps: ``loss``, ``cross_entropy``, ``accuracy``, ``mask_ratio``, ...

        Raises:
            ConfigError: there are no batches.
            TeamVLAError: the loss is not a finite number any more.
        """
        self.learner.policy.train()
        window = Window()
        for batch in batches:
            window.add(self.learner.step(to_device(batch, self.learner.device)))
        metrics = _checked(window.take() if window.count else {}, "a training epoch")
        return {**metrics, "lr": learning_rate(self.learner.optimizer)}

    def validate(self, batches: Iterable[Batch]) -> Metrics:
        """The same means without training; the schedule goes by this ``loss``.

        Raises as :meth:`train_epoch` does.
        """
        metrics = evaluate(self.learner.policy, batches, self.learner.device)
        _checked(metrics, "a validation")
        self.learner.end_epoch(metrics["loss"])
        return metrics

    def fit(
        self,
        train: Iterable[Batch],
        val: Iterable[Batch],
        epochs: int,
        on_epoch: Callable[[int, Metrics, Metrics], None] = lambda epoch, train, val: None,
    ) -> Metrics:
        """Train for some epochs and keep the weights that validated best.

        Args:
            train, val: batches as ``make_dataloader`` gives them, gone through each epoch; those
                of an iterator are kept in memory.
            epochs: passes over ``train``.
            on_epoch: told the number of each epoch and its metrics.

        Returns:
            Validation metrics of the weights that are kept.
        """
        train, val = _repeatable(train), _repeatable(val)
        best: Metrics | None = None
        weights = self.learner.policy.state_dict()
        for epoch in range(1, epochs + 1):
            trained, validated = self.train_epoch(train), self.validate(val)
            on_epoch(epoch, trained, validated)
            if best is None or validated["loss"] < best["loss"]:
                best, weights = validated, copy.deepcopy(self.learner.policy.state_dict())
        self.learner.policy.load_state_dict(weights)
        return best or {}


def _repeatable(batches: Iterable[Batch]) -> Iterable[Batch]:
    """What can be gone through each epoch: a loader as it is, as it may shuffle."""
    # Not asked by iter(), which would start the workers of a loader.
    return list(batches) if isinstance(batches, Iterator) else batches


def _checked(metrics: Metrics, where: str) -> Metrics:
    if not metrics:
        raise ConfigError("batches", "at least one", "none")
    require_finite(metrics, where)
    return metrics
