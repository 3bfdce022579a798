"""A batch for a policy from what an environment or a caller has.

Shapes: B batch, V cameras, S state, P rows of a sensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teamvla.contract import Contract
from teamvla.errors import ContractError

#: what is asked of the tensors of an observation, and how many dimensions that is
_DIMENSIONS = {"state": ("[B,S]", (2,)), "image": ("[B,V,C,H,W] or [B,C,H,W]", (4, 5))}


def required(contract: Contract | None) -> Contract:
    """The contract of a policy; ContractError if it was made for plain tensors."""
    if contract is None:
        mend = "Make it with contract=..., such as that of an environment or a dataset."
        raise ContractError("policy", "one made for a contract", "plain sizes", mend)
    return contract


def batch_of(
    obs: Mapping[str, Any],
    language: str | Sequence[str] | None,
    contract: Contract | None,
    device: torch.device,
    last: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """``observations`` of tensors on ``device`` and ``language``, an instruction for each row.

    Args:
        obs: an environment's observation (NumPy arrays by field name), which makes one row; or
            ``image`` and ``state`` as tensors, arrays or lists, and sensors as tensors
            [B,...] or arrays, with ``FIELD_mask`` bool [B,P] where the length varies.
        language: instruction(s); left out, the observation's own ``instruction``.
        contract: which fields an environment's observation has.
        device: where the tensors go.
        last: the joined command before this observation; see :meth:`Contract.measured_state`.

    Raises:
        ContractError: the observation is something else, or there is no contract to read it by.
    """
    if _is_batch(obs, contract):
        given = {key: _batched(key, obs[key]) for key in _DIMENSIONS if key in obs}
        given |= {key: x for key, x in obs.items() if key not in given and torch.is_tensor(x)}
        given |= {key: torch.tensor(obs[key]) for key in _missing(obs, contract, given)}
    else:
        given = _one_row(obs, required(contract), last)
    observations = {key: value.to(device) for key, value in given.items()}
    counts = {key: len(value) for key, value in observations.items() if value.dim()}
    if not counts:
        raise ContractError("observations", "tensors or an environment's", ", ".join(sorted(obs)))
    rows = next(iter(counts.values()))
    if any(count != rows for count in counts.values()):
        raise ContractError("observations", "as many rows of each", f"{counts}")
    language = obs.get("instruction", "") if language is None else language
    return {"observations": observations, "language": texts_of(language, rows)}


def observed(observations: Mapping[str, Tensor], name: str, more: str = "") -> Tensor:
    """What a policy was made to use of a batch's observations; ``more`` says what that is.

    Raises:
        ContractError: it is not there.
    """
    if name not in observations:
        expected = f"{name!r}, which the model was made to use{more and f': {more}'}"
        raise ContractError("batch['observations']", expected, ", ".join(sorted(observations)))
    return observations[name]


def texts_of(language: str | Sequence[str], rows: int) -> list[str]:
    """An instruction for each row; one that is not in a list is that of all.

    Raises:
        ContractError: there are more or fewer.
    """
    texts = [language] * rows if isinstance(language, str) else list(language)
    if len(texts) != rows:
        raise ContractError("language", f"{rows}, one for each row", f"{len(texts)}")
    return texts


def _one_row(
    obs: Mapping[str, Any], contract: Contract, last: NDArray[Any] | None
) -> dict[str, Tensor]:
    state = contract.measured_state(obs, last)
    tensors = {"state": torch.from_numpy(state)[None]} if state.size else {}
    # A sensor that is not there is the policy's affair: it may do without. So are all cameras.
    sensed = {name: obs[name] for name in _sensor_fields(contract) if name in obs}
    tensors |= {name: torch.tensor(np.asarray(value))[None] for name, value in sensed.items()}
    missing = [camera.field for camera in contract.cameras if camera.field not in obs]
    if missing and (len(missing) < len(contract.cameras) or not tensors):
        fields = ", ".join(sorted(obs))
        raise ContractError("observation", f"field {missing[0]!r}", fields)
    if contract.cameras and not missing:
        pictures = np.stack([obs[camera.field] for camera in contract.cameras])
        tensors["image"] = torch.from_numpy(pictures).permute(0, 3, 1, 2)[None]
    return tensors


def _is_batch(obs: Mapping[str, Any], contract: Contract | None) -> bool:
    """Whether it is no environment's observation but has the batch's dimension already."""
    sensors = obs if contract is None else _sensor_fields(contract)
    return bool(obs.keys() & _DIMENSIONS) or any(torch.is_tensor(obs.get(name)) for name in sensors)


def _missing(
    obs: Mapping[str, Any], contract: Contract | None, given: Mapping[str, Tensor]
) -> set[str]:
    """The sensors that come as arrays or lists."""
    return obs.keys() & (set() if contract is None else {*_sensor_fields(contract)}) - given.keys()


def _sensor_fields(contract: Contract) -> list[str]:
    """The fields of an observation that are neither pictures nor state, and their masks."""
    sensors = contract.sensor_signals
    masks = [f"{signal.field}_mask" for signal in sensors if signal.varies]
    return [*(signal.field for signal in sensors), *masks]


def _batched(name: str, given: Any) -> Tensor:
    """A tensor of a batch from what the caller has; ContractError if it is none."""
    expected, dimensions = _DIMENSIONS[name]
    try:
        # A copy: arrays that must not be written make tensors only with a warning.
        batch = given if torch.is_tensor(given) else torch.from_numpy(np.array(given, order="C"))
    except (TypeError, ValueError):
        raise ContractError(f"observations[{name!r}]", expected, "no numbers") from None
    if batch.dim() not in dimensions:
        got = f"shape {tuple(batch.shape)}"
        raise ContractError(f"observations[{name!r}]", expected, got, "Its first is the batch's.")
    return batch
