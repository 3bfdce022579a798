"""What a training writes down so that it can go on bit by bit as if it had not stopped."""

from __future__ import annotations

import logging
import platform
import random
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teamvla.checkpoint import Header, read_checkpoint, read_header, write_checkpoint
from teamvla.data.samplers import EpochBatchSampler
from teamvla.errors import CheckpointError
from teamvla.files import write_json
from teamvla.models.adaptation import frozen_names
from teamvla.models.base import Policy, PolicyConfig
from teamvla.models.loading import (
    Tensors,
    as_array,
    config_of,
    from_arrays,
    load_weights,
    make_probe,
    policy_of,
    start_weights,
    to_arrays,
    weights_for,
)
from teamvla.train.schedulers import restore_schedule, schedule_state
from teamvla.train.trainer import Learner, TrainingState

_LOG = logging.getLogger(__name__)
PACKAGES = ("teamvla", "torch", "numpy", "mujoco", "safetensors", "gymnasium", "diffusers")


def save_checkpoint(
    path: str | Path,
    learner: Learner,
    *,
    meta: Mapping[str, Any],
    sampler: Mapping[str, int],
    probe_batch: dict[str, Any],
) -> Path:
    """Write everything that the training is: weights, optimiser, schedule, sampler, RNGs.

    Args:
        meta: config, contract, statistics and manifest_digest, as JSON-able data. With
            ``base`` the frozen tensors are left out, as the checkpoint that it tells has them.
        sampler: the data order's position, two integers.
        probe_batch: a batch whose first sample becomes the golden probe.
    """
    probe_arrays, probe = make_probe(learner.best_weights, probe_batch)
    optimizer_arrays, optimizer = _optimizer_state(learner)
    rng_arrays, rng = _rng_state()
    left_out = {*frozen_names(learner.policy)} if "base" in meta else set()
    arrays = to_arrays("model", _without(learner.policy, left_out)) | optimizer_arrays
    if learner.ema is not None:
        arrays |= to_arrays("ema", _without(learner.ema.averaged, left_out))
        optimizer["ema_updates"] = learner.ema.updates
    header = {
        "kind": "policy",
        **meta,
        "state": learner.state.to_dict(),
        "scheduler": schedule_state(learner.scheduler),
        "optimizer_state": optimizer,
        "sampler": dict(sampler),
        "rng": rng,
        "probe": probe,
        **provenance(),
    }
    return write_checkpoint(path, header, arrays | rng_arrays | probe_arrays)


def write_metadata(path: Path, val: Mapping[str, float] | None) -> Path:
    """Tell in JSON beside a checkpoint, ``best.json`` beside ``best.ckpt``, what is in it.

    Args:
        path: of the checkpoint.
        val: validation metrics of its epoch.
    """
    header = read_header(path)
    told = ("tasks", "state", "config", "contract", "manifest_digest", "created", "git", "packages")
    content = {
        "checkpoint": path.name,
        "sha256": header.sha256,
        "val": None if val is None else dict(val),
        **{key: header.meta[key] for key in told if key in header.meta},
    }
    return write_json(path.with_suffix(".json"), content)


def _without(policy: Policy, left_out: set[str]) -> dict[str, torch.Tensor]:
    return {name: x for name, x in policy.state_dict().items() if name not in left_out}


