"""Small policies for the two arms, with every part that is registered, and batches for them."""

from __future__ import annotations

import re
from typing import Any

import torch

from teamvla.config import Settings
from teamvla.contract import Contract
from teamvla.models import ACTION_HEAD_REGISTRY, MODELS, LossConfig, Policy, build_policy
from teamvla.registry import Registry
from teamvla.sim.scene import two_arm_contract

SIZE, CHUNK, ARM, DIM = 32, 4, 7, 14
CONTRACT = two_arm_contract(SIZE, SIZE)
STATISTICS = {
    "actions": {"min": [-1.0] * DIM, "max": [1.0] * DIM},
    "state": {"mean": [0.0] * DIM, "std": [1.0] * DIM},
    "words": dict.fromkeys(("lift", "the", "tray", "hold", "lower"), 1),
}
#: settings that make any part small, wherever it has them
SMALL = {
    "width": 8, "reduced": 8, "grid": 4, "features": 16, "layers": [1, 1], "patch_size": 8,
    "hidden_dim": 32, "embed_dim": 32, "latent_dim": 4, "message_dim": 8, "vocab_size": 20,
    "num_heads": 2, "num_layers": 1, "num_blocks": 1, "encoder_layers": 1, "decoder_layers": 1,
    "n_layers": 1, "num_bins": 32, "mlp_ratio": 2.0, "dropout": 0.0, "word_dropout": 0.0,
}  # fmt: skip


def shipped(registry: Registry[Any]) -> list[str]:
    """The names of this package's own entries: other tests may have entered theirs."""
    return [name for name in registry if registry[name].__module__.startswith("teamvla.")]


#: around weights of somebody else's, or for other batches: they have tests of their own
APART = ("openvla", "smolvla", "vla_model", "world_model")
HEADS = shipped(ACTION_HEAD_REGISTRY)
#: those that take any of the heads
COMPOSABLE = [name for name in shipped(MODELS) if name not in APART]


def shrunk(kind: type[Settings], **changes: Any) -> dict[str, Any]:
    """The settings of a part as plain data, made small by :data:`SMALL`."""
    data: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if isinstance(field.default, Settings):
            data[name] = shrunk(type(field.default))
        elif name in SMALL:
            data[name] = SMALL[name]
        elif name == "type":
            data[name] = field.default
    return data | changes


def small_head(name: str) -> dict[str, Any]:
    return shrunk(ACTION_HEAD_REGISTRY.get(name).Config)


def make(
    name: str, head: str | None = None, contract: Contract = CONTRACT, **changes: Any
) -> Policy:
    """A small policy; without ``head`` with its own."""
    kind: Any = MODELS.get(name)
    chosen = {} if head is None else {"head": small_head(head)}
    data = shrunk(kind.Config, chunk_size=CHUNK, **chosen) | changes
    config = kind.Config.model_validate(data)
    # The batches' random targets cross the arms: the penalty would rightly refuse them.
    return build_policy(config, contract, STATISTICS, LossConfig(collision=0))


def make_batch(rows: int = 3, seed: int = 0, chunk: int = CHUNK) -> dict[str, Any]:
    """Random pictures, states and joint targets; the first row ends in padding."""
    random = torch.Generator().manual_seed(seed)
    shape = (rows, 2, 3, SIZE, SIZE)
    actions = torch.rand(rows, chunk, DIM, generator=random) * 1.6 - 0.8
    actions[..., [6, 13]] = (actions[..., [6, 13]] > 0).float()
    is_pad = torch.zeros(rows, chunk, dtype=torch.bool)
    is_pad[0, chunk // 2 :] = chunk > 1
    return {
        "observations": {
            "image": torch.randint(0, 256, shape, dtype=torch.uint8, generator=random),
            "state": torch.randn(rows, DIM, generator=random),
        },
        "actions": actions,
        "action_is_pad": is_pad,
        "language": [("lift the tray", "hold", "lower the tray")[row % 3] for row in range(rows)],
    }


#: parameters whose slope is zero, so that only rounding is left of it: of the keys' bias, which
#: is the same for all keys, and softmax does not see what is added to all
FLAT = r"k_proj\.bias$"
#: and with a single token in the features, which gets all attention whatever is asked of it
FLAT_ALONE = rf"{FLAT}|^heads\.\d+\.blocks\.\d+\.(norm_cross|cross\.[qk]_proj)\."
#: between slopes of parameters that count, from 6e-8 on, and what rounding leaves, up to 4e-10
LEAST_SLOPE = 5e-9


def assert_slopes(policy: Policy, batch: dict[str, Any]) -> None:
    """A finite slope of the loss for every parameter, and none is zero but where it must be."""
    policy.train().loss(batch)["loss"].backward()
    # ACT looks at its latent besides.
    alone = policy.encode(batch)[0].tokens.mask.shape[1] == 1 and policy.config.head.type != "act"
    flat = re.compile(FLAT_ALONE if alone else FLAT)
    for name, parameter in policy.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        counts = bool(parameter.grad.abs().max() > LEAST_SLOPE)
        assert counts != bool(flat.search(name)), name


def rows_of(batch: dict[str, Any], *rows: int) -> dict[str, Any]:
    """A batch of some rows of another."""
    at = list(rows)
    seen = {name: value[at] for name, value in batch["observations"].items()}
    return {"observations": seen, "language": [batch["language"][row] for row in at]}


def train(policy: Policy, batch: dict[str, Any], steps: int = 1, lr: float = 1e-3) -> Policy:
    """AdamW with a cosine; the policy is then in evaluation mode."""
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        policy.loss(batch)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    return policy.eval()
