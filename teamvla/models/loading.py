"""Policies in checkpoints: their tensors, and a golden probe that proves a load.

The probe is one observation and the action chunk that the saved policy gave for it.
Loading runs it again: the answer must be equal bit by bit on the same processor and
torch, and within ``PROBE_TOLERANCE`` (contract units) anywhere else.
"""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teamvla.checkpoint import Header, read_checkpoint
from teamvla.config import Project, Settings
from teamvla.config.bytype import ByType
from teamvla.config.differences import differences, listed
from teamvla.contract import Contract
from teamvla.errors import CheckpointError, ConfigError, ContractError
from teamvla.models.base import Policy, PolicyConfig, build_policy
from teamvla.models.device import one_thread
from teamvla.models.heads.diffusion import DiffusionActionHead
from teamvla.models.registries import MODELS
from teamvla.registry import Registry

PROBE_TOLERANCE = 0.02
Tensors = dict[str, np.ndarray]


def to_arrays(prefix: str, state: dict[str, torch.Tensor]) -> Tensors:
    """Tensors as arrays named ``prefix.<name>``."""
    return {f"{prefix}.{name}": tensor.detach().cpu().numpy() for name, tensor in state.items()}


def from_arrays(prefix: str, arrays: Tensors) -> dict[str, torch.Tensor]:
    """The tensors of one section, without its prefix. They share memory with ``arrays``."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith(start)
    }


def make_probe(policy: Policy, batch: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """The probe's tensors and header entry, from the first sample of ``batch``."""
    observations = {name: value[:1] for name, value in batch["observations"].items()}
    language = list(batch["language"][:1])
    answer = _answer(policy, observations, language)
    arrays = to_arrays("probe.observation", observations)
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return arrays | {"probe.actions": answer}, {"language": language, "machine": _machine(policy)}


def load_policy(path: str | Path, device: torch.device | str = "cpu") -> tuple[Policy, Header]:
    """The deployable policy of a checkpoint (averaged weights where it has them), in eval mode.

    Raises:
        InputError: there is no such file.
        CheckpointError: it is damaged, holds no policy, or its probe fails.
    """
    header, arrays = read_checkpoint(path)
    policy = policy_of(header)
    section = "ema" if any(name.startswith("ema.") for name in arrays) else "model"
    load_weights(policy, from_arrays(section, arrays), header.path)
    policy = policy.to(device).eval()
    _check_probe(policy, header, arrays)
    return policy, header


def config_of(header: Header) -> Project:
    """The configuration in a header; CheckpointError if there is none that can be used."""
    where, config = str(header.path), header.meta.get("config")
    if not isinstance(config, dict):
        raise CheckpointError(where, "a policy checkpoint", "a header without 'config'")
    _require_installed(config.get("model"), where)
    try:
        project = Project.from_data(config)
        for name in ("model", "task"):
            project.section(name, Settings)
    except ConfigError as error:
        got = str(error).replace("configuration: error: ", "")
        raise CheckpointError(where, "a configuration of this version", got) from None
    return project


def _require_installed(model: Any, where: str) -> None:
    """CheckpointError if what the settings of a policy name is not installed here."""
    if not isinstance(model, dict):
        return
    _require_entry(MODELS, model, where)
    settings = PolicyConfig.choose(model)
    for name, field in settings.model_fields.items():
        part = model.get(name)
        for note in field.metadata:
            if isinstance(note, ByType) and isinstance(part, dict):
                _require_entry(note.registry, part, where)


def _require_entry(registry: Registry[Any], settings: dict[str, Any], where: str) -> None:
    name = settings.get("type")
    if isinstance(name, str) and name not in registry:
        raise CheckpointError(
            where, f"the {registry.kind} {name!r}, which it was made with, to be installed",
            f"only {', '.join(registry)}",
            "Install the package that registers it; `teamvla ckpt-inspect` works without.",
        )  # fmt: skip


def policy_of(header: Header) -> Policy:
    """The policy that a header describes, with fresh weights."""
    where, config = str(header.path), config_of(header).section("model", PolicyConfig)
    if not isinstance(header.meta.get("contract"), dict):
        raise CheckpointError(where, "a policy checkpoint", "a header without 'contract'")
    contract = Contract.parse(header.meta["contract"], where)
    try:
        return build_policy(config, contract, header.meta.get("statistics"))
    except ContractError as error:
        raise CheckpointError(where, "statistics of its contract", str(error)) from None


def load_weights(policy: Policy, state: dict[str, torch.Tensor], path: Path) -> None:
    """Fill ``policy`` with exactly these tensors; CheckpointError if any is missing or odd."""
    own = {name: list(tensor.shape) for name, tensor in policy.state_dict().items()}
    odd = differences(own, {name: list(tensor.shape) for name, tensor in state.items()})
    if odd:
        raise CheckpointError(f"{path} holds other tensors than the model needs:\n{listed(odd, 5)}")
    policy.load_state_dict(state)


def _answer(policy: Policy, observations: dict[str, Any], language: list[str]) -> np.ndarray:
    device = next(policy.parameters()).device
    training = policy.training
    policy.eval()
    batch = {
        "observations": {name: value.to(device) for name, value in observations.items()},
        "language": language,
    }
    with torch.inference_mode(), one_thread():
        actions: torch.Tensor = policy.forward(batch)["predicted_actions"]
    policy.train(training)
    return np.asarray(actions.float().cpu())


def _check_probe(policy: Policy, header: Header, arrays: Tensors) -> None:
    probe = header.meta.get("probe")
    if not isinstance(probe, dict) or "probe.actions" not in arrays:
        return
    try:
        observations = from_arrays("probe.observation", arrays)
        if not observations:
            raise ValueError("it has no observation")
        answer = _answer(policy, observations, list(probe["language"]))
    except (KeyError, TypeError, ValueError, RuntimeError, ContractError) as error:
        got = f"{type(error).__name__}: {error}"
        raise CheckpointError(str(header.path), "a probe that can be run", got) from None
    off = float(np.abs(answer - arrays["probe.actions"]).max())
    allowed = 0.0 if probe.get("machine") == _machine(policy) else PROBE_TOLERANCE
    if not off <= allowed:
        raise CheckpointError(
            str(header.path), f"the probe's action again (within {allowed})", f"{off:.3g} off",
            "This installation computes something else than the one that saved it.",
        )  # fmt: skip


def _machine(policy: Policy) -> dict[str, Any]:
    """What exact agreement may be asked of: the same processor, torch and samplers."""
    device = next(policy.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    machine = {"device": name, "torch": str(torch.__version__)}
    if _uses_diffusers(policy):
        machine["diffusers"] = version("diffusers")
    return machine


def _uses_diffusers(policy: Policy) -> bool:
    """Whether actions are drawn by diffusers: another version may round otherwise."""
    return any(isinstance(part, DiffusionActionHead) for part in policy.modules())


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.machine()} {capability}"
