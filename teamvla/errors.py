"""Every error that teamvla raises on purpose.

    TeamVLAError              exit code 3, a failure at run time
    ├── ConfigError           2, settings that cannot be used
    │   └── InputError        2, a file, folder or device that is not there
    ├── RegistryError         2, a name that nothing is registered under
    ├── MissingDependencyError 2, an optional package that is not installed
    ├── SchemaError           1, data that breaks the schema (carries a code)
    │   └── EpisodeError      1, an episode that cannot be read, or must not be written
    │       └── EpisodeWriteError 3, an episode that the disk did not take
    ├── ContractError         1, numbers that do not mean the same thing
    ├── CheckpointError       1, a checkpoint that cannot be trusted
    └── SimulationError       3, the simulator left its valid range

A message reads ``where: expected X, got Y. Mend.``
"""

from __future__ import annotations


class TeamVLAError(Exception):
    """Base of all errors that teamvla raises on purpose.

    Args:
        where: file, field or option at fault; the whole message when the rest is left out.
        expected: what would have been right.
        got: what was found instead.
        mend: one sentence that tells how to put it right.
        code: short stable identifier such as ``E104``, shown in brackets.
    """

    exit_code = 3

    def __init__(
        self,
        where: str,
        expected: str | None = None,
        got: str | None = None,
        mend: str | None = None,
        *,
        code: str | None = None,
    ) -> None:
        self.where, self.expected, self.got, self.mend, self.code = where, expected, got, mend, code
        super().__init__(self._message())

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes send errors home; keyword-only arguments need telling how.
        arguments = (self.where, self.expected, self.got, self.mend)
        return (_rebuild, (type(self), arguments, self.code))

    def _message(self) -> str:
        text = self.where
        if self.expected is not None:
            text += f": expected {self.expected}"
        if self.got is not None:
            text += f", got {self.got}" if self.expected is not None else f": {self.got}"
        if self.mend is not None:
            text += f". {self.mend}"
        return f"[{self.code}] {text}" if self.code else text


def _rebuild(
    cls: type[TeamVLAError], arguments: tuple[str | None, ...], code: str | None
) -> TeamVLAError:
    where, *rest = arguments
    return cls(where or "", *rest, code=code)


class ConfigError(TeamVLAError):
    """Settings that cannot be used."""

    exit_code = 2


class InputError(ConfigError):
    """A file, folder or device that is not there."""


class RegistryError(TeamVLAError):
    """A name that nothing is registered under."""

    exit_code = 2


class MissingDependencyError(TeamVLAError):
    """An optional package that is not installed."""

    exit_code = 2

    @classmethod
    def for_extra(cls, package: str, extra: str) -> MissingDependencyError:
        """The error that names the extra which brings ``package``."""
        return cls(
            package,
            "the package to be installed",
            "nothing to import",
            f"Install it with: pip install 'teamvla[{extra}]'.",
        )


class SchemaError(TeamVLAError):
    """Data that breaks the schema."""

    exit_code = 1


class EpisodeError(SchemaError):
    """An episode that cannot be read, or must not be written."""


class EpisodeWriteError(EpisodeError):
    """An episode that the disk did not take."""

    exit_code = 3


class ContractError(TeamVLAError):
    """Numbers that do not mean the same thing on both sides."""

    exit_code = 1


class CheckpointError(TeamVLAError):
    """A checkpoint that cannot be trusted."""

    exit_code = 1


class SimulationError(TeamVLAError):
    """The simulator left its valid range."""
