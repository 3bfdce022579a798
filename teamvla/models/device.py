"""Where tensors live."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from teamvla.errors import InputError


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread inside the block: the number of threads can change last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def resolve_device(name: str) -> torch.device:
    """The device called ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; InputError if it is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r}", "auto, cpu, cuda or cuda:N", "another name") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise InputError(f"device {name!r}", "auto, cpu, cuda or cuda:N", "another kind")
    count = torch.cuda.device_count()
    if (device.index or 0) >= count:
        found = f"{count} of them" if count else "no CUDA device"
        mend = "Use --device cpu, or install a CUDA build of torch on a machine with a GPU."
        raise InputError(f"device {name!r}", "a CUDA device of this machine", found, mend)
    return device
