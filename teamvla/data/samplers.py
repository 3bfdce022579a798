"""The order of the samples: a function of (seed, epoch), with a position that can be saved."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from teamvla.data.mixture import TaskMixture
from teamvla.errors import CheckpointError, ConfigError
from teamvla.seeds import Domain, generator


class EpochRows(list[int]):
    """The sample numbers of one batch, the epoch they are drawn in, and those that come next.

    They travel with the request, so that in a worker process augmentation can depend on the
    epoch, and reading ahead on what follows, without any state to be kept in step.
    """

    def __init__(self, rows: list[int], epoch: int, following: list[int] | None = None) -> None:
        super().__init__(rows)
        self.epoch, self.following = epoch, following or []

    def __reduce__(self) -> tuple[object, ...]:
        return (EpochRows, (list(self), self.epoch, self.following))


class EpochBatchSampler:
    """Batches of sample numbers in an order that depends on (seed, epoch) alone.

    Iterating goes from the saved position to the end of the epoch. The position moves
    when :meth:`advance` tells that a batch was used (the loader of ``make_dataloader``
    does), not when one is handed out: workers read ahead. After an epoch's last
    batch the position is the start of the next epoch.

    Args:
        size: number of samples.
        batch_size: samples in a batch.
        shuffle: whether to permute; otherwise every epoch runs from first to last.
        drop_last: whether to leave out a last batch that is not full.
        mixture: draws the samples of a shuffled epoch; without it, each comes once.

    Raises:
        ConfigError: not even one batch.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool,
        mixture: TaskMixture | None = None,
    ) -> None:
        self.mixture = mixture
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.epoch = self.consumed = 0
        if not len(self):
            raise ConfigError(
                "dataset.batch_size",
                f"at most the {size} samples there are, as drop_last is set",
                str(batch_size),
                "Record more episodes, or lower it.",
            )

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[EpochRows]:
        epoch, order = self.epoch, self.order(self.epoch)
        size, batches = self.batch_size, range(self.consumed, len(self))
        following: list[int] = order[batches.start * size :][:size].tolist()
        for batch in batches:
            rows, following = following, order[(batch + 1) * size :][:size].tolist()
            yield EpochRows(rows, epoch, following)

    def order(self, epoch: int) -> np.ndarray:
        """The sample numbers of an epoch, int64 [size]."""
        if not self.shuffle:
            return np.arange(self.size)
        if self.mixture is not None:
            return self.mixture.order(self.seed, epoch)
        return generator(self.seed, Domain.ORDER, epoch).permutation(self.size)

    def advance(self) -> None:
        """Count one batch as used."""
        self.consumed += 1
        if self.consumed >= len(self):
            self.epoch, self.consumed = self.epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Start ``epoch``; if it is under way already, go on with it where it stands."""
        if epoch != self.epoch:
            self.epoch, self.consumed = epoch, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "consumed": self.consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position; CheckpointError if the epoch has no such batch."""
        epoch, consumed = int(state["epoch"]), int(state["consumed"])
        if epoch < 0 or not 0 <= consumed < len(self):
            raise CheckpointError(
                "sampler position",
                f"an epoch and fewer than {len(self)} used batches",
                f"epoch {epoch}, {consumed} batches",
                "Resume with the data and batch size of the run.",
            )
        self.epoch, self.consumed = epoch, consumed
