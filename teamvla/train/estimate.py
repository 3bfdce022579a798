"""What a training will take, before anything of it is allocated: ``teamvla train --dry-run``.

Memory is that of the tensors, within 1 kB, and of the code that oneDNN compiles for them. Of the
process's growth in a CPU training of four policies, batch 64, it was 94 to 99 %; the highest mark
over eight steps lay 14 to 33 % above what is told. The time of a step was told 1 to 14 % too short.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from teamvla.config import Project
from teamvla.models.base import Policy, PolicyConfig
from teamvla.models.pretrained.llm import LLMBackbone, Vocabulary
from teamvla.models.pretrained.settings import completed
from teamvla.train.material import Material, gather
from teamvla.train.runs import build_model, require_start, settled, warn_of_frozen
from teamvla.train.schedulers import OptimizerConfig, parameter_groups
from teamvla.train.timing import Timing, state_bytes, time_batch, time_calls, time_update
from teamvla.train.tracing import Trace, follow_step, pretending, without_weights
from teamvla.train.trainer import wants_bf16

_LOG = logging.getLogger(__name__)
#: samples that are looked at for the shapes of a batch
_LOOKED_AT = 8
#: time of a forward pass without gradients, of that of a training step
_FORWARD = 0.3


@dataclass(frozen=True)
class Estimate:
    """What a training will take.

    Attributes:
        model: name of the policy.
        device, precision, threads: that it is computed on and in.
        parts: name of a part -> its parameters, and how many of them are trained.
        epochs, steps_per_epoch, batch_size: of the training.
        memory: bytes by purpose (``weights``, ``gradients``, ``optimizer``, ``average``,
            ``batch``, ``activations``, and the compiled ``kernels`` of a CPU) at the step's peak;
            without the last three if they cannot be told. The process itself, torch and data
            come on top.
        seconds: by purpose, of a step (``compute``, ``update``, ``batch``) and in all
            (``training``, ``validation``); empty if they cannot be told. Rollouts are not in it.
        measured: share of the compute time that was measured and not reckoned.
        flops: of a step, in matrix products and convolutions.
        unknown: why something cannot be told; None if all is.
    """

    model: str
    device: str
    precision: str
    threads: int
    parts: dict[str, tuple[int, int]]
    epochs: int
    steps_per_epoch: int
    batch_size: int
    memory: dict[str, int]
    seconds: dict[str, float]
    measured: float
    flops: int
    unknown: str | None = None

    @property
    def parameters(self) -> tuple[int, int]:
        """All of them, and how many are trained."""
        return sum(n for n, _ in self.parts.values()), sum(n for _, n in self.parts.values())

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def total_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def total_seconds(self) -> float:
        return self.seconds["training"] + self.seconds["validation"]

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON data."""
        total, trained = self.parameters
        parts = {name: {"total": n, "trained": t} for name, (n, t) in self.parts.items()}
        return {
            "model": self.model,
            "device": self.device,
            "precision": self.precision,
            "threads": self.threads,
            "parameters": {"total": total, "trained": trained, "parts": parts},
            "epochs": self.epochs,
            "steps_per_epoch": self.steps_per_epoch,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "memory_bytes": {**self.memory, "total": self.total_bytes},
            "seconds": self.seconds,
            "measured": self.measured,
            "flops_per_step": self.flops,
            "unknown": self.unknown,
        }


def estimate(project: Project, init_checkpoint: Path | None = None) -> Estimate:
    """Build a training as :func:`teamvla.train.runs.start_run` does, but for its memory.

    Nothing is written but an index, where the data have none of these settings, into a temporary
    folder. No weight is read or made. Operations of a step are run one by one to time them, for
    about four seconds.

    Raises:
        ConfigError, InputError, ContractError, CheckpointError: what the training would raise.
    """
    project = settled(project)
    config = completed(project.section("model", PolicyConfig))
    require_start(project, init_checkpoint)
    with TemporaryDirectory(prefix="teamvla-") as folder:
        material = gather(project, scratch=Path(folder) / "index")
        with without_weights():
            policy = build_model(project, material.contract, material.statistics, config)
        if init_checkpoint is None:
            warn_of_frozen(policy)
        _read_tokenizers(policy)
        optimizer = project.section("optimizer", OptimizerConfig)
        parameter_groups(policy, optimizer)  # raises where its patterns are wrong
        return _estimated(policy, material, optimizer)


def _read_tokenizers(policy: Policy) -> None:
    """Give language models, which were built without any file, what turns words into tokens."""
    for part in policy.modules():
        if isinstance(part, LLMBackbone):
            part.vocabulary = Vocabulary(part.config)


