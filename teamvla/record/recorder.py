"""One episode: an expert's rollout, written as a file."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from teamvla import seeds
from teamvla.config import Settings
from teamvla.contract import Contract
from teamvla.data import EpisodeWriter, read_meta
from teamvla.errors import EpisodeWriteError, InputError, SchemaError, SimulationError
from teamvla.files import canonical_json
from teamvla.record.guards import GuardedEnv, GuardedExpert, open_expert, told_of
from teamvla.record.noise import ActionNoise, NoiseConfig, disturbs
from teamvla.rollout import Observation, Outcome, Tick, rollout
from teamvla.sim import make_env
from teamvla.sim.interface import RobotEnv
from teamvla.sim.tasks import TaskConfig

#: why an attempt failed that nothing went wrong in
NO_SUCCESS = "no success"
#: attempts at one episode until it is given up
MAX_ATTEMPTS = 20
#: one seed has so many episodes, and an attempt's index, which tells both, still 32 bits
MAX_EPISODES = 1 << 24
_SYNC_EVERY = 100  # a third of a second of simulation, which can be made again
_VALUES = ("E107", "E108")  # numbers out of range: an episode that went wrong, not a field


class RecordConfig(Settings):
    """Section ``record``."""

    noise: NoiseConfig = NoiseConfig()
    keep_failures: bool = Field(default=False, description="Keep episodes that failed.")
    compression: Literal["fast", "stored", "zlib"] = Field(
        default="fast", description="fast, stored or zlib."
    )
    expert: str | None = Field(
        default=None,
        description="module:Class of an expert of your own; null: the environment's.",
    )


@dataclass(frozen=True)
class Recorded:
    """What became of one episode.

    Attributes:
        index: its number; with the seed it makes its id.
        outcome: of the last attempt at it.
        path: its file; ``None`` if no attempt was worth keeping.
        failures: why the attempts before that one failed.
        steps: of all attempts that were made now.
        existed: whether an earlier run had recorded it.
    """

    index: int
    outcome: Outcome
    path: Path | None
    failures: tuple[str, ...] = ()
    steps: int = 0
    existed: bool = False


@dataclass(frozen=True)
class Recorder:
    """Everything that decides the bytes of an episode, and where it goes. Picklable.

    Episode k is the first of a sequence of attempts of its own that is worth keeping.
    So it depends on no other episode: neither on how many are recorded nor on who records
    the others.
    """

    task: TaskConfig
    config: RecordConfig
    out: Path
    seed: int

    @cached_property
    def task_config(self) -> str:
        """The task's settings as JSON text: metadata sort keys, and the order of these counts."""
        return json.dumps(self.task.model_dump(mode="json"), separators=(",", ":"))

    @cached_property
    def recipe(self) -> str:
        """Digest of what an episode's content derives from, besides its index."""
        parts = [self.task_config, self.config.model_dump(mode="json"), self.seed]
        return hashlib.sha256(canonical_json(parts)).hexdigest()

    @property
    def task_name(self) -> str:
        """The slug of the task, and the name of the folder of its episodes."""
        return self.task.task_name

    def episode_id(self, index: int) -> str:
        return f"s{self.seed}-{index:06d}"

    def path(self, index: int) -> Path:
        return self.out / self.task_name / f"{self.episode_id(index)}.npz"

    def existing(self, index: int) -> Recorded | None:
        """The episode if an earlier run finished it; InputError if it is another one."""
        path = self.path(index)
        if not path.exists():
            return None
        meta = read_meta(path)
        if meta.get("recipe") != self.recipe:
            raise InputError(
                str(path),
                "to continue a recording with the same settings",
                "an episode of other settings",
                "Choose another --out, or remove it.",
            )
        outcome = Outcome(bool(meta["success"]), int(meta["num_steps"]), float(meta["reward"]))
        return Recorded(index, outcome, path, tuple(meta.get("failed_attempts", ())), existed=True)

    def is_noisy(self, env: RobotEnv) -> bool:
        """Whether noise is laid over the commands."""
        return disturbs(self.config.noise, env.contract)

    def open_env(self) -> tuple[RobotEnv, GuardedExpert]:
        """The environment, and the expert that acts in it."""
        with told_of("the environment"):
            env = make_env(self.task)
        try:
            return env, open_expert(env, self.config.expert)
        except BaseException:
            env.close()
            raise

    def __call__(self, on_step: Callable[[], None] = lambda: None) -> Worker:
        """Open a worker: one environment, one expert, used for every index.

        Args:
            on_step: called after every step that was simulated.
        """
        return Worker(self, *self.open_env(), on_step)


