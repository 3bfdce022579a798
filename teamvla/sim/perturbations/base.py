"""What a perturbation is, how one is asked for, and the environment that it disturbs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from functools import reduce
from typing import Any, ClassVar

import numpy as np

from teamvla.contract import Contract
from teamvla.errors import ConfigError, SimulationError
from teamvla.registry import Registry
from teamvla.sim.interface import Action, Expert, Observation, RobotEnv, State


class Perturbation:
    """One thing that goes wrong. A subclass overrides what it changes, and nothing else.

    Everything random is drawn from the episode's generator ``rng``, which
    :meth:`begin` is given and which depends on the reset's seed and the name alone. So an
    episode is the same without the perturbation in all that the perturbation leaves alone:
    the unperturbed episode of the same seed is its matched control.

    Attributes:
        unit: of the strength.
        default: strength if none is told.
        limit: greatest strength. 0 would change nothing and is refused.
        needs: what an environment must have, if :meth:`fits` asks for something.
    """

    unit: ClassVar[str]
    default: ClassVar[float]
    limit: ClassVar[float]
    needs: ClassVar[str] = "any environment"

    def __init__(self, strength: float) -> None:
        self.strength = strength

    @classmethod
    def fits(cls, env: RobotEnv) -> bool:
        """Whether ``env`` has something to perturb."""
        return True

    def attach(self, env: RobotEnv) -> None:
        """Called once, with an environment that fits."""

    def begin(self, env: RobotEnv, rng: np.random.Generator) -> None:
        """An episode has been reset."""

    def before_step(self, env: RobotEnv, step: int) -> None:
        """The ``step``-th command of the episode, from 0, is about to be carried out."""

    def see(self, observation: Observation) -> Observation:
        """What the policy sees instead of ``observation``, which must stay as it is."""
        return observation

    def carry_out(self, action: Action) -> Action:
        """What is carried out instead of ``action``."""
        return action

    def say(self, instruction: str) -> str:
        """What the policy is told instead of ``instruction``."""
        return instruction


_HOME = "teamvla.sim.perturbations"
PERTURBATIONS: Registry[type[Perturbation]] = Registry(
    "perturbation",
    {
        "camera_shift": f"{_HOME}.scene:CameraShift",
        "blackout": f"{_HOME}.signals:Blackout",
        "camera_noise": f"{_HOME}.signals:CameraNoise",
        "lighting": f"{_HOME}.scene:Lighting",
        "object_colour": f"{_HOME}.scene:ObjectColour",
        "object_size": f"{_HOME}.scene:ObjectSize",
        "object_mass": f"{_HOME}.scene:ObjectMass",
        "distractor": f"{_HOME}.scene:Distractor",
        "push": f"{_HOME}.scene:Push",
        "action_delay": f"{_HOME}.signals:ActionDelay",
        "action_noise": f"{_HOME}.signals:ActionNoise",
        "paraphrase": f"{_HOME}.words:Paraphrase",
        "swap": f"{_HOME}.words:Swap",
        "gibberish": f"{_HOME}.words:Gibberish",
    },
    "teamvla.perturbations",
)


def parse_perturbations(text: str) -> dict[str, float]:
    """Strengths by name from ``push``, ``camera_shift=0.1`` or several joined by ``+``.

    Raises:
        RegistryError: there is no such perturbation. ConfigError: the strength is none.
    """
    wanted: dict[str, float] = {}
    for part in text.split("+"):
        name, given, number = (piece.strip() for piece in part.partition("="))
        kind = PERTURBATIONS.get(name)
        if name in wanted:
            raise ConfigError(f"perturbation {text}", "each name once", f"{name} twice")
        wanted[name] = _strength(name, kind, number) if given else kind.default
    return wanted


def _strength(name: str, kind: type[Perturbation], text: str) -> float:
    try:
        strength = float(text)
    except ValueError:
        strength = math.nan
    if not 0 < strength <= kind.limit:
        expected = f"a strength above 0, at most {kind.limit:g} ({kind.unit})"
        raise ConfigError(
            f"perturbation {name}", expected, text, f"{name}={kind.default:g} is usual."
        )
    return strength


def perturbed(env: RobotEnv, strengths: Mapping[str, float]) -> RobotEnv:
    """``env`` with all of these perturbations at once; itself if there are none.

    Raises:
        ConfigError: the environment has nothing that one of them could perturb.
    """
    wanted = [(name, PERTURBATIONS.get(name)(strength)) for name, strength in strengths.items()]
    return reduce(lambda inner, one: PerturbedEnv(inner, *one), wanted, env)


class PerturbedEnv(RobotEnv):
    """An environment under one perturbation; whoever acts in it is not told.

    Attributes:
        inner: the environment that is disturbed.
    """

    def __init__(self, inner: RobotEnv, name: str, perturbation: Perturbation) -> None:
        self.inner, self._perturbation = inner, perturbation
        self._stream = zlib.crc32(name.encode())
        self._step, self._begun = 0, False
        self.metadata, self.render_mode = inner.metadata, inner.render_mode
        self.observation_space, self.action_space = inner.observation_space, inner.action_space
        self.contract: Contract = inner.contract
        self.max_steps = inner.max_steps
        if not perturbation.fits(inner):
            raise _unfit(name, perturbation.needs, inner)
        perturbation.attach(inner)

    @property
    def unwrapped(self) -> Any:
        """The environment below all perturbations."""
        return self.inner.unwrapped

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode: but for the perturbation that of ``seed``."""
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(2**32))
        observation, info = self.inner.reset(seed=seed, options=options)
        self._step, self._begun = 0, True
        self._perturbation.begin(self.inner, np.random.default_rng([self._stream, seed]))
        return self._perturbation.see(observation), self._told(info)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Carry out a command, or what the perturbation makes of it."""
        if not (self._begun and _sound(action, self.contract)):
            self.inner.step(action)  # refuses it, in its own words
            raise _not_refused(action)
        self._perturbation.before_step(self.inner, self._step)
        self._step += 1
        action = self._perturbation.carry_out(action)
        observation, reward, ended, truncated, info = self.inner.step(action)
        seen = self._perturbation.see(observation)
        return seen, float(reward), ended, truncated, self._told(info)

    def render(self) -> Any:
        """The inner environment's picture."""
        return self.inner.render()

    def close(self) -> None:
        """Close the inner environment."""
        self.inner.close()

    def expert(self) -> Expert:
        """The inner environment's expert, which sees the simulator and not the pictures."""
        return self.inner.expert()

    @property
    def instruction(self) -> str:
        """What the policy is told."""
        return self._perturbation.say(self.inner.instruction)

    def get_state(self) -> State:
        """Not to be had.

        Raises:
            SimulationError: always.
        """
        raise _no_state()

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Not to be had.

        Raises:
            SimulationError: always.
        """
        raise _no_state()

    def _told(self, info: dict[str, Any]) -> dict[str, Any]:
        return {**info, "instruction": self._perturbation.say(info["instruction"])}


def _sound(action: Action, contract: Contract) -> bool:
    """Whether an action is one that can be perturbed."""
    try:
        values = np.asarray(action, np.float64)
    except (TypeError, ValueError):
        return False
    return values.shape == (contract.action_dim,) and bool(np.isfinite(values).all())


def _not_refused(action: Action) -> SimulationError:
    expected = "a reset first, and then as many finite numbers as the contract has"
    return SimulationError("action", expected, f"{np.shape(action)}")


def _no_state() -> SimulationError:
    expected, got = "an environment that can be put back", "one under a perturbation"
    return SimulationError("state", expected, got, "Reset it with the same seed instead.")


def fitting(env: RobotEnv) -> list[str]:
    """The perturbations that have something in ``env`` to perturb."""
    return [name for name in PERTURBATIONS if PERTURBATIONS.get(name).fits(env)]


def _unfit(name: str, needs: str, env: RobotEnv) -> ConfigError:
    got = f"{type(env.unwrapped).__name__} of embodiment {env.contract.embodiment}"
    return ConfigError(f"perturbation {name}", needs, got, f"What fits: {', '.join(fitting(env))}.")
