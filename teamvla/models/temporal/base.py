"""What everything temporal is.

Shapes: B sequences, S steps, C width of what is noticed of a step, E of what is recalled, A
numbers of a command.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from teamvla.config import Settings


class TemporalConfig(Settings):
    """Settings that everything temporal shares; ``type`` decides whose are the others."""

    type: str = Field(description="Name of the temporal part.")
    steps: int | None = Field(
        default=None,
        ge=1,
        description="Steps of each sequence that training learns from at a time, drawn anew; null: "
        "all. What is noticed of the others is remembered, and they are not encoded.",
    )
    state: bool = Field(
        default=True, description="Whether the state is noticed; without pictures it always is."
    )


class Temporal(nn.Module, ABC):
    """What was noticed of steps to what is recalled at each of them.

    In training it sees whole sequences at once (:meth:`forward`), in an episode one step after
    another (:meth:`step`), with the same result.

    Args:
        config: settings of the subclass.
        noticed: C.
        action_dim: A.

    Attributes:
        dim: E.
    """

    Config: ClassVar[type[TemporalConfig]]
    dim: int

    def __init__(self, config: TemporalConfig, noticed: int, action_dim: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, noticed: Tensor, commands: Tensor) -> Tensor:
        """Consecutive steps [B,S,C] to [B,S,E]; no step knows of later ones.

        Args:
            commands: [B,S,A], normalised, what was commanded at the step before each; 0 at the
                first.
        """

    @abstractmethod
    def start(self) -> Any:
        """What :meth:`step` takes at the first step of an episode."""

    @abstractmethod
    def step(self, state: Any, noticed: Tensor, command: Tensor) -> tuple[Tensor, Any]:
        """One more step [1,C] and the command before it [1,A] to [1,E], and the state."""
