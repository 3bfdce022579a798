"""The world model: from recording to planning in it, as docs/world_model.md tells it.

    python benchmarks/world.py --out runs/world            all of it; what is there is kept
    python benchmarks/world.py --out runs/world --stage mpc
    python benchmarks/world.py --cost                      ms of planning once, on one thread

Stages: ``record`` (expert, noisy expert, random commands), ``train``, ``open`` (what it predicts
without looking), ``mpc`` (what planning in it earns, on initial states that nobody has seen).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teamvla.config import Project
from teamvla.data import Episode, find_episodes, read_episode
from teamvla.evaluation.baselines import DoNothing, RandomActions, expert
from teamvla.evaluation.policies import OnOneThread
from teamvla.evaluation.suites import OpenActor, Player, Suite
from teamvla.models.device import one_thread
from teamvla.models.loading import load_policy
from teamvla.models.spaces import Spaces
from teamvla.models.world.decoder import shrunk
from teamvla.models.world.world_model import WorldModel, WorldModelConfig
from teamvla.record import RecordConfig, Recorder, record
from teamvla.rollout import Actor
from teamvla.sim import RobotEnv
from teamvla.sim.tasks import TaskConfig

STAGES = ("record", "train", "open", "mpc")
_EXPLORERS = "teamvla.record.explorers"
#: folder -> episodes, seed, expert, steps after which an episode is cut off
MIXTURE: dict[str, tuple[int, int, str | None, int]] = {
    "expert": (20, 0, None, 400),
    "noisy": (240, 1, f"{_EXPLORERS}:NoisyExpert", 300),
    "distracted": (40, 3, f"{_EXPLORERS}:Distracted", 400),
    "random": (15, 2, f"{_EXPLORERS}:Wanderer", 200),
}
#: the same, of seeds of their own, to look at predictions
HELD_OUT = {name: (max(6, n // 10), seed + 10, *rest) for name, (n, seed, *rest) in MIXTURE.items()}
CONTEXT = 5  # steps that the model sees before it must go on alone
AHEAD = (5, 15, 25, 45, 75, 225)  # control steps
PLANNERS = ("shooting", "mppi", "cem")  # the others are compared with the first


def record_mixture(out: Path, mixture: Mapping[str, Any], project: Project) -> list[Path]:
    """Record what is missing of a mixture; its folders."""
    for name, (count, seed, who, steps) in mixture.items():
        task = project.replace("task", max_steps=steps).section("task", TaskConfig)
        config = RecordConfig(expert=who, keep_failures=who is not None)
        total = record(Recorder(task, config, out / name, seed), count)
        print(f"{name}: {len(total.kept)} episodes, {total.successes} successes", flush=True)
    return [out / name for name in mixture]


def train_model(project: Project, roots: Sequence[Path], folder: Path) -> Path:
    """Train, or go on training; the checkpoint."""
    from teamvla.train.bc_trainer import train
    from teamvla.train.runs import resume_run, start_run

    project = project.replace("dataset", roots=[str(root) for root in roots])
    there = (folder / "config.yaml").exists()
    run = resume_run(folder) if there else start_run(project, folder)
    train(run)
    print(f"trained for {run.state.seconds / 60:.1f} minutes", flush=True)
    return folder / "checkpoints" / "last.ckpt"


# ---- open loop ----


def as_batch(episode: Episode, model: WorldModel) -> dict[str, Any]:
    """An episode as a batch of one sequence."""
    arrays, contract = episode.fields, model.contract
    states = [arrays[s.field] for s in contract.signals if s.field in model_state_fields(model)]
    state = np.concatenate([x.reshape(len(x), -1) for x in states], 1).astype(np.float32)
    image = np.stack([arrays[camera.field] for camera in contract.cameras], 1)
    fields = [arrays[s.field].reshape(len(state), -1) for s in contract.action_signals]
    actions = np.concatenate(fields, 1).astype(np.float32)
    return {
        "observations": {
            "state": torch.from_numpy(state)[None],
            "image": torch.from_numpy(image).movedim(-1, 2)[None],
        },
        "actions": torch.from_numpy(actions)[None, :, None],
        "observation_is_pad": torch.zeros(1, len(state), dtype=torch.bool),
    }


def model_state_fields(model: WorldModel) -> list[str]:
    """The observation signals that make the joined state of a contract without arms."""
    shown = [s for s in model.contract.signals if s.role == "observation"]
    return [s.field for s in shown if s.field not in model.spaces.sensors]


@torch.inference_mode()
def open_loop(model: WorldModel, paths: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    """Rows of the table: what, steps ahead, n, errors of the model and of what it must beat.

    An error is squared and averaged over numbers (in deviations of the data) or pixels (of
    0..1) and over the starts in an episode; intervals are over episodes.
    """
    repeat = model.config.action_repeat
    seen = [_thinned(model, as_batch(read_episode(path), model)) for path in paths]
    means = {name: torch.cat([one[name] for one, _, _ in seen]).mean(0) for name in seen[0][0]}
    for ahead in (steps // repeat for steps in AHEAD):
        errors: dict[str, list[tuple[float, float, float]]] = {name: [] for name in means}
        for observed, believed, actions in seen:
            starts = range(CONTEXT - 1, len(actions) - ahead, 5)
            found = [_missed(model, observed, believed, actions, at, ahead, means) for at in starts]
            for name in errors if found else ():
                errors[name].append(tuple(np.mean([one[name] for one in found], 0)))
        for name, rows in errors.items():
            yield (name, f"{ahead * repeat} ({ahead * repeat / model.contract.control_hz:.3g} s)",
                   str(len(rows)), *_compared(np.array(rows)))  # fmt: skip


def _thinned(model: WorldModel, batch: Mapping[str, Any]) -> tuple[Any, Any, torch.Tensor]:
    """Observations, beliefs and normalised commands of an episode, by steps of the model."""
    windows = model._windows(batch, rewards=False)
    observed = {
        "state": model.normalizer.normalize_state(windows.observations["state"][0]),
        "picture": shrunk(windows.observations["image"][0], model.config.senses),
    }
    return observed, model.observe(batch), windows.actions[0]


def _missed(
    model: WorldModel, observed: Any, believed: Any, actions: torch.Tensor, at: int, ahead: int,
    means: Mapping[str, torch.Tensor],
) -> dict[str, tuple[float, float, float]]:  # fmt: skip
    """Squared errors of the model, the last one seen, and the mean, ``ahead`` of ``at``."""
    start = believed.map(lambda part: part[:, at])
    states = model.rssm.imagine(start, actions[None, at : at + ahead])
    told = model.decoder(states.features[:, -1])
    told = {"state": told["state"][0], "picture": told["image"][0]}
    return {
        name: tuple(
            float((guess - values[at + ahead]).square().mean())
            for guess in (told[name], values[at], means[name])
        )
        for name, values in observed.items()
    }  # type: ignore[return-value]


def _compared(errors: np.ndarray) -> tuple[str, ...]:
    """Mean errors, and the model's as a share of each other's: geometric mean over episodes."""
    model, copy, mean = errors.T
    return (f"{model.mean():.4f}", f"{copy.mean():.4f}", _share(model / copy),
            f"{mean.mean():.4f}", _share(model / mean))  # fmt: skip


def _share(ratios: np.ndarray) -> str:
    """Geometric mean with its 95 % interval: a crash in one episode must not decide alone."""
    logs = np.log(ratios)
    half = 1.96 * logs.std(ddof=1) / math.sqrt(len(logs)) if len(logs) > 1 else math.inf
    low, middle, high = (100 * math.exp(logs.mean() + shift) for shift in (-half, 0, half))
    return f"{middle:.0f} % [{low:.0f}, {high:.0f}]"


def _interval(values: np.ndarray) -> str:
    """95 % interval of a mean."""
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.inf
    return f"[{values.mean() - half:.1f}, {values.mean() + half:.1f}]"


# ---- planning ----


@dataclass(frozen=True)
class Drive:
    """One episode's rewards, and whether it came to its goal."""

    rewards: np.ndarray
    success: bool

    def within(self, steps: int) -> float:
        """The return of so many steps: a goal that was reached stays reached.

        The plain sum would pay for dawdling, as an episode ends with its success.
        """
        held = self.rewards[-1] * max(0, steps - len(self.rewards)) if self.success else 0.0
        return float(self.rewards[:steps].sum() + held)


