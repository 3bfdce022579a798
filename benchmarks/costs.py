"""What each policy, head, encoder and fusion costs: a chunk at batch 1, a training step at 64.

    python benchmarks/costs.py [--calls 100] [--steps 10] [--only single_brain diffusion]

Every policy with its own configuration, then ``single_brain`` with every other part, on one
thread and the pictures of a handoff. ``chunk`` is the whole of ``predict_action_chunk``, from
the environment's arrays to actions in radians; ``network`` is ``forward`` alone on tensors that
are ready (the instruction being known, as in an episode from its second chunk on), and ``ratio``
what the rest adds to it. ``step`` is a training step as the trainer does it, as a ratio to one
of ``single_brain`` that takes turns with it. Targets: a chunk of the default policy takes at
most 10 ms, and with diffusion or flow sampling at most 30 ms.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from models import make_batch, training_step

from teamvla.config import Project, shipped_configs
from teamvla.contract import Contract
from teamvla.models.base import Policy, PolicyConfig
from teamvla.models.building import build_policy
from teamvla.models.device import one_thread
from teamvla.sim import make_env
from teamvla.sim.tasks import TaskConfig
from teamvla.train.trainer import wants_bf16

#: rows whose chunk has a limit, ms
LIMITS = {"single_brain": 10, "head diffusion denoiser=mlp": 30, "head flow denoiser=mlp": 30}
#: section of the model -> parts to take in place of the default's, each with its settings
PARTS = {
    "head": (
        "gaussian", "diffusion denoiser=mlp", "diffusion denoiser=transformer",
        "flow denoiser=mlp", "flow denoiser=transformer", "transformer output=continuous",
        "transformer output=binned", "act", "masked",
    ),
    "vision": (
        "resnet", "resnet pooling=spatial_softmax", "vit", "vit embed_dim=128",
    ),
    "language": ("words",),
    "fusion": ("film", "transformer", "transformer embed_dim=128"),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose name holds one of these")
    given = parser.parse_args()
    env = make_env(Project.load("handoff").section("task", TaskConfig))
    observation, info = env.reset(seed=0)
    observation = {**observation, "instruction": info["instruction"]}
    torch.set_num_threads(1)
    bench = Bench(env.contract, observation, given.calls, given.steps)
    print("| policy | parameters | chunk, ms | p90 | network, ms | ratio | step | target |")
    print(f"| {' | '.join(['---'] * 8)} |")
    for name, config, overrides in rows():
        if not given.only or any(part in name for part in given.only):
            print(bench.line(name, bench.policy(config, overrides)), flush=True)
    env.close()


def rows() -> Iterator[tuple[str, str, list[str]]]:
    """Name, configuration and overrides of what is measured."""
    for config in shipped_configs():
        if config.startswith("model/"):
            yield config.removeprefix("model/"), config, []
    for section, choices in PARTS.items():
        for choice in choices:
            kind, *settings = choice.split(" ")
            items = [f"model.{section}.{item}" for item in (f"type={kind}", *settings)]
            yield f"{section} {choice}", "train_bc", items
    yield "fusion transformer embed_dim=128, vision grid=4", "train_bc", [
        "model.vision.grid=4", "model.fusion.type=transformer", "model.fusion.embed_dim=128",
    ]  # fmt: skip


class Bench:
    """Where policies are measured, beside ``single_brain``."""

    def __init__(
        self, contract: Contract, observation: dict[str, Any], calls: int, steps: int
    ) -> None:
        self._contract, self._observation = contract, observation
        self._calls, self._steps = calls, steps
        self._usual = self._step(self.policy("train_bc", []))

    def policy(self, config: str, overrides: list[str]) -> Policy:
        settings = Project.load(config, overrides).section("model", PolicyConfig)
        return build_policy(settings, self._contract, _statistics(self._contract.action_dim))

    @staticmethod
    def _step(policy: Policy) -> Callable[[], object]:
        batch, autocast = make_batch(policy), wants_bf16("auto", torch.device("cpu"))
        return training_step(policy.train(), lambda: policy.loss(batch)["loss"], autocast)

    def step_ratio(self, policy: Policy) -> float:
        """A training step as a multiple of the usual one, by turns."""
        step = self._step(policy)
        took: tuple[list[float], list[float]] = ([], [])
        for number in range(2 + self._steps):
            for call, side in ((step, took[0]), (self._usual, took[1])):
                began = time.process_time()
                call()
                side.extend([time.process_time() - began] * (number > 1))
        return statistics.median(took[0]) / statistics.median(took[1])

    def line(self, name: str, policy: Policy) -> str:
        """A line of the table."""
        step = self.step_ratio(policy)
        policy.eval()
        images = np.stack([self._observation[c.field] for c in self._contract.cameras])
        tensors = {
            "image": torch.from_numpy(images).permute(0, 3, 1, 2)[None],
            "state": torch.zeros(1, policy.spaces.state_dim),
        }
        ready = {"observations": tensors, "language": [self._observation["instruction"]]}

        @torch.no_grad()
        def network() -> None:
            policy(ready)

        chunk = chunk_milliseconds(
            lambda: policy.predict_action_chunk(self._observation), self._calls
        )
        inside = statistics.median(chunk_milliseconds(network, self._calls))
        middle, slow = statistics.median(chunk), statistics.quantiles(chunk, n=10)[-1]
        target = "-"
        if name in LIMITS:
            verdict = "met" if middle <= LIMITS[name] else "MISSED"
            target = f"<= {LIMITS[name]} ms: {verdict}"
        count = sum(p.numel() for p in policy.parameters()) / 1e6
        return (
            f"| {name} | {count:.2f} M | {middle:.2f} | {slow:.2f} | {inside:.2f} "
            f"| {middle / inside:.2f} | {step:.2f} | {target} |"
        )


def chunk_milliseconds(call: Callable[[], object], calls: int) -> list[float]:
    """Processor time of each of ``calls`` calls on one thread, after a few to warm up.

    What else the machine does would be counted by a clock on the wall.
    """
    took = []
    with one_thread():
        for _ in range(5 + calls):
            began = time.process_time()
            call()
            took.append(1e3 * (time.process_time() - began))
    return took[5:]


def _statistics(size: int) -> dict[str, Any]:
    ones, zeros = [1.0] * size, [0.0] * size
    ends = {"min": [-1.0] * size, "max": ones, "q01": [-1.0] * size, "q99": ones}
    words = ["cube", "from", "give", "hand", "left", "right", "the", "to"]
    return {"actions": ends, "state": {"mean": zeros, "std": ones}, "words": words}


if __name__ == "__main__":
    main()
