"""An episode's actions, executed again from where it began, and how far that led astray."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from pydantic import ValidationError

from teamvla import seeds
from teamvla.config import Project, Settings
from teamvla.config.project import config_folder
from teamvla.contract import Contract
from teamvla.data import Episode
from teamvla.errors import EpisodeError, InputError, SimulationError
from teamvla.record import ActionNoise, NoiseConfig, software
from teamvla.record.guards import GuardedEnv, told_of
from teamvla.record.noise import disturbs
from teamvla.replay.comparison import Comparison, Deviation
from teamvla.rollout import Outcome, rollout
from teamvla.sim import make_env
from teamvla.sim.interface import Action, Observation, RobotEnv
from teamvla.sim.tasks import TaskConfig

_MEND = "Name the environment's configuration: --config NAME."


@dataclass(frozen=True)
class Replayed:
    """What came of executing an episode again.

    Attributes:
        unit: of the arms' positions, rad or m.
        start: ``reset_state`` or ``reset_seed``: what it started from.
        noise: whether the noise of the recording was laid over the actions again.
        same_software: whether it was recorded with the versions that run now.
        not_compared: recorded fields that the environment did not show.
    """

    outcome: Outcome
    recorded_steps: int
    recorded_success: bool
    deviations: tuple[Deviation, ...]
    arms: tuple[str, ...]
    unit: str
    start: str
    noise: bool
    same_software: bool
    not_compared: tuple[str, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether every recorded field of every step is the same to the bit."""
        differs = any(one.largest for one in self.deviations)
        return self.is_as_long and not (differs or self.not_compared)

    @property
    def is_as_long(self) -> bool:
        """Whether it took as many steps as were recorded."""
        return self.outcome.steps == self.recorded_steps

    @property
    def joints(self) -> dict[str, float]:
        """Greatest difference of each arm's measured positions."""
        found = {one.field: one.largest for one in self.deviations}
        return {arm: found[f"q_{arm}"] for arm in self.arms if f"q_{arm}" in found}

    @property
    def worst(self) -> float:
        """Greatest difference of any field but pictures, each in its own unit."""
        return max((one.largest for one in self.deviations if not one.is_picture), default=0.0)

    def within(self, tolerance: float) -> bool:
        """Whether the deviation is acceptable: at 0 only if every bit is the same.

        Whatever the tolerance, it must end where the recording did, and as it did.
        """
        ended = self.outcome.failure is None and self.is_as_long
        if not ended or self.outcome.success != self.recorded_success:
            return False
        return self.is_exact if tolerance == 0 else self.worst <= tolerance


def open_recorded_env(
    meta: Mapping[str, Any], where: str, overrides: Sequence[str] = ()
) -> RobotEnv | None:
    """The environment that an episode with this metadata was recorded in.

    ``None`` if the metadata name none: a real robot's, or a converted dataset's.

    Args:
        overrides: ``--set`` items, ``task.KEY=VALUE``, laid over the recorded settings.

    Raises:
        InputError: the settings are not this version's, or would import code that no
            configuration of this package names.
        RegistryError: the task is one of somebody's own, and not known here.
        ConfigError: an override is wrong.
    """
    if "task_config" not in meta:
        return None
    config = _recorded_config(meta["task_config"], where)
    if overrides:
        recorded = Project.from_data({"task": config.model_dump(mode="json")})
        config = recorded.override(overrides).section("task", TaskConfig)
    return make_env(config)


def _recorded_config(text: Any, where: str) -> TaskConfig:
    """The settings in a file, which choose no code."""
    data = _parsed(text, where)
    try:
        config = TaskConfig.choose(data).model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, ("task_config", *first["loc"])))
        raise InputError(
            f"{where}: {at}", "a setting of this version", first["msg"], _MEND
        ) from None
    assert isinstance(config, TaskConfig)
    if (named := code_in(config)) and named not in _shipped_code(config.name):
        got = "code that a data file chose"
        raise InputError(f"{where}: task_config", "a shipped environment", got, _MEND)
    return config