class Worker:
    """Records episodes, one after the other, in one environment."""

    def __init__(
        self,
        recorder: Recorder,
        env: RobotEnv,
        expert: GuardedExpert,
        on_step: Callable[[], None],
    ) -> None:
        self._recorder, self._env, self._expert = recorder, env, expert
        self._on_step = on_step
        self._contract: Contract = env.contract
        self._guarded = GuardedEnv(env)
        self._is_noisy = recorder.is_noisy(env)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def __call__(self, index: int) -> Recorded:
        """Attempt after attempt until one is kept; none if another process was faster."""
        if (there := self._recorder.existing(index)) is not None:
            return there
        failures: list[str] = []
        steps = 0
        for attempt in range(MAX_ATTEMPTS):
            outcome, path = self._attempt(index, attempt, failures)
            steps += outcome.steps
            if path is not None:
                return Recorded(index, outcome, path, tuple(failures), steps)
            failures.append(reason(outcome))
        return Recorded(index, outcome, None, tuple(failures), steps)

    def _attempt(
        self, episode: int, attempt: int, failures: list[str]
    ) -> tuple[Outcome, Path | None]:
        config = self._recorder.config
        index = episode + attempt * MAX_EPISODES
        # What a killed run left of this very episode is recorded again, to the same bytes.
        with (
            EpisodeWriter(
                self._recorder.out,
                compression=config.compression,
                leftover="discard",
                sync_every=_SYNC_EVERY,
            ) as writer,
            _dropped_on_errors(writer),
        ):
            outcome = self._rollout(writer, episode, index, failures)
            kept = outcome.success or (config.keep_failures and outcome.failure is None)
            if kept and outcome.steps:
                return outcome, writer.end_episode(outcome.success, {"reward": outcome.reward})
            writer.abort()
            return outcome, None

    def _rollout(
        self, writer: EpisodeWriter, episode: int, index: int, failures: list[str]
    ) -> Outcome:
        recorder = self._recorder

        def add(tick: Tick) -> None:
            writer.add_step(row(tick, self._expert.phase, self._contract))
            self._on_step()

        try:
            return rollout(
                self._guarded,
                self._expert,
                seeds.reset_seed(recorder.seed, seeds.Domain.RECORD, index),
                perturb=self._noise(index) if self._is_noisy else None,
                on_reset=partial(self._start, writer, episode, index, failures),
                on_tick=add,
            )
        except SimulationError as error:  # before the first step
            return Outcome(False, 0, 0.0, str(error))
        except SchemaError as error:
            if error.code not in _VALUES:
                raise
            field = error.where.rpartition(": ")[2]
            return Outcome(False, 0, 0.0, f"{field}: expected {error.expected}, got {error.got}")

    def _noise(self, index: int) -> ActionNoise:
        rng = seeds.generator(self._recorder.seed, seeds.Domain.NOISE, index)
        return ActionNoise(self._recorder.config.noise, rng, self._contract)

    def _start(
        self,
        writer: EpisodeWriter,
        episode: int,
        index: int,
        failures: list[str],
        first: Observation,
    ) -> None:
        recorder = self._recorder
        task, told = recorder.task_name, first.get("task")
        if task != told:
            raise InputError("info['task'] of the environment", repr(task), repr(told))
        meta = {
            "task": task,
            "episode_id": recorder.episode_id(episode),
            "instruction": str(first["instruction"]),
            "seed": recorder.seed,
            "index": index,
            "reset_seed": seeds.reset_seed(recorder.seed, seeds.Domain.RECORD, index),
            "task_config": recorder.task_config,
            "expert": recorder.config.expert or "scripted",
            "recipe": recorder.recipe,
            "software": software(),
            "contract": self._contract.to_dict(),
            "contract_digest": self._contract.digest,
        }
        if self._is_noisy:
            meta["noise"] = recorder.config.noise.model_dump(mode="json")
        if failures:
            meta["failed_attempts"] = failures
        if any(name.startswith("seg_") for name in first):
            meta["segments"] = dict(getattr(self._env, "segments", {}))
        writer.start_episode(meta | self._state())

    def _state(self) -> dict[str, Any]:
        """The state of the reset, if this simulator can tell it."""
        try:
            state = self._env.get_state()
        except (SimulationError, NotImplementedError):
            return {}
        return {"reset_state": {name: np.asarray(value).tolist() for name, value in state.items()}}


@contextmanager
def _dropped_on_errors(writer: EpisodeWriter) -> Iterator[None]:
    """What can be made again needs no journal, unless the disk did not take the whole of it."""
    try:
        yield
    except EpisodeWriteError:
        raise
    except BaseException:
        writer.abort()
        raise


def reason(outcome: Outcome) -> str:
    """Why an attempt failed, in one line."""
    return NO_SUCCESS if outcome.failure is None else outcome.failure.partition("\n")[0]


def row(tick: Tick, phase: str | None, contract: Contract) -> dict[str, Any]:
    """The fields of a step: what was seen and told, what was commanded, what came of it."""
    fields = {
        **_without_padding(tick.observation),
        **tick.info.get("targets", {}),
        **contract.command_fields(tick.action),
        "success": tick.success,
        "reward": tick.reward,
        "timestamp": tick.index / contract.control_hz,
    }
    return fields if phase is None else {**fields, "phase": phase}


def _without_padding(observation: Mapping[str, Any]) -> dict[str, Any]:
    """The valid rows of padded fields in place of them and their masks."""
    fields = dict(observation)
    for name in observation:
        mask, padded = f"{name}_mask", observation[name]
        if mask in observation:
            fields[name] = padded[np.asarray(fields.pop(mask), bool)]
    return fields


def software() -> dict[str, str]:
    """Versions of what an episode's bytes may depend on."""
    names = ("teamvla", "mujoco", "gymnasium", "numpy")
    return {name: _version(name) for name in names} | {"python": platform.python_version()}


_version = lru_cache(version)  # it reads a file