def drives(suite: Suite, open_actor: OpenActor, episodes: int) -> list[Drive]:
    """Play the first initial states of a suite."""
    player, found = Player(suite, open_actor), []
    for index in range(episodes):
        rewards: list[float] = []
        trial = player.play(index, on_tick=lambda tick, into=rewards: into.append(tick.reward))
        found.append(Drive(np.array(rewards or [0.0]), trial.success))
    player.close()
    return found


def planned(model: WorldModel, kind: str, samples: int) -> OpenActor:
    """Opens the model as an actor that plans so."""

    def open_actor(env: RobotEnv) -> Actor:
        changed = {"type": kind, "samples": samples}
        model.set_planner(model.config.planner.model_copy(update=changed))
        return OnOneThread(model)

    return open_actor


def closed_loop(
    model: WorldModel, task: TaskConfig, episodes: int, samples: Sequence[int]
) -> Iterator[tuple[str, ...]]:
    """Rows of the table: who, n, share of the expert's return, against shooting, successes."""
    suite = Suite(task)
    actors: dict[str, OpenActor] = {"expert": expert, "nothing": DoNothing, "random": RandomActions}
    actors |= {f"{k} {n}": planned(model, k, n) for n in samples for k in PLANNERS}
    best: list[Drive] = []
    shares: dict[str, np.ndarray] = {}
    for name, open_actor in actors.items():
        found = drives(suite, open_actor, episodes)
        best = best or found
        earned = [
            d.within(len(e.rewards)) / e.rewards.sum() for d, e in zip(found, best, strict=True)
        ]
        shares[name] = 100 * np.array(earned)
        first = shares.get(f"{PLANNERS[0]} {name.rpartition(' ')[2]}")
        ahead = "" if first is None else _interval(shares[name] - first)
        plain = np.mean([one.rewards.sum() for one in found])
        share = f"{shares[name].mean():.1f} % {_interval(shares[name])}"
        yield (name, str(len(found)), share, ahead,
               f"{sum(one.success for one in found)}", f"{plain:.1f}")  # fmt: skip