def _estimated(policy: Policy, material: Material, optimizer: OptimizerConfig) -> Estimate:
    config, device = material.config, material.device
    trained = [p for p in policy.parameters() if p.requires_grad]
    memory = {
        "weights": _nbytes([*policy.parameters(), *policy.buffers()]),
        "gradients": _nbytes(trained),
        "optimizer": state_bytes(optimizer, trained),
        "average": _nbytes(trained) if config.ema_decay is not None else 0,
    }
    autocast = wants_bf16(config.precision, device)
    seconds: dict[str, float] = {}
    measured, flops, unknown = 1.0, 0, None
    try:
        trace, memory["batch"] = _follow(policy, material, autocast)
    except (RuntimeError, TypeError, ValueError) as error:  # of a model of one's own: anything
        unknown = str(error).partition("\n")[0]
        _LOG.warning("a step of the model cannot be followed without its numbers: %s", unknown)
    else:
        memory["activations"] = max(0, trace.peak - memory["gradients"])
        timing = time_calls(trace.calls)
        memory["kernels"] = timing.kept if device.type == "cpu" else 0
        seconds, measured = _seconds(timing, material, optimizer, trained), timing.measured
        flops = trace.flops
    return Estimate(
        model=policy.config.type,
        device=str(device),
        precision="bf16 autocast" if autocast else "fp32",
        threads=torch.get_num_threads(),
        parts=_parts(policy),
        epochs=config.epochs,
        steps_per_epoch=len(material.train_loader),
        batch_size=_batch_size(material),
        memory=memory,
        seconds=seconds,
        measured=measured,
        flops=flops,
        unknown=unknown,
    )


def _follow(policy: Policy, material: Material, autocast: bool) -> tuple[Trace, int]:
    """A step on a batch of the real size, and the bytes of that batch."""
    shapes = _first_samples(material)
    rows, device = _batch_size(material), material.device

    def enlarged(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return torch.empty((rows, *value.shape[1:]), dtype=value.dtype, device=device)

    with pretending(policy, device) as numbers:
        batch = tree_map(enlarged, shapes)
        # Whole sequences: how long they are is asked by the host.
        for name in (name for name in batch if name.endswith("is_pad")):
            batch[name] = torch.zeros(batch[name].shape, dtype=torch.bool, device=device)
        known = sorted(material.train_loader.dataset.instructions)
        batch["language"] = list(islice(cycle(known or [""]), rows))
        tensors = [value for value in tree_leaves(batch) if isinstance(value, Tensor)]
        trace = follow_step(policy, batch, autocast, numbers)
    return trace, _nbytes(tensors)


def _seconds(
    timing: Timing, material: Material, optimizer: OptimizerConfig, trained: list[nn.Parameter]
) -> dict[str, float]:
    config, count = material.config, sum(p.numel() for p in trained)
    average = None if config.ema_decay is None else (config.ema_decay, config.ema_every)
    update = time_update(count, optimizer, material.device, config.clip_norm, average)
    loading = time_batch(lambda: _samples(material, _batch_size(material)))
    workers = material.train_loader.num_workers
    computing = timing.seconds + update
    step = computing + loading if not workers else max(computing, loading / workers)
    val_batches = 0 if material.val_loader is None else len(material.val_loader)
    validation = val_batches * (_FORWARD * timing.seconds + loading)
    return {
        "compute": timing.seconds,
        "update": update,
        "batch": loading,
        "step": step,
        "training": step * config.epochs * len(material.train_loader),
        "validation": validation * config.epochs,
    }


def _batch_size(material: Material) -> int:
    data = material.train_loader.dataset
    return min(int(data.config.batch_size), len(data))


def _samples(material: Material, count: int) -> Mapping[str, Any]:
    """A batch of samples from all over the data."""
    data = material.train_loader.dataset
    places = torch.linspace(0, len(data) - 1, count).long().tolist()
    batch: Mapping[str, Any] = material.train_loader.collate_fn(data.__getitems__(places))
    return batch


def _first_samples(material: Material) -> dict[str, Any]:
    """A few samples: where lengths vary, the longest of them stands for a whole batch."""
    return dict(_samples(material, min(_LOOKED_AT, _batch_size(material))))


def _parts(policy: Policy) -> dict[str, tuple[int, int]]:
    """The parameters of each part that has any, and how many of them are trained."""
    parts: dict[str, tuple[int, int]] = {}
    for name, parameter in policy.named_parameters():
        part = name.partition(".")[0]
        total, trained = parts.get(part, (0, 0))
        count = parameter.numel()
        parts[part] = (total + count, trained + count * parameter.requires_grad)
    return parts


def _nbytes(tensors: list[Any]) -> int:
    """Of tensors, each once."""
    return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())
