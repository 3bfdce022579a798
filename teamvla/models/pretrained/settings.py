"""Settings of parts with pretrained weights, and where those weights come from.

A part is built from its ``architecture``, the configuration of the model in plain data. It is
read from the model's folder when the part is first built, and written into run and checkpoint:
loading a checkpoint needs neither the folder nor the hub, as its tensors are in the checkpoint
too, frozen ones as well.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Self, TypeVar

from pydantic import Field

from teamvla.config import Settings

S = TypeVar("S", bound=Settings)
_FOLLOWING: ContextVar[bool] = ContextVar("weights follow", default=False)


class PretrainedSettings(Settings):
    """Settings that all parts with pretrained weights share."""

    model_name: str = Field(description="Folder of the model, a short name, or a name on the hub.")
    freeze: bool = Field(default=False, description="Whether its weights stay as they are.")
    dtype: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="Of its weights; bf16 halves their memory, for frozen ones.",
    )
    architecture: dict[str, Any] | None = Field(
        default=None,
        description="Configuration of the model; null: read from its folder, and kept here.",
    )

    @abstractmethod
    def read_architecture(self) -> dict[str, Any]:
        """What :attr:`architecture` is by the model's folder.

        Raises:
            MissingDependencyError: transformers is not installed.
            InputError: there is no such model.
            ConfigError: it is of no family that is supported.
        """

    def completed(self) -> Self:
        """The same with everything that else would be read from the model's folder.

        Raises as :meth:`read_architecture` does.
        """
        if self.architecture is not None:
            return self
        return self.model_copy(update={"architecture": self.read_architecture()})


def completed(settings: S) -> S:
    """Settings in which every pretrained part, at any depth, is complete."""
    inside = {n: getattr(settings, n) for n in type(settings).model_fields}
    parts = {n: completed(part) for n, part in inside.items() if isinstance(part, Settings)}
    changed = {n: part for n, part in parts.items() if part is not inside[n]}
    settings = settings.model_copy(update=changed) if changed else settings
    return settings.completed() if isinstance(settings, PretrainedSettings) else settings


@contextmanager
def weights_follow() -> Iterator[None]:
    """Inside, pretrained parts are built without weights, for whoever fills in all of them.

    So policies of checkpoints are built, and those on the meta device. Settings must then be
    complete; what the weights are at first is undefined.
    """
    token = _FOLLOWING.set(True)
    try:
        yield
    finally:
        _FOLLOWING.reset(token)


def are_weights_following() -> bool:
    """Whether this is inside :func:`weights_follow`."""
    return _FOLLOWING.get()
