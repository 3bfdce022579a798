"""Files of version 1 with sound pickles of the wrong things; see :mod:`hostile`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hostile import META1, Case, npy, old, old_steps, pickled


def layouts() -> Iterator[Case]:
    """Files of version 1 with sound pickles of the wrong things."""
    yield Case("no steps", "E271", old(steps=b""), True)
    yield Case("a third member", "E271", old(other=pickled([1])), True)
    yield Case("two of metadata", "E271", old(metadata=pickled(META1)), True)
    yield Case("steps that are numbers", "E272", old(steps=npy(np.zeros(3))), True)
    yield Case("metadata that is a list", "E273", old(meta=pickled([META1, META1])), True)
    yield Case("metadata that is a text", "E273", old(meta=pickled("x")), True)
    yield Case("steps that are a dict", "E274", old(steps=pickled({"a": 1})), True)
    yield Case("version 3", "E275", old(meta=pickled({**META1, "version": 3})), True)
    yield Case("version True", "E275", old(meta=pickled({**META1, "version": True})), True)
    yield Case("one step", "E276", old_steps({}, num_steps=1), True)
    yield Case("no steps in the list", "E276", old_steps(num_steps=0), True)
    yield Case("a wrong length", "E241", old_steps({}, {}), True)
    yield Case("another task in a step", "E277", old_steps({}, {"task": "x"}, {}), True)
    yield Case("metadata of another task", "E277", old_steps({}, {}, {}, task="x"), True)
    yield Case("steps that are numbers in a list", "E101", old(steps=pickled([1, 2, 3])), True)
    yield Case("a picture of floats", "E105",
               old_steps({}, {"rgb_a": np.zeros((2, 2, 3))}, {}), True)  # fmt: skip
    yield Case("a picture that grows", "E305",
               old_steps({}, {"rgb_a": np.zeros((9, 2, 3), np.uint8)}, {}), True)  # fmt: skip
    yield Case("a field that comes and goes", "E304", old_steps({}, {"x": 1}, {}), True)
    yield Case("a name with a path", "E103", old_steps(*[{"../x": 1}] * 3), True)
    yield Case("numbers that are not finite", "E107",
               old_steps({"q_a": np.full(2, np.nan, np.float32)}, {}, {}), True)  # fmt: skip
    yield Case("a task with a path", "E123", old_steps({}, {}, {}, task="../x"), True)
    yield Case("an old contract that is none", "E411", old_steps({}, {}, {}, contract=[1]), True)
    yield Case("metadata of NaN", "E121", old_steps({}, {}, {}, x=float("nan")), True)
    yield Case("metadata of bytes", "E121", old_steps({}, {}, {}, x=b"x"), True)
    yield Case("huge metadata", "E125", old_steps({}, {}, {}, x="x" * (5 << 20)), True,
               max_bytes=64 << 20)  # fmt: skip
    texts = [{"note": "x" * 60_000}, *[{"note": "x"}] * 63]
    yield Case("one long text among short ones", "E253",
               old_steps(*texts, num_steps=64), True, max_bytes=3 << 20)  # fmt: skip
    values = [{"note": ["x" * 60_000]}, *[{"note": [1]}] * 63]
    yield Case("one long JSON among short ones", "E253",
               old_steps(*values, num_steps=64), True, max_bytes=3 << 20)  # fmt: skip
    shared = np.zeros(100_000, np.uint8)
    yield Case("one array in every step", "E253",
               old_steps(*[{"x": shared}] * 64, num_steps=64), True, max_bytes=4 << 20)  # fmt: skip
