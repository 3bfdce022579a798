"""Policies in checkpoints: their tensors, and a golden probe that proves a load.

The probe is one observation and the action chunk that the saved policy gave for it.
Loading runs it again: the answer must be equal bit by bit on the same processor and
torch, and within ``PROBE_TOLERANCE`` (contract units) anywhere else.

A checkpoint of ``trainer.save: trained`` lacks the tensors that were frozen; its header's
``base`` tells the checkpoint that has them, by its file and its digest.
"""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from teamvla.checkpoint import Header, read_checkpoint, read_header
from teamvla.config import Project, Settings
from teamvla.config.bytype import ByType
from teamvla.config.differences import differences, listed
from teamvla.contract import Contract
from teamvla.errors import CheckpointError, ConfigError, ContractError, InputError
from teamvla.models.adaptation import frozen_names, has_lora, merge_lora, under_base
from teamvla.models.base import Policy, PolicyConfig
from teamvla.models.building import build_policy
from teamvla.models.device import one_thread
from teamvla.models.encoders.pretrained import PretrainedVisionEncoder
from teamvla.models.heads.diffusion import DiffusionActionHead
from teamvla.models.pretrained.llm import LLMBackbone
from teamvla.models.pretrained.settings import weights_follow
from teamvla.models.registries import MODELS, SENSOR_ENCODER_REGISTRY
from teamvla.models.sequences import unfolded
from teamvla.registry import Registry

PROBE_TOLERANCE = 0.02
Tensors = dict[str, np.ndarray]


def to_arrays(prefix: str, state: dict[str, torch.Tensor]) -> Tensors:
    """Tensors as arrays named ``prefix.<name>``."""
    return {f"{prefix}.{name}": as_array(tensor) for name, tensor in state.items()}


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as an array; one in bf16, which NumPy has not, in float32, which is exact."""
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def from_arrays(prefix: str, arrays: Tensors) -> dict[str, torch.Tensor]:
    """The tensors of one section, without its prefix. They share memory with ``arrays``."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): torch.from_numpy(array)
        for name, array in arrays.items()
        if name.startswith(start)
    }


def make_probe(policy: Policy, batch: dict[str, Any]) -> tuple[Tensors, dict[str, Any]]:
    """The probe's tensors and header entry, from the first step of ``batch``."""
    _, steps = unfolded(batch)
    observations = {name: value[:1] for name, value in steps["observations"].items()}
    language = list(steps["language"][:1])
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
    policy = _filled_policy(header, arrays).to(device).eval()
    _check_probe(policy, header, arrays)
    return policy, header


def _filled_policy(header: Header, arrays: Tensors) -> Policy:
    policy = policy_of(header)
    load_weights(policy, weights_for(policy, header, arrays, deployed(arrays)), header.path)
    return policy


def deployed(arrays: Tensors) -> str:
    """The section of the weights that are deployed: averaged ones where there are any."""
    return "ema" if any(name.startswith("ema.") for name in arrays) else "model"


def weights_for(
    policy: Policy, header: Header, arrays: Tensors, section: str
) -> dict[str, torch.Tensor]:
    """The tensors of a section for ``policy``, what was frozen from the checkpoint's base.

    Raises:
        InputError: the base is not where it was. CheckpointError: another one is.
    """
    own = from_arrays(section, arrays)
    base = find_base(header)
    if base is None:
        return own
    # As it was started: adapters that went on learning are not yet in the weights beside them.
    begun, _ = start_weights(policy, *base)
    return {name: begun[name] for name in frozen_names(policy) if name in begun} | own


def plain_weights(header: Header, arrays: Tensors) -> dict[str, torch.Tensor]:
    """The deployed tensors of a checkpoint, with its adapters in the weights beside them."""
    own = from_arrays(deployed(arrays), arrays)
    if "base" not in header.meta and not any("lora_" in name for name in own):
        return own
    policy = _filled_policy(header, arrays)
    if has_lora(policy):
        merge_lora(policy)
    return policy.state_dict()


def start_weights(
    policy: Policy, header: Header, arrays: Tensors
) -> tuple[dict[str, torch.Tensor], bool]:
    """Tensors to start ``policy`` from, with its own adapters if those of the checkpoint differ.

    Returns:
        The tensors, and whether the adapters are the checkpoint's.
    """
    theirs = config_of(header).section("model", PolicyConfig).adaptation.lora
    if theirs is not None and theirs == policy.config.adaptation.lora:
        return weights_for(policy, header, arrays, deployed(arrays)), True
    return under_base(policy, plain_weights(header, arrays)), False


def base_entry(base: Path, sha256: str, folder: Path) -> dict[str, str]:
    """What checkpoints in ``folder`` say of the one that has their frozen tensors."""
    return {"file": os.path.relpath(base.resolve(), folder.resolve()), "sha256": sha256}


def find_base(header: Header) -> tuple[Header, Tensors] | None:
    """The checkpoint that has the frozen tensors of another; None if that is whole.

    Raises:
        InputError: it is neither where it was, seen from the checkpoint, nor beside it under
            any name.
        CheckpointError: another one is there by its name.
    """
    entry, where = header.meta.get("base"), header.path
    if entry is None:
        return None
    if not (isinstance(entry, dict) and all(type(entry.get(k)) is str for k in ("file", "sha256"))):
        raise CheckpointError(str(where), "a base with file and sha256", f"{entry!r:.80}")
    first = where.parent / entry["file"]
    places = [place for place in (first, *sorted(where.parent.glob("*.ckpt"))) if place.is_file()]
    others = [place for place in places if not place.samefile(where)]
    found = next((place for place in others if _sha256(place) == entry["sha256"]), None)
    if found is not None:
        return read_checkpoint(found)
    base = f"its base (sha256 {entry['sha256'][:12]}...)"
    told = f"of {where.name} {base}, which has what was not trained"
    mend = "Put it back, or beside the checkpoint under any name that ends in .ckpt."
    if (other := next((place for place in others if place.name == first.name), None)) is not None:
        got = f"another checkpoint (sha256 {_sha256(other)[:12]}...)"
        raise CheckpointError(str(other), told, got, mend)
    raise InputError(str(first), told, "no such file", mend)


def _sha256(path: Path) -> str:
    """The digest in a checkpoint's header; empty of a file that is none."""
    try:
        return read_header(path).sha256
    except CheckpointError:
        return ""


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
        if name == "sensors" and isinstance(part, dict):
            for one in part.values():
                if isinstance(one, dict):
                    _require_entry(SENSOR_ENCODER_REGISTRY, one, where)


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
        with weights_follow():
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
        answer = policy.probe(batch)
    policy.train(training)
    return np.asarray(answer.float().cpu())


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
    return machine | {name: version(name) for name in _computing(policy)}


def _computing(policy: Policy) -> list[str]:
    """The packages that compute a part of it: another version may round otherwise."""
    kinds = {
        "diffusers": (DiffusionActionHead,),
        "transformers": (PretrainedVisionEncoder, LLMBackbone),
    }
    return [
        name
        for name, its in kinds.items()
        if any(isinstance(part, its) for part in policy.modules())
    ]


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{names[0] if names else platform.machine()} {capability}"
