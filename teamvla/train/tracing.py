"""A training step that is followed, not computed: what it allocates, and its operations.

Tensors there have shapes and no memory (torch's ``FakeTensorMode``), so that a policy of any size
is followed in seconds on any machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from teamvla.models.base import Policy
from teamvla.models.pretrained.settings import weights_follow

#: makes tensors that something else fills: weights, mostly
_UNFILLED = {torch.empty}
#: bring numbers to the host
_READ = {Tensor.cpu, Tensor.numpy, Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__}


class _NoMemory(TorchFunctionMode):
    """Puts what is made to be filled on the meta device, where it costs nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _UNFILLED and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


class _HostReads(TorchFunctionMode):
    """Lets the host read tensors that have their numbers, such as a vocabulary."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in _READ or isinstance(args[0], FakeTensor):
            return func(*args, **(kwargs or {}))
        with unset_fake_temporarily():
            return func(*args, **(kwargs or {}))


@contextmanager
def without_weights() -> Iterator[None]:
    """Inside, policies are built with weights that have a shape and no memory.

    What is computed from data, such as normalisation, is there as ever: it is small. Pretrained
    parts read no weights (see :func:`teamvla.models.pretrained.settings.weights_follow`).
    """
    with weights_follow(), _NoMemory():
        yield


class Trace(TorchDispatchMode):
    """Follows the operations inside the block.

    Args:
        around: tensors from before: what looks at them holds no memory of its own.

    Attributes:
        live, peak: bytes of the tensors that they made, now and at most.
        calls: how often an operation is called -> by what it is called with.
        flops: of matrix products and convolutions.
    """

    def __init__(self, around: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = self.flops = 0
        self.calls: dict[Call, int] = {}
        self._held: dict[int, Any] = {t.untyped_storage()._cdata: t for t in around}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        args = _all_true(func, args)
        result = func(*args, **given)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        call = Call(func, args, given)
        self.calls[call] = self.calls.get(call, 0) + 1
        if counted := flop_registry.get(func._overloadpacket):
            self.flops += counted(*args, **given, out_val=result)
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._held:
            return

        def release(_: Any) -> None:
            self.live -= size
            del self._held[key]

        self._held[key] = weakref.ref(storage, release)
        self.live += size
        self.peak = max(self.peak, self.live)


class Call:
    """An operation and the shapes it is called with; equal ones take equally long."""

    def __init__(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.func = func
        self.args, self.kwargs = tree_map(_described, (args, dict(kwargs)))
        self._key = f"{func} {self.args} {self.kwargs}"

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and other._key == self._key

    @property
    def nbytes(self) -> int:
        """Of the tensors that it is called with."""
        leaves = tree_leaves((self.args, self.kwargs))
        return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, TensorShape))


class TensorShape:
    """All of a tensor but its numbers."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.stride = tuple(tensor.shape), tensor.stride()
        self.dtype, self.device = tensor.dtype, tensor.device
        self.nbytes = tensor.numel() * tensor.element_size()

    def __repr__(self) -> str:
        return f"{self.shape}/{self.stride}/{self.dtype}/{self.device}"

    def make(self) -> Tensor:
        """A tensor of this shape, of numbers that any operation takes."""
        tensor = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return tensor.fill_(0.5 if self.dtype.is_floating_point else int(self.dtype == torch.bool))


def _described(value: Any) -> Any:
    return TensorShape(value) if isinstance(value, Tensor) else value


def _all_true(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Indexing by a mask as if all of it were true: what is there of it, no shape can tell."""
    if func is not torch.ops.aten.index.Tensor:
        return args
    places: list[Any] = []
    for index in args[1]:
        if index is None or index.dtype != torch.bool:
            places.append(index)
        else:
            zeros = index.new_zeros(index.numel(), dtype=torch.long)
            places.extend([zeros] * index.dim())
    return (args[0], places, *args[2:])


@contextmanager
def pretending(policy: Policy, device: torch.device) -> Iterator[None]:
    """Inside, tensors have no memory, and the weights of the policy pretend to be on a device."""
    with FakeTensorMode(allow_non_fake_inputs=True), _HostReads():
        made: dict[int, nn.Parameter] = {}
        for module in policy.modules():
            for name, old in list(module._parameters.items()):
                if old is not None:
                    module._parameters[name] = made.setdefault(id(old), _pretended(old, device))
            for name, buffer in list(module._buffers.items()):
                # Bytes are data, such as a vocabulary: the host reads them.
                if buffer is not None and buffer.dtype != torch.uint8:
                    module._buffers[name] = torch.empty_like(buffer, device=device)
        yield


def _pretended(old: nn.Parameter, device: torch.device) -> nn.Parameter:
    empty = torch.empty(old.shape, dtype=old.dtype, device=device)
    return nn.Parameter(empty, requires_grad=old.requires_grad)


def follow_step(policy: Policy, batch: Mapping[str, Any], autocast: bool) -> Trace:
    """Follow the forward and backward pass of a policy that pretends, in training mode."""
    policy.train()
    given = [leaf for leaf in tree_leaves(dict(batch)) if isinstance(leaf, Tensor)]
    trace = Trace([*policy.parameters(), *policy.buffers(), *given])
    with trace:
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=autocast):
            loss = policy.loss(batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
    return trace
