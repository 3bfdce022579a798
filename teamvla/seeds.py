"""One source of randomness: every generator derives from (seed, domain, index).

Domains are disjoint, so no initial state that was recorded is ever evaluated,
whatever seeds are chosen; and because each index has a generator of its own,
order and worker count change nothing.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


#: greatest seed: a name or a header that holds it stays short
MAX_SEED = 2**63 - 1


class Domain(IntEnum):
    """What a random stream is for. Values are stable: they are part of every recorded number."""

    RECORD = 1  # initial states of demonstrations
    EVALUATE = 2  # initial states of `teamvla eval`
    SELECT = 3  # initial states that choose among checkpoints while training
    NOISE = 4  # perturbation of the expert while recording
    ORDER = 5  # order of the training samples
    AUGMENT = 6  # augmentation of the training samples
    INITIALISE = 7  # network weights
    POLICY = 8  # sampling inside policies, random baselines


def sequence(seed: int, domain: Domain, index: int = 0) -> np.random.SeedSequence:
    """The seed sequence of one (seed, domain, index)."""
    import numpy as np

    return np.random.SeedSequence([seed, int(domain), index])


def generator(seed: int, domain: Domain, index: int = 0) -> np.random.Generator:
    """A NumPy generator (Philox) for one (seed, domain, index)."""
    import numpy as np

    return np.random.Generator(np.random.Philox(sequence(seed, domain, index)))


def reset_seed(seed: int, domain: Domain, index: int = 0) -> int:
    """An environment's reset seed; different arguments never give the same number."""
    return ((seed << 8) + int(domain) << 32) + index


def integer(seed: int, domain: Domain, index: int = 0) -> int:
    """A 32-bit seed for libraries that take an integer."""
    return int(sequence(seed, domain, index).generate_state(1)[0])
