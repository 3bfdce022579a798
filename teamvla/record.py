"""Demonstrations: an expert's rollouts, written as episodes.

While recording, smooth noise can be laid over the commands that the arms execute;
what is stored is the expert's clean command, so that the data show how to come back
from where a learned policy will drift to (DART: Laskey et al., CoRL 2017).
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from teamvla import seeds
from teamvla.config import Settings
from teamvla.data import EpisodeWriter, read_meta
from teamvla.errors import EpisodeWriteError, InputError, SimulationError
from teamvla.files import canonical_json, check_folder
from teamvla.logs import progress
from teamvla.rollout import Observation, Outcome, Tick, rollout, run_episodes
from teamvla.sim import make_env
from teamvla.sim.tasks import TaskConfig

_SYNC_EVERY = 100  # a third of a second of simulation, which can be made again


class NoiseConfig(Settings):
    """Ornstein-Uhlenbeck noise on executed joint targets, faded out where the arms hold still."""

    sigma: float = Field(default=0.03, ge=0, description="Standard deviation, rad; 0: none.")
    correlation: float = Field(default=0.85, ge=0, lt=1, description="From one tick to the next.")
    full_speed: float = Field(
        default=0.02, gt=0, description="Step of a joint command, rad, at full noise."
    )


class RecordConfig(Settings):
    """Section ``record``."""

    noise: NoiseConfig = NoiseConfig()
    keep_failures: bool = Field(default=False, description="Keep episodes that failed.")
    compression: Literal["fast", "stored", "zlib"] = Field(
        default="fast", description="fast, stored or zlib."
    )


class ActionNoise:
    """The noise of one episode, a function of its seed and the commands alone."""

    def __init__(self, config: NoiseConfig, rng: np.random.Generator, joints: np.ndarray) -> None:
        """``joints``: bool[D], which entries of the joined command are joint targets."""
        self._config, self._rng, self._joints = config, rng, joints
        self._noise = np.zeros(len(joints))
        self._gain = np.zeros(len(joints))
        self._previous: np.ndarray | None = None

    def __call__(self, command: np.ndarray) -> np.ndarray:
        keep = self._config.correlation
        fresh = self._rng.standard_normal(len(command))
        self._noise = keep * self._noise + np.sqrt(1 - keep**2) * fresh
        self._gain = 0.7 * self._gain + 0.3 * self._speed(command)
        noise = self._config.sigma * self._gain * self._noise * self._joints
        return np.asarray(command + noise, np.float32)

    def _speed(self, command: np.ndarray) -> np.ndarray:
        """Share of full speed at which each arm's fastest joint is told to move."""
        before = command if self._previous is None else self._previous
        self._previous = command.copy()
        step = (np.abs(command - before) * self._joints).reshape(2, -1).max(axis=1)
        share = np.minimum(1.0, step / self._config.full_speed)
        return np.repeat(share, len(command) // 2)


@dataclass(frozen=True)
class Recorded:
    """What became of one attempt."""

    index: int
    outcome: Outcome
    path: Path | None
    existed: bool = False


@dataclass(frozen=True)
class Recorder:
    """Everything that decides the bytes of an episode, and where it goes. Picklable."""

    task: TaskConfig
    config: RecordConfig
    out: Path
    seed: int

    @property
    def recipe(self) -> str:
        """Digest of what an episode's content derives from, besides its index."""
        parts = [self.task.model_dump(mode="json"), self.config.model_dump(mode="json"), self.seed]
        return hashlib.sha256(canonical_json(parts)).hexdigest()

    def episode_id(self, index: int) -> str:
        return f"s{self.seed}-{index:06d}"

    def path(self, index: int) -> Path:
        return self.out / self.task.name / f"{self.episode_id(index)}.npz"

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
        return Recorded(index, outcome, path, existed=True)

    def __call__(self) -> Callable[[int], Recorded]:
        """Open a worker: one environment, one expert, used for every index."""
        env = make_env(self.task)
        expert = env.expert()
        joints = np.ones(env.contract.action_dim, bool)
        joints[env.contract.grippers] = False

        def run(index: int) -> Recorded:
            rng = seeds.generator(self.seed, seeds.Domain.NOISE, index)
            noise = ActionNoise(self.config.noise, rng, joints)
            # What a killed run left of this very episode is recorded again, to the same bytes.
            with (
                EpisodeWriter(
                    self.out,
                    compression=self.config.compression,
                    leftover="discard",
                    sync_every=_SYNC_EVERY,
                ) as writer,
                _dropped_on_errors(writer),
            ):
                outcome = rollout(
                    env,
                    expert,
                    seeds.reset_seed(self.seed, seeds.Domain.RECORD, index),
                    perturb=noise if self.config.noise.sigma else None,
                    on_reset=lambda first: self._start(writer, index, first, env),
                    on_tick=lambda tick: writer.add_step(
                        _step(tick, expert.phase, env.contract.control_hz)
                    ),
                )
                return Recorded(index, outcome, self._end(writer, outcome))

        return run

    def _start(self, writer: EpisodeWriter, index: int, first: Observation, env: Any) -> None:
        writer.start_episode(
            {
                "task": self.task.name,
                "episode_id": self.episode_id(index),
                "instruction": str(first["instruction"]),
                "seed": self.seed,
                "index": index,
                "expert": "scripted",
                "noise": self.config.noise.model_dump(mode="json"),
                "recipe": self.recipe,
                "reset_state": {k: np.asarray(v).tolist() for k, v in env.get_state().items()},
                "software": software(),
                "contract": env.contract.to_dict(),
                "contract_digest": env.contract.digest,
            }
        )

    def _end(self, writer: EpisodeWriter, outcome: Outcome) -> Path | None:
        if outcome.success or self.config.keep_failures:
            return writer.end_episode(outcome.success, {"reward": outcome.reward})
        writer.abort()
        return None


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


def _step(tick: Tick, phase: str, control_hz: float) -> dict[str, Any]:
    arm_a, arm_b = tick.action
    return {
        **tick.observation,
        "action_a": arm_a[:-1],
        "action_b": arm_b[:-1],
        "grip_a": arm_a[-1],
        "grip_b": arm_b[-1],
        "success": tick.success,
        "phase": phase,
        "timestamp": tick.index / control_hz,
    }


def software() -> dict[str, str]:
    """Versions of what an episode's bytes may depend on."""
    names = ("teamvla", "mujoco", "numpy")
    return {name: version(name) for name in names} | {"python": platform.python_version()}


@dataclass
class Recording:
    """The sum of a recording."""

    kept: list[Recorded] = field(default_factory=list)
    attempts: int = 0
    successes: int = 0
    steps: int = 0
    new_steps: int = 0
    interrupted: bool = False

    def count(self, one: Recorded) -> None:
        self.attempts += 1
        self.successes += one.outcome.success
        if one.path is not None:
            self.kept.append(one)
            self.steps += one.outcome.steps
        if not one.existed:
            self.new_steps += one.outcome.steps


def record(
    recorder: Recorder,
    episodes: int,
    *,
    workers: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> Recording:
    """Record until ``episodes`` are kept; finished ones of an earlier run count.

    Attempts 0, 1, 2, ... are made in waves: as many as are asked for, then as many as
    the failures left missing. Which indices are tried depends on nothing else.

    Raises:
        InputError: an episode of other settings is in the way, or a file.
        EpisodeWriteError: the disk is full.
        SimulationError: the expert fails too often to get there.
    """
    check_folder(recorder.out)
    total = Recording()
    with progress(f"record {recorder.task.name}", episodes, "episode") as bar:
        while len(total.kept) < episodes and not total.interrupted:
            first, missing = total.attempts, episodes - len(total.kept)
            if first + missing > 3 * episodes + 10:
                raise SimulationError(
                    f"task {recorder.task.name}", "an expert that mostly succeeds",
                    f"{total.successes} successes in {total.attempts} attempts",
                    "Lower record.noise.sigma or the randomisation.",
                )  # fmt: skip
            for one in _wave(recorder, range(first, first + missing), workers, stop):
                total.count(one)
                bar.advance(one.path is not None, success=f"{total.successes}/{total.attempts}")
            total.interrupted = total.attempts < first + missing
    return total


def _wave(recorder: Recorder, indices: range, workers: int, stop: Callable[[], bool]) -> Any:
    found = {index: recorder.existing(index) for index in indices}
    missing = [index for index, one in found.items() if one is None]
    fresh = iter(()) if not missing else run_episodes(
        recorder, missing, workers=min(workers, len(missing)), stop=stop
    )  # fmt: skip
    for index in indices:
        one = found[index] or next(fresh, None)
        if one is None:
            return
        yield one
