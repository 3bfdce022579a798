"""The torch side of reading: batches as tensors, and the position in the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from teamvla.data.samplers import EpochBatchSampler
from teamvla.interrupts import leave_to_parent
from teamvla.seeds import Domain, integer


class BatchLoader(DataLoader[dict[str, Any]]):
    """Batches of tensors; iterating goes from the sampler's position to the epoch's end.

    It draws from a generator of its own: neither its use nor its worker count touches the
    global random state.
    """

    dataset: Any  #: a MultiTaskDataset
    batch_sampler: EpochBatchSampler

    def __init__(self, dataset: Any, sampler: EpochBatchSampler, num_workers: int = 0) -> None:
        generator = torch.Generator().manual_seed(integer(sampler.seed, Domain.ORDER))
        super().__init__(
            dataset,
            batch_sampler=sampler,
            num_workers=num_workers,
            collate_fn=to_tensors,
            generator=generator,
            worker_init_fn=leave_to_parent,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        for batch in super().__iter__():
            # Counted where a batch is handed over: the sampler itself may be read ahead.
            self.batch_sampler.advance()
            yield batch


def to_tensors(batch: Any) -> Any:
    """Arrays as tensors of the same memory; everything else as it is."""
    if isinstance(batch, dict):
        return {name: to_tensors(value) for name, value in batch.items()}
    return torch.from_numpy(batch) if isinstance(batch, np.ndarray) else batch
