"""Finds, imports and makes a foreign environment, or says what is missing."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import logging
from typing import Any

import gymnasium

from teamvla.errors import ConfigError, MissingDependencyError, RegistryError
from teamvla.registry import CUTOFF, import_user_object, look_in_the_current_folder, told_in_a_line
from teamvla.sim.graphics import without_a_display

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
        ConfigError: it cannot be made with ``kwargs``, or not wrapped.
    """
    if module is not None:
        import_registrations(module)
    require_id(env_id)
    logging.getLogger("absl").addFilter(_is_news)
    env = _made(env_id, module, kwargs)
    try:
        return env if wrap is None else _wrapped(env, wrap)
    except BaseException:
        env.close()
        raise


def _made(env_id: str, module: str | None, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    try:
        # Its checker warns of what the adapter converts; the limit of steps is the task's.
        with without_a_display():
            return gymnasium.make(env_id, max_episode_steps=-1, disable_env_checker=True, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise MissingDependencyError(f"environment {env_id}: {error}") from error
    except ModuleNotFoundError as error:
        raise _missing(str(error.name), module) from error
    except Exception as error:  # each environment fails in a way of its own
        said, mend = told_in_a_line(error), "Correct task.kwargs"
        raise ConfigError(f"environment {env_id}", "one that can be made", said, mend) from error


def _wrapped(env: gymnasium.Env[Any, Any], target: str) -> gymnasium.Env[Any, Any]:
    """What ``module:name`` makes of the environment."""
    where, expected = f"task.wrap {target!r}", "an environment, made with the environment"
    wrap = import_user_object(target, "task.wrap")
    try:
        made = wrap(env)
    except Exception as error:  # whatever somebody's wrapper does
        raise ConfigError(where, expected, told_in_a_line(error)) from error
    if not isinstance(made, gymnasium.Env):
        raise ConfigError(where, expected, f"a {type(made).__name__}")
    return made


def import_registrations(module: str) -> None:
    """Import what registers environments."""
    notices = io.StringIO()
    # A shipped configuration means the package of its extra, never what lies in a folder.
    if module.partition(".")[0] not in EXTRAS:
        look_in_the_current_folder()
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
        near = difflib.get_close_matches(env_id, [*gymnasium.registry], 1, CUTOFF)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise RegistryError(
            f"environment {env_id!r}",
            "the id of a Gymnasium environment",
            mend=f"{hint}task.module names what registers it",
        ) from None


def _is_news(record: logging.LogRecord) -> bool:
    """Not dm_control's line about diverged physics: the error that follows says it."""
    return "The simulation is unstable" not in record.getMessage()


def _missing(package: str, module: str | None) -> MissingDependencyError:
    home = (module or package).partition(".")[0]
    extra = EXTRAS.get(home) or EXTRAS.get(package.partition(".")[0])
    if extra is not None:
        return MissingDependencyError.for_extra(package, extra)
    return MissingDependencyError(
        package, "the package to be installed", "nothing to import", "task.module names it"
    )