def cost(repetitions: int = 9) -> Iterator[tuple[str, ...]]:
    """Processor time of planning once with the default model, 512 candidates, 15 steps."""
    model = WorldModel(WorldModelConfig(), Spaces.plain(2, 4, image_size=32)).eval()
    with torch.inference_mode(), one_thread():
        belief = model.rssm.initial(1)
        for kind in PLANNERS:
            model.set_planner(model.config.planner.model_copy(update={"type": kind}))
            times = sorted(_timed(lambda: model._command(belief, *model._fresh_planner()))
                           for _ in range(repetitions))  # fmt: skip
            yield kind, f"{times[len(times) // 2]:.0f} ms", f"{times[-1]:.0f} ms at most"


def _timed(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return 1000 * (time.process_time() - started)


def show(head: str, rows: Iterator[tuple[str, ...]]) -> None:
    print(f"\n{head}\n{' | '.join('---' for _ in head.split('|'))}")
    for row in rows:
        print(" | ".join(row), flush=True)


OPEN_HEAD = "what | ahead | n | model | copy | of copying | mean | of the mean"
LOOP_HEAD = "who | n | of the expert's return | ahead of shooting by | successes | plain return"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/world"))
    parser.add_argument("--stage", choices=STAGES, action="append")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--cost", action="store_true")
    given = parser.parse_args()
    if given.cost:
        return show("planner | median | worst", cost())
    stages, out = given.stage or STAGES, given.out
    project = Project.load("train_world")
    if "record" in stages:
        record_mixture(out / "data", MIXTURE, project)
        record_mixture(out / "held_out", HELD_OUT, project)
    checkpoint = out / "train" / "checkpoints" / "last.ckpt"
    if "train" in stages:
        checkpoint = train_model(project, [out / "data" / n for n in MIXTURE], out / "train")
    if not {"open", "mpc"} & {*stages}:
        return None
    model, _ = load_policy(checkpoint)
    assert isinstance(model, WorldModel)
    if "open" in stages:
        show(OPEN_HEAD, open_loop(model, find_episodes(out / "held_out")))
    if "mpc" in stages:
        task = project.section("task", TaskConfig)
        show(LOOP_HEAD, closed_loop(model, task, given.episodes, given.samples))
    return None


if __name__ == "__main__":
    main()
