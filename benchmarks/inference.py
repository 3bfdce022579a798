"""How long a policy takes for a chunk of actions: batch 1, one thread.

    python benchmarks/inference.py [--calls 100] [--only single_brain diffusion]

First every policy, then every head on single_brain, each with its default configuration and the
first picture of a handoff. ``chunk`` is the whole of ``predict_action_chunk``, from the
environment's arrays to actions in radians; ``network`` is ``forward`` alone on tensors that are
ready (the instruction being known, as in an episode from its second chunk on),
and ``ratio`` what the rest adds to it. Targets: a chunk takes at most 10 ms, with
diffusion or flow sampling at most 30 ms.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from teamvla.config import Project, shipped_configs
from teamvla.models.base import Policy, PolicyConfig, build_policy
from teamvla.models.device import one_thread
from teamvla.models.registries import ACTION_HEAD_REGISTRY
from teamvla.sim import make_env
from teamvla.sim.tasks import TaskConfig

#: heads that call their network several times for a chunk
SAMPLERS = ("diffusion", "flow")
#: other kinds of a head than its default
VARIANTS = {
    "diffusion": ("denoiser=mlp", "denoiser=transformer"),
    "transformer": ("output=continuous", "output=binned"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=[], help="rows whose name holds one of these")
    given = parser.parse_args()
    env = make_env(Project.load("handoff").section("task", TaskConfig))
    observation, info = env.reset(seed=0)
    observation = {**observation, "instruction": info["instruction"]}
    statistics_of = _statistics(env.contract.action_dim)
    print("| policy, head | parameters | chunk, ms | p90 | network, ms | ratio | target |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, config, overrides in rows():
        if given.only and not any(part in name for part in given.only):
            continue
        settings = Project.load(config, overrides).section("model", PolicyConfig)
        policy = build_policy(settings, env.contract, statistics_of).eval()
        print(measured(name, policy, observation, given.calls), flush=True)
    env.close()


def rows() -> Iterator[tuple[str, str, list[str]]]:
    """Name, configuration and overrides of what is measured."""
    for config in shipped_configs():
        if config.startswith("model/"):
            yield config.removeprefix("model/"), config, []
    for head in ACTION_HEAD_REGISTRY:
        for variant in VARIANTS.get(head, ("",)):
            name = f"single_brain, {head} {variant}".strip()
            choice = [f"model.head.type={head}"]
            yield name, "train_bc", choice + [f"model.head.{variant}"] * bool(variant)


def measured(name: str, policy: Policy, observation: dict[str, Any], calls: int) -> str:
    """A line of the table."""
    spaces, contract = policy.spaces, policy.contract
    images = np.stack([observation[camera.field] for camera in contract.cameras])
    tensors = {
        "image": torch.from_numpy(images).permute(0, 3, 1, 2)[None],
        "state": torch.zeros(1, spaces.state_dim),
    }
    ready = {"observations": tensors, "language": [observation["instruction"]]}

    @torch.no_grad()
    def network() -> None:
        policy(ready)

    chunk = chunk_milliseconds(lambda: policy.predict_action_chunk(observation), calls)
    bare = chunk_milliseconds(network, calls)
    middle, slow = statistics.median(chunk), statistics.quantiles(chunk, n=10)[-1]
    limit = 30 if policy.config.head.type in SAMPLERS else 10
    count = sum(p.numel() for p in policy.parameters()) / 1e6
    inside = statistics.median(bare)
    verdict = "met" if middle <= limit else "MISSED"
    return (
        f"| {name} | {count:.2f} M | {middle:.2f} | {slow:.2f} | {inside:.2f} "
        f"| {middle / inside:.2f} | <= {limit} ms: {verdict} |"
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
