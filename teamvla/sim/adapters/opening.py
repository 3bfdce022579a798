"""Finds, imports and makes a foreign environment, or says what is missing."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, cast

import gymnasium

from teamvla.errors import ConfigError, MissingDependencyError, RegistryError
from teamvla.registry import import_object

_LOG = logging.getLogger(__name__)
#: module that registers environments -> the extra that brings it
EXTRAS = {"gym_aloha": "aloha", "minigrid": "minigrid", "gymnasium_robotics": "robotics"}


def open_env(
    env_id: str, module: str | None, kwargs: dict[str, Any], wrap: str | None
) -> gymnasium.Env[Any, Any]:
    """The environment, without a time limit of its own, and wrapped where that is asked for.

    Raises:
        MissingDependencyError: its package is not there; names the extra that brings it.
        RegistryError: no environment has this id; names the nearest.
        ConfigError: it cannot be made with ``kwargs``.
    """
    if module is not None:
        import_registrations(module)
    require_id(env_id)
    try:
        # Its checker warns of what the adapter converts; the limit of steps is the task's.
        with _without_a_display():
            env = gymnasium.make(env_id, max_episode_steps=-1, disable_env_checker=True, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise MissingDependencyError(f"environment {env_id}: {error}") from error
    except ModuleNotFoundError as error:
        raise _missing(str(error.name), module) from error
    except (TypeError, ValueError, NotImplementedError, gymnasium.error.Error) as error:
        mend = "Correct task.kwargs"
        raise ConfigError(
            f"environment {env_id}", "one that can be made", str(error), mend
        ) from error
    return env if wrap is None else wrapper(wrap)(env)


def import_registrations(module: str) -> None:
    """Import what registers environments."""
    notices = io.StringIO()
    try:
        # Farama's packages print their news to stderr when they are imported.
        with contextlib.redirect_stderr(notices):
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(str(error.name), module) from error
    if notices.getvalue():
        _LOG.debug("%s: %s", module, notices.getvalue().strip())


def require_id(env_id: str) -> None:
    """RegistryError with the nearest id unless the environment is registered."""
    try:
        gymnasium.spec(env_id)
    except gymnasium.error.Error:
        near = difflib.get_close_matches(env_id, [*gymnasium.registry], 1, 0.5)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise RegistryError(
            f"environment {env_id!r}",
            "the id of a Gymnasium environment",
            "none like it",
            f"{hint}task.module names what registers it",
        ) from None


def wrapper(target: str) -> Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]:
    """What ``module:name`` names, called with the environment."""
    return cast(Callable[..., Any], named(target, "task.wrap"))


def named(target: str, where: str) -> Any:
    """The object at ``module:name``; ConfigError if there is none."""
    try:
        return import_object(target)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            where, "module:name that can be imported", f"{target!r}: {error}"
        ) from error


@contextlib.contextmanager
def _without_a_display() -> Iterator[None]:
    """glfw warns, when dm_control imports it, that there is no display; none is needed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*DISPLAY environment", module="glfw")
        yield


def _missing(package: str, module: str | None) -> MissingDependencyError:
    home = (module or package).partition(".")[0]
    extra = EXTRAS.get(home) or EXTRAS.get(package.partition(".")[0])
    if extra is not None:
        return MissingDependencyError.for_extra(package, extra)
    return MissingDependencyError(
        package, "the package to be installed", "nothing to import", "task.module names it"
    )
