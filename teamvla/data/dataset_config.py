"""Which samples training reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator

from teamvla.config import Settings
from teamvla.config.explain import explain
from teamvla.config.source import Source
from teamvla.data.transforms import TransformConfig
from teamvla.errors import ConfigError

FieldName = Literal["image", "state", "actions", "language", "reward"]
#: what is read unless it is said otherwise
FIELDS: tuple[FieldName, ...] = ("image", "state", "actions", "language")


class DatasetConfig(Settings):
    """Which samples are read, and how they become batches."""

    roots: tuple[str, ...] = Field(
        default=("data",), min_length=1, description="Folders of episodes."
    )
    index: str | None = Field(
        default=None, description="Folder of the index; by default .index in the first root."
    )
    tasks: tuple[str, ...] | None = Field(default=None, description="Only these; null: all.")
    split: Literal["train", "val", "test", "all"] = Field(
        default="train", description="Which episodes."
    )
    limit_per_task: int | None = Field(
        default=None, ge=1, description="At most so many episodes of each task, in order of name."
    )
    chunk_size: int = Field(
        default=16,
        ge=1,
        validation_alias=AliasChoices("chunk_size", "action_horizon", "horizon"),
        description="Actions in a sample, from its step on.",
    )
    n_obs_steps: int = Field(
        default=1, ge=1, description="Observations in a sample, up to its step; 1: no T axis."
    )
    sequence_length: int | None = Field(
        default=None,
        ge=1,
        description="Samples are so many steps in a row, one behind another; null: single steps.",
    )
    fields: tuple[FieldName, ...] = Field(
        default=FIELDS, min_length=1, description="What is read; the other fields cost nothing."
    )
    signals: tuple[str, ...] | None = Field(
        default=None, description="Sensors and targets that are read; null: all there are."
    )
    weights: dict[str, float] | None = Field(
        default=None,
        description="Share of each task in a shuffled epoch, as ratios; null: all samples once.",
    )
    batch_size: int = Field(default=64, ge=1, description="Samples in a batch.")
    shuffle: bool = Field(default=True, description="Another order in every epoch.")
    drop_last: bool = Field(default=False, description="Leave out a last batch that is not full.")
    seed: int = Field(default=0, ge=0, description="Of the order and the transforms.")
    transforms: tuple[TransformConfig, ...] = Field(
        default=(), description="Done to every batch, in order."
    )
    num_workers: int = Field(
        default=0, ge=0, description="Reading processes; 0 is fastest unless transforms are slow."
    )

    @field_validator("roots", "tasks", "signals", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | Path) else value

    @field_validator("fields", "signals")
    @classmethod
    def _each_field_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) != len(value):
            raise ValueError("a field stands there twice")
        return value

    @model_validator(mode="after")
    def _history_or_sequence(self) -> Self:
        if self.sequence_length is not None and self.n_obs_steps > 1:
            raise ValueError("sequence_length goes with n_obs_steps 1: give one of them")
        return self

    @field_validator("weights")
    @classmethod
    def _weights_make_shares(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None:
            for task, weight in value.items():
                if weight < 0:
                    raise ValueError(f"the weight of {task!r} must be at least 0, got {weight:g}")
            if not any(value.values()):
                raise ValueError("at least one task must have a weight above 0")
        return value

    @field_validator("roots", "index")
    @classmethod
    def _can_be_written_down(cls, value: Any) -> Any:
        # A run notes where its data are, in files that are UTF-8.
        for path in [value] if isinstance(value, str) else value or ():
            try:
                path.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError(f"{path!r} is not UTF-8; rename the folder") from None
        return value

    @classmethod
    def parse(cls, data: DatasetConfig | dict[str, Any]) -> DatasetConfig:
        """Settings from plain data; ConfigError with a line per problem."""
        if isinstance(data, DatasetConfig):
            return data
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            lines = explain(error, cls, Source({}), ("dataset",))
            raise ConfigError("\n".join(lines)) from None