def load_checkpoint(
    path: str | Path, learner: Learner, sampler: EpochBatchSampler | None = None
) -> Header:
    """Put ``learner``, the sampler and the random generators where the checkpoint left them.

    Raises:
        CheckpointError: it is damaged, or belongs to another model or optimiser.
    """
    header, arrays = read_checkpoint(path)
    policy = learner.policy
    load_weights(policy, weights_for(policy, header, arrays, "model"), header.path)
    try:
        _restore(learner, header, arrays)
        if sampler is not None:
            sampler.load_state_dict(header.meta["sampler"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            str(path), "a checkpoint of this training", f"{type(error).__name__}: {error}"
        ) from None
    return header


def init_from(path: str | Path, learner: Learner) -> Header:
    """Start from a checkpoint's deployable weights, keeping this data's own statistics.

    Raises:
        ContractError: the checkpoint's numbers mean something else than the data's.
        CheckpointError: its model is another one.
    """
    header, arrays = read_checkpoint(path)
    learner.policy.contract.require(policy_of(header).contract, "the data", str(path))
    weights, adapted = start_weights(learner.policy, header, arrays)
    own = learner.policy.normalizer.state_dict(prefix="normalizer.")
    load_weights(learner.policy, weights | own, header.path)
    if learner.policy.config.adaptation.lora is not None:
        said = "the adapters of" if adapted else "fresh adapters beside the weights of"
        _LOG.info("start from %s %s", said, path)
    if learner.ema is not None:
        learner.ema.averaged.load_state_dict(learner.policy.state_dict())
    return header


def require_same_model(path: str | Path, model: PolicyConfig) -> None:
    """Refuse a checkpoint of another kind of model than ``model``, by its header alone.

    Sizes are left to the tensors, which tell more.

    Raises:
        CheckpointError: the policy or one of its parts is of another type.
    """
    header = read_header(path)
    theirs = config_of(header).section("model", PolicyConfig)
    before, after = _types(theirs.model_dump()), _types(model.model_dump())
    # Of another policy the parts are others too: its own name says it all.
    keys = ["type"] if before["type"] != after["type"] else sorted({*before, *after})
    other = [key for key in keys if before.get(key) != after.get(key)]
    if other:
        want = " ".join(f"--set model.{key}={before[key]}" for key in other if key in before)
        raise CheckpointError(
            str(path), f"a model with {_said(after, other)}, as is configured",
            _said(before, other), f"Give {want}, or start without --init-from.",
        )  # fmt: skip


def _types(model: Mapping[str, Any]) -> dict[str, Any]:
    parts = {
        f"{name}.type": part["type"]
        for name, part in model.items()
        if isinstance(part, Mapping) and "type" in part
    }
    return {"type": model["type"], **parts}


def _said(types: Mapping[str, Any], keys: Sequence[str]) -> str:
    return " and ".join(f"model.{key} {types.get(key, 'not set')}" for key in keys)


def provenance() -> dict[str, Any]:
    """When, with which packages and from which revision a file was made."""
    packages = {name: version(name) for name in PACKAGES}
    packages["python"] = platform.python_version()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    threads = torch.get_num_threads()
    return {"created": now, "packages": packages, "git": _git_revision(), "threads": threads}


@cache
def _git_revision() -> str | None:
    """The revision of the repository that the command runs in, if it is one."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _optimizer_state(learner: Learner) -> tuple[Tensors, dict[str, Any]]:
    state = learner.optimizer.state_dict()
    arrays = {
        f"optim.{index}.{key}": as_array(value)
        for index, entry in state["state"].items()
        for key, value in entry.items()
        if isinstance(value, torch.Tensor)
    }
    rates = [float(group["lr"]) for group in state["param_groups"]]
    count = len({name.split(".")[1] for name in arrays})
    return arrays, {"learning_rates": rates, "entries": count}


def _restore(learner: Learner, header: Header, arrays: Tensors) -> None:
    meta = header.meta
    state = learner.optimizer.state_dict()
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in from_arrays("optim", arrays).items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = tensor
    rates = meta["optimizer_state"]["learning_rates"]
    for group, rate in zip(state["param_groups"], rates, strict=True):
        group["lr"] = rate
    if entries.keys() != set(range(int(meta["optimizer_state"]["entries"]))):
        raise ValueError("the optimiser's state is not in it")
    learner.optimizer.load_state_dict({**state, "state": entries})
    restore_schedule(learner.scheduler, meta["scheduler"], rates)
    if learner.ema is not None:
        # The average shares what is frozen with the policy, which has it by now.
        shared = learner.policy.state_dict()
        frozen = {name: shared[name] for name in frozen_names(learner.policy)}
        averages = frozen | from_arrays("ema", arrays)
        load_weights(learner.ema.averaged, averages, header.path)
        learner.ema.updates = int(meta["optimizer_state"]["ema_updates"])
    learner.state = TrainingState(**meta["state"])
    _restore_rng(meta["rng"], arrays)


def _rng_state() -> tuple[Tensors, dict[str, Any]]:
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    arrays: Tensors = {
        "rng.torch": torch.get_rng_state().numpy(),
        "rng.numpy": np.asarray(keys),
        "rng.python": np.array(random.getstate()[1], dtype=np.uint64),
    }
    if torch.cuda.is_available():
        arrays["rng.cuda"] = torch.cuda.get_rng_state().numpy()
    numpy_rest = [kind, int(position), int(has_gauss), float(gauss)]
    return arrays, {"numpy": numpy_rest, "python_gauss": random.getstate()[2]}


def _restore_rng(meta: dict[str, Any], arrays: Tensors) -> None:
    kind, position, has_gauss, gauss = meta["numpy"]
    np.random.set_state((kind, arrays["rng.numpy"], position, has_gauss, gauss))
    torch.set_rng_state(torch.from_numpy(arrays["rng.torch"]))
    words = tuple(int(word) for word in arrays["rng.python"])
    random.setstate((3, words, meta["python_gauss"]))
    if "rng.cuda" in arrays and torch.cuda.is_available():
        torch.cuda.set_rng_state(torch.from_numpy(arrays["rng.cuda"]))