def _parsed(text: Any, where: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise InputError(f"{where}: task_config", "JSON text of settings", repr(text)[:60], _MEND)
    return data


def code_in(config: Settings) -> dict[str, Any]:
    """What is set where the settings name code, by the key: see ``json_schema_extra`` of these."""
    found: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value, extra = getattr(config, name), field.json_schema_extra
        if isinstance(extra, dict) and extra.get("code"):
            found[name] = value
        elif isinstance(value, Settings):
            found |= {f"{name}.{key}": inner for key, inner in code_in(value).items()}
    return found


def _shipped_code(task: str) -> Iterator[dict[str, Any]]:
    # By their paths: a file of that name in the current folder would come first.
    for path in sorted(config_folder().glob("*.yaml")):
        project = Project.load(str(path))
        if project.source.data.get("task", {}).get("name") == task:
            yield code_in(project.section("task", TaskConfig))


def execute(episode: Episode, env: RobotEnv) -> Replayed:
    """Execute the actions of ``episode`` in ``env`` and compare what comes of them.

    What our recorder laid over the commands is laid over them again, so that its episodes are
    repeated to the bit on the same versions.

    Raises:
        ContractError: environment and episode do not mean the same.
        EpisodeError: its metadata tell neither state nor seed of the reset.
    """
    meta, contract = episode.meta, env.contract
    if "contract" in meta:
        recorded = Contract.parse(meta["contract"], str(episode.path))
        recorded.require(contract, str(episode.path), "the environment")
    stage, tape = _Stage(env, episode), _Tape(episode, contract)
    noise = _noise_of(meta, contract)
    compare = Comparison(episode, contract)
    try:
        outcome = rollout(stage, tape, stage.seed, perturb=noise, on_tick=compare)
    except SimulationError as error:  # before the first step
        outcome = Outcome(False, 0, 0.0, str(error))
    return Replayed(
        outcome,
        episode.num_steps,
        episode.success,
        tuple(compare.deviations.values()),
        tuple(arm.name for arm in contract.arms),
        "m" if contract.action == "delta_tool_position" else "rad",
        stage.start,
        noise is not None,
        meta.get("software") == software(),
        tuple(compare.not_compared),
    )


def _noise_of(meta: Mapping[str, Any], contract: Contract) -> ActionNoise | None:
    """The noise that our recorder laid over the commands; that of others is not known."""
    seed, index = meta.get("seed"), meta.get("index")
    if not {"noise", "recipe"} <= meta.keys():
        return None
    if not (isinstance(seed, int) and isinstance(index, int)):
        return None
    try:
        config = NoiseConfig.model_validate(meta["noise"])
        rng = seeds.generator(seed, seeds.Domain.NOISE, index)
    except ValueError:
        return None
    return ActionNoise(config, rng, contract) if disturbs(config, contract) else None


class _Stage:
    """The environment, set to where the episode began; it ends where the episode did."""

    def __init__(self, env: RobotEnv, episode: Episode) -> None:
        self._env, self._guarded = env, GuardedEnv(env)
        self._length, self._steps = episode.num_steps, 0
        state, seed = episode.meta.get("reset_state"), episode.meta.get("reset_seed")
        self._state = state if isinstance(state, dict) else None
        if self._state is None and type(seed) is not int:
            expected = "reset_state or reset_seed in its metadata"
            raise EpisodeError(str(episode.path), expected, "neither")
        self.seed = seed if type(seed) is int and seed >= 0 else 0
        self.start = "reset_seed" if self._state is None else "reset_state"

    def reset(self, *, seed: int | None = None) -> tuple[Observation, dict[str, Any]]:
        observation, info = self._guarded.reset(seed=seed)
        if self._state is not None:
            with told_of("the recorded state"):
                observation = self._env.set_state(self._state)
        return observation, info

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        observation, reward, ended, truncated, info = self._guarded.step(action)
        self._steps += 1
        return observation, reward, ended, truncated or self._steps >= self._length, info


class _Tape:
    """Gives the recorded commands, one after the other."""

    def __init__(self, episode: Episode, contract: Contract) -> None:
        self._fields, self._contract, self._step = episode.fields, contract, 0
        needed = [f"{stem}_{arm.name}" for arm in contract.arms for stem in ("action", "grip")]
        needed += [signal.field for signal in contract.action_signals]
        if missing := [name for name in needed if name not in episode.fields]:
            raise EpisodeError(str(episode.path), ", ".join(needed), f"no {', '.join(missing)}")

    def reset(self) -> None:
        self._step = 0

    def act(self, observation: Mapping[str, Any]) -> list[NDArray[Any]]:
        self._step += 1
        return self._contract.recorded_command(self._fields, self._step - 1)
