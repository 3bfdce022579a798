"""What the default policy costs to train, against plain functions and against the processor.

    python benchmarks/models.py [--rounds 30] [--profile]

``step``: policy.loss, backward, clipping and the optimizer at batch 64, two pictures of 64 px,
one thread, beside the same network and loss written below as one flat function over the same
parameters: once in float32 and once as configured (bfloat16 autocast where the processor
multiplies such numbers, the arms' geometry on both sides). Target: at most 1.15. Both must give the
same loss, or nothing is timed.

``peak``: what share of the processor's fastest float32 matrix product, on one thread, the
policy's forward and backward reach, with the operations that torch counts. Target: at least
50 %. ``--profile`` lists where the time goes.

Seconds are of processor time, medians of rounds that take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor
from torch.nn import functional as f
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from teamvla.config import Project
from teamvla.models.base import Policy, PolicyConfig
from teamvla.models.building import build_policy
from teamvla.models.losses import LossConfig
from teamvla.sim import make_env
from teamvla.sim.tasks import TaskConfig
from teamvla.train.schedulers import OptimizerConfig, make_optimizer
from teamvla.train.trainer import wants_bf16

BATCH = 64
INSTRUCTIONS = (
    "hand the bar over from the left to the right", "pass the bar to the other arm",
    "give the bar to the right arm", "lift the tray with both arms",
)  # fmt: skip
Batch = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--profile", action="store_true", help="list where the time goes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with_geometry, without = default_policy(LossConfig()), default_policy(NO_GEOMETRY)
    autocast = wants_bf16("auto", torch.device("cpu"))
    compare("float32, no geometry", without, False, given.rounds)
    compare(f"as configured ({'bf16' if autocast else 'fp32'})", with_geometry, autocast,
            given.rounds)  # fmt: skip
    share_of_peak(without, given.rounds, given.profile)


NO_GEOMETRY = LossConfig(sync=0, collision=0)


def default_policy(loss: LossConfig) -> Policy:
    project = Project.load("train_bc", ["task.camera.height=64", "task.camera.width=64"])
    contract = make_env(project.section("task", TaskConfig)).contract
    ones = [1.0] * contract.action_dim
    ends = {"min": [-1.0] * len(ones), "max": ones}
    known = {"actions": ends, "state": {"mean": [0.0] * len(ones), "std": ones}}
    return build_policy(project.section("model", PolicyConfig), contract, known, loss).train()


def make_batch(policy: Policy) -> Batch:
    """Noise of the shapes and layout that the dataset gives; some chunks are padded."""
    draw = torch.Generator().manual_seed(0)
    spaces, chunk = policy.spaces, policy.config.chunk_size
    channels, height, width = spaces.picture
    shape = (BATCH, len(spaces.cameras), height, width, channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    actions = torch.rand(BATCH, chunk, spaces.action_dim, generator=draw)
    left = torch.randint(1, 4 * chunk, (BATCH, 1), generator=draw)
    return {
        "observations": {
            "image": images.permute(0, 1, 4, 2, 3),
            "state": torch.randn(BATCH, spaces.state_dim, generator=draw),
        },
        "actions": actions,
        "action_is_pad": torch.arange(chunk) >= left,
        "language": [INSTRUCTIONS[row % len(INSTRUCTIONS)] for row in range(BATCH)],
    }


def plain_loss(p: Mapping[str, Tensor], policy: Policy, batch: Batch, text: Batch) -> Tensor:
    """The default policy's loss as plain functions of its parameters ``p``.

    ``text`` holds the distinct instructions' ids and mask, and which one each row has.
    """
    images = batch["observations"]["image"].flatten(0, 1)
    x = images.contiguous(memory_format=torch.channels_last).float().mul_(2 / 255).sub_(1)
    c = "vision.convolutions"
    x = f.relu(f.conv2d(x, p[f"{c}.0.weight"], p[f"{c}.0.bias"], 2, 2), inplace=True)
    for conv, norm, stride in ((2, 3, 2), (5, 6, 2), (8, 9, 1)):
        x = f.conv2d(x, p[f"{c}.{conv}.weight"], p[f"{c}.{conv}.bias"], stride, 1)
        dtype, weight, bias = x.dtype, p[f"{c}.{norm}.weight"], p[f"{c}.{norm}.bias"]
        x = f.relu(f.group_norm(x.float(), 8, weight, bias).to(dtype), inplace=True)
    x = f.conv2d(x, p[f"{c}.11.weight"], p[f"{c}.11.bias"])
    x = x.permute(0, 2, 3, 1).reshape(BATCH, -1, x[0].numel())
    seen = f.silu(_linear(p, "fusion.pool.linear", x)).flatten(1)
    told = plain_text(p, text)[text["rows"]]
    n = policy.normalizer
    state = (batch["observations"]["state"] - n.state_mean) / n.state_std
    x = f.silu(_linear(p, "fusion.inputs", torch.cat([seen, told, state], 1)))
    for block in ("fusion.trunk.0", "fusion.trunk.1", "fusion.trunk.2"):
        inner = f.silu(_linear(p, f"{block}.inner", _norm(p, f"{block}.norm", x)))
        x = x + _linear(p, f"{block}.outer", inner)
    raw = _linear(p, "heads.0.layers.0", _norm(p, "fusion.trunk.3", x))
    return _plain_regression(policy, raw.reshape(batch["actions"].shape).float(), batch)


def plain_text(p: Mapping[str, Tensor], text: Batch) -> Tensor:
    """Mean token of each distinct instruction, in float32."""
    with torch.autocast("cpu", enabled=False):
        ids, mask = text["ids"], text["mask"]
        x = f.embedding(ids, p["language.embedding.weight"])
        x = x + p["language.positions.weight"][: ids.shape[1]]
        for block in ("language.blocks.0", "language.blocks.1"):
            y = _norm(p, f"{block}.norm_attention", x)
            q, k, v = (
                _linear(p, f"{block}.attention.{name}_proj", y)
                .reshape(*ids.shape, 4, -1)
                .transpose(1, 2)
                for name in "qkv"
            )
            y = f.scaled_dot_product_attention(q, k, v, mask[:, None, None])
            x = x + _linear(p, f"{block}.attention.o_proj", y.transpose(1, 2).flatten(2))
            y = f.gelu(_linear(p, f"{block}.mlp.0", _norm(p, f"{block}.norm_mlp", x)))
            x = x + _linear(p, f"{block}.mlp.2", y)
        x, weights = _norm(p, "language.norm", x), mask.unsqueeze(-1).float()
        return (x * weights).sum(1) / weights.sum(1)


def _plain_regression(policy: Policy, raw: Tensor, batch: Batch) -> Tensor:
    n, grip = policy.normalizer, list(policy.spaces.grippers)
    is_gripper = torch.zeros(raw.shape[-1], dtype=torch.bool)
    is_gripper[grip] = True
    predicted = torch.where(is_gripper, raw.sigmoid() * 2 - 1, raw)
    target = (batch["actions"] - n.action_center) / n.action_scale
    valid = ~batch["action_is_pad"].unsqueeze(-1)
    config = policy.config.head
    off = f.smooth_l1_loss(predicted, target, reduction="none", beta=config.huber_delta)
    total = torch.where(valid, off, 0.0).sum() / (valid.sum() * raw.shape[-1])
    closed = ((target[..., grip] + 1) / 2).clamp(0, 1)
    off = f.binary_cross_entropy_with_logits(raw[..., grip], closed, reduction="none")
    gripper = torch.where(valid, off, 0.0).sum() / (valid.sum() * len(grip))
    total = total + config.gripper_weight * gripper
    assert policy.geometry is not None
    joined = predicted * n.action_scale + n.action_center
    # The arms' kinematics are no part of the network: the same on both sides.
    parts = policy.geometry(joined, batch["actions"], batch["action_is_pad"])
    return total + policy.geometry.total(parts)


def _linear(p: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return f.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def _norm(p: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return f.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"])


def compare(name: str, policy: Policy, autocast: bool, rounds: int) -> None:
    """Time training steps of a policy against the plain functions, taking turns."""
    twin, batch = deepcopy(policy), make_batch(policy)
    parameters = dict(twin.named_parameters())
    tokens = policy.language.tokenize(INSTRUCTIONS)
    text = {"ids": tokens["input_ids"], "mask": tokens["attention_mask"],
            "rows": torch.arange(BATCH) % len(INSTRUCTIONS)}  # fmt: skip
    steps = [
        training_step(policy, lambda: policy.loss(batch)["loss"], autocast),
        training_step(twin, lambda: plain_loss(parameters, twin, batch, text), autocast),
    ]
    for number in range(3):
        ours, plain = (step() for step in steps)
        if not torch.allclose(ours, plain, rtol=2e-2 if autocast else 1e-4):
            raise SystemExit(f"step {number}: {ours} and {plain} are not the same network")
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for side in (0, 1) if number % 2 else (1, 0):
            began = time.process_time()
            steps[side]()
            seconds[side].append(time.process_time() - began)
    ours_ms, plain_ms = (1e3 * statistics.median(side) for side in seconds)
    ratio = ours_ms / plain_ms
    verdict = "met" if ratio <= 1.15 else "MISSED"
    print(f"step, {name:32} policy {ours_ms:6.1f} ms  plain {plain_ms:6.1f} ms  "
          f"ratio {ratio:.3f} (<= 1.15: {verdict})", flush=True)  # fmt: skip


def training_step(
    policy: Policy, loss_of: Callable[[], Tensor], autocast: bool
) -> Callable[[], Tensor]:
    """One step as the trainer does it."""
    optimizer = make_optimizer(policy, OptimizerConfig())

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def share_of_peak(policy: Policy, rounds: int, listed: bool) -> None:
    """Operations per second of forward and backward beside the best matrix product's."""
    batch, parameters = make_batch(policy), list(policy.parameters())

    def both_ways() -> None:
        torch.autograd.grad(policy.loss(batch)["loss"], parameters)

    with FlopCounterMode(display=False) as counter:
        both_ways()
    products = {size: product(size) for size in (128, 256, 512, 1024, 2048)}
    rates: dict[int, list[float]] = {size: [] for size in products}
    network: list[float] = []
    for _ in range(rounds):
        network.append(counter.get_total_flops() / seconds_of(both_ways))
        for size, call in products.items():
            repeats = max(1, (1024 // size) ** 3)
            rates[size].append(repeats * 2 * size**3 / seconds_of(call, repeats))
    best = max(rates, key=lambda size: statistics.median(rates[size]))
    peak, reached = statistics.median(rates[best]), statistics.median(network)
    verdict = "met" if reached >= 0.5 * peak else "MISSED"
    print(f"sgemm peak, {best} x {best}, one thread: {peak / 1e9:.1f} GFLOP/s")
    print(f"policy, fp32, forward and backward: {counter.get_total_flops() / 1e9:.2f} GFLOP, "
          f"{reached / 1e9:.1f} GFLOP/s")  # fmt: skip
    print(f"share of the peak: {100 * reached / peak:.0f} % (>= 50 %: {verdict})")
    if listed:
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(5):
                both_ways()
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=20))


def product(size: int) -> Callable[[], object]:
    left, right, out = (torch.randn(size, size) for _ in range(3))
    return lambda: torch.mm(left, right, out=out)


def seconds_of(call: Callable[[], object], repeats: int = 1) -> float:
    began = time.process_time()
    for _ in range(repeats):
        call()
    return time.process_time() - began


if __name__ == "__main__":
    main()
