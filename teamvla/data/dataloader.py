"""Batches of tensors from the dataset, in an order that can be saved and resumed."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from teamvla.data.dataset import DatasetConfig, MultiTaskDataset
from teamvla.data.mixture import TaskMixture, check_weights
from teamvla.data.samplers import EpochBatchSampler
from teamvla.data.transforms import Transform
from teamvla.errors import InputError

if TYPE_CHECKING:
    from teamvla.data.torch_loader import BatchLoader

__all__ = ["DatasetConfig", "MultiTaskDataset", "make_dataloader"]


def make_dataloader(
    config: DatasetConfig | dict[str, Any], transforms: Sequence[Transform] = ()
) -> BatchLoader:
    """A torch DataLoader of batches of tensors; ``len`` is its batches in an epoch.

    ``loader.batch_sampler`` has ``state_dict``, ``load_state_dict`` and ``set_epoch``: loading
    a saved position goes on with exactly the batch that would have come next.

    Args:
        config: settings, or the plain data of a ``dataset`` section.
        transforms: as for :class:`MultiTaskDataset`.

    Raises:
        ImportError: torch is not installed.
        InputError: as for :class:`MultiTaskDataset`, the split is empty, or weights do not
            name the tasks that are read.
        ConfigError: bad settings, or more samples in a batch than there are with drop_last.
    """
    if importlib.util.find_spec("torch") is None:
        raise ImportError("make_dataloader needs torch; install it with: pip install torch")
    from teamvla.data.torch_loader import BatchLoader

    dataset = MultiTaskDataset(config, transforms)
    settings = dataset.config
    if not len(dataset):
        raise InputError(
            f"split {settings.split!r} of {', '.join(settings.roots)}",
            "at least one episode",
            "none",
            "Record more, or index with a larger val_fraction or test_fraction.",
        )
    sampler = EpochBatchSampler(
        len(dataset),
        settings.batch_size,
        seed=settings.seed,
        shuffle=settings.shuffle,
        drop_last=settings.drop_last,
        mixture=_mixture(dataset),
    )
    return BatchLoader(dataset, sampler, settings.num_workers)


def _mixture(dataset: MultiTaskDataset) -> TaskMixture | None:
    weights = dataset.config.weights
    if weights is None or not dataset.config.shuffle:
        return None
    samples = dataset.tasks()
    check_weights(weights, dataset.index.episodes.tasks(), [*samples])
    return TaskMixture([*samples.values()], [weights[task] for task in samples])
