"""What a format is: something that episodes are read from. A target is one that they go to."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import Field

from teamvla.config.settings import Settings
from teamvla.data.formats.mapping import MappingConfig
from teamvla.data.npz import Episode
from teamvla.errors import ConfigError, SchemaError
from teamvla.files import canonical_json, sha256_file
from teamvla.registry import Registry

if TYPE_CHECKING:
    from teamvla.data.formats.job import Job
    from teamvla.data.formats.report import Report

_HOME = "teamvla.data.formats"


class ConvertConfig(Settings):
    """How a conversion reads and writes."""

    mapping: MappingConfig | None = Field(
        default=None, description="What foreign files do not say; each format has its default."
    )
    control_hz: float | None = Field(
        default=None, gt=0, description="Control rate, if the files do not say it."
    )
    task: str | None = Field(default=None, description="Slug of the task, over the source's.")
    instruction: str | None = Field(default=None, description="The prompt, over the source's.")
    contract: str | None = Field(
        default=None,
        description="Episode or YAML file; its contract is given to episodes that have none.",
    )
    legacy_actions: Literal["previous", "current"] = Field(
        default="previous", description="What the action fields of a version-1 file hold."
    )
    compression: Literal["fast", "stored", "zlib"] = Field(
        default="fast", description="Of episode files."
    )
    images: Literal["video", "png"] = Field(
        default="video", description="LeRobot: mp4, which is lossy, or PNG in the tables."
    )
    codec: Literal["libsvtav1", "libx264"] = Field(
        default="libsvtav1", description="LeRobot: the encoder of the mp4 files."
    )
    crf: int = Field(default=30, ge=0, le=51, description="LeRobot: the encoder's quality, 0 best.")
    jpeg_channels: Literal["rgb", "bgr"] = Field(
        default="rgb", description="ALOHA: order of the channels in compressed pictures."
    )

    def completed(self, mapping: MappingConfig) -> MappingConfig:
        """``mapping`` with what is said here beside it."""
        said = {name: getattr(self, name) for name in ("control_hz", "task", "instruction")}
        return mapping.model_copy(update={k: v for k, v in said.items() if v is not None})


class Source(Protocol):
    """An opened data set. Episodes are read one at a time, as often as asked."""

    def names(self) -> list[str]:
        """A name for each episode, in order."""

    def digest(self, key: str) -> str:
        """Hex digest of the bytes that the episode is read from."""

    def read(self, key: str, report: Report) -> Episode:
        """One episode; the report is told what was not carried as it is."""


class Format(Protocol):
    """A format, without a file."""

    def recognises(self, path: Path) -> bool:
        """Whether ``path`` looks like a data set of this format, by names alone."""

    def open(self, path: Path, config: ConvertConfig) -> Source:
        """Open a data set; EpisodeError if it is damaged, ConfigError if a mapping is missing."""


class Target(ABC):
    """A format that is also written. The others are read only."""

    @abstractmethod
    def foresee(self, job: Job) -> Report:
        """Read everything and tell what :meth:`write` will make of it; nothing is written.

        Raises:
            TeamVLAError: an episode cannot be read, or not be held by the format.
        """

    @abstractmethod
    def write(self, job: Job) -> tuple[Report, int]:
        """Write the episodes of the job; its report, and how many an earlier run had made.

        Raises:
            InputError: something else is in the way.
            TeamVLAError: an episode cannot be read, or not be held by the format.
        """


FORMATS: Registry[type[Format]] = Registry(
    "format",
    {
        "episodes": f"{_HOME}.episodes:EpisodesFormat",
        "version1": f"{_HOME}.version1:Version1Format",
        "lerobot": f"{_HOME}.lerobot:LeRobotFormat",
        "aloha": f"{_HOME}.aloha:AlohaFormat",
        "robomimic": f"{_HOME}.robomimic:RobomimicFormat",
    },
    group="teamvla.formats",
)
"""Every format by its name."""


def detect(path: Path) -> str:
    """The name of the format that ``path`` has.

    Raises:
        SchemaError: none recognises it, or several do.
    """
    names = [name for name in FORMATS if FORMATS.get(name)().recognises(path)]
    if len(names) == 1:
        return names[0]
    got = f"what {' and '.join(names)} may be" if names else "nothing that is known"
    mend = f"Name it with --from: {', '.join(FORMATS)}."
    raise SchemaError(str(path), "a data set of one known format", got, mend, code="E601")


def read_only(name: str) -> ConfigError:
    """The error of a format that cannot be written."""
    mend = "Choose another --to."
    return ConfigError(f"format {name!r}", "one that is written", "read only", mend, code="E612")


def digest_of(*parts: Any) -> str:
    """Hex digest of JSON data."""
    return hashlib.sha256(canonical_json(list(parts))).hexdigest()


def digest_of_folder(folder: Path) -> str:
    """Hex digest of the names and bytes of every file below a folder, hidden ones left out."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part[0] == "." for part in path.relative_to(folder).parts)
    )
    return digest_of(*([path.relative_to(folder).as_posix(), sha256_file(path)] for path in files))
