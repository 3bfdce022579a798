"""Workers to which bad things happen; light to import, as every worker process does it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass

from teamvla.errors import CheckpointError
from teamvla.interrupts import SIGNALS


@dataclass(frozen=True)
class Worker:
    """A factory of workers."""

    fate: str

    def __call__(self) -> Callable[[int], int]:
        if self.fate == "signalled":
            for number in SIGNALS:
                os.kill(os.getpid(), number)
        if self.fate == "refuses":
            raise CheckpointError("a.ckpt", "another one", "this one")

        def work(index: int) -> int:
            if self.fate == "killed" and index == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fate == "hangs" and index > 0:
                threading.Event().wait()
            return index

        return work
