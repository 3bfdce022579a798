"""A training step that is followed, not computed: what it allocates, and its operations.

Tensors there have shapes and no memory (torch's ``FakeTensorMode``), so that a policy of any size
is followed in seconds on any machine.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from teamvla.models.base import Policy
from teamvla.models.pretrained.settings import weights_follow

#: makes tensors that something else fills: weights, mostly
_UNFILLED = {torch.empty}
#: bring numbers to the host
_READ = {Tensor.cpu, Tensor.numpy, Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__}

#: elements of tensors whose numbers are kept
_SMALL = 1 << 16


class _NoMemory(TorchFunctionMode):
    """Puts what is made to be filled on the meta device, where it costs nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _UNFILLED and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


class SmallNumbers(TorchDispatchMode):
    """Keeps the numbers of small tensors that follow from no others than such.

    So the host can read what a step is planned by: counts, draws, bounds. What follows from
    weights or samples has no numbers.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()

    def of(self, tensor: Tensor) -> Tensor | None:
        """The numbers of a tensor, on the host, if they are known."""
        if not isinstance(tensor, FakeTensor):
            return None if tensor.is_meta else tensor
        return self._known.get(tensor)

    def note(self, pretended: Tensor, numbers: Tensor) -> None:
        """These are the numbers of a tensor; of a large one they are not kept."""
        if pretended.numel() <= _SMALL and not numbers.is_meta:
            with unset_fake_temporarily():
                self._known[pretended] = numbers.detach().cpu()

    def count(self, mask: Tensor) -> int:
        """How many of a mask are true: all of them where that is not known, which is the most."""
        known = self.of(mask)
        with unset_fake_temporarily():
            return mask.numel() if known is None else int(known.sum())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.ops.aten._local_scalar_dense.default:
            known = self.of(args[0])
            if known is not None:
                return known.item()
        result = func(*args, **given)
        numbers = self._computed(func, args, given, result)
        for pretended, real in zip_longest(tree_leaves(result), tree_leaves(numbers)):
            if isinstance(pretended, FakeTensor):
                self._known.pop(pretended, None)  # of one that was written over
                if isinstance(real, Tensor):
                    self.note(pretended, real)
        return result

    def _computed(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
        """What the operation gives for the numbers; None if it is large, or one is not known."""
        sizes = [x.numel() for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if not sizes or max(sizes) > _SMALL or "empty" in func._opname:
            return None
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        try:
            with unset_fake_temporarily():
                args, kwargs = tree_map(self._required, (args, kwargs))
                return func(*args, **kwargs)
        except (LookupError, RuntimeError):  # not known, or not to be had on the host
            return None

    def _required(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        known = self.of(value)
        if known is None:
            raise LookupError
        return known.cpu()


class _HostReads(TorchFunctionMode):
    """Lets the host read tensors that have their numbers, such as a vocabulary."""

    def __init__(self, numbers: SmallNumbers) -> None:
        super().__init__()
        self._numbers = numbers

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        known = self._numbers.of(args[0]) if func in _READ else None
        # A copy on the host is still one of this step.
        if known is None or (func is Tensor.cpu and known is not args[0]):
            return func(*args, **given)
        with unset_fake_temporarily():
            return func(known, *args[1:], **given)


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
        numbers: those that are known of tensors that pretend.

    Attributes:
        live, peak: bytes of the tensors that they made, now and at most.
        calls: how often an operation is called -> by what it is called with.
        flops: of matrix products and convolutions.
    """

    def __init__(self, around: Iterable[Tensor] = (), numbers: SmallNumbers | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._numbers = SmallNumbers() if numbers is None else numbers
        self.live = self.peak = self.flops = 0
        self.calls: dict[Call, int] = {}
        self._held: dict[int, Any] = {t.untyped_storage()._cdata: t for t in around}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        args = self._unmasked(func, args)
        result = func(*args, **given)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        counted = flop_registry.get(func._overloadpacket)
        flops = counted(*args, **given, out_val=result) if counted else 0
        call = Call(func, args, given, result, flops)
        if func.namespace != "prim":  # asked of pretended tensors only: real ones know their device
            self.calls[call] = self.calls.get(call, 0) + 1
        self.flops += call.flops
        return result

    def _unmasked(self, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Indexing by as many places as a mask chooses: no shape can tell them."""
        if func is not torch.ops.aten.index.Tensor:
            return args
        places: list[Any] = []
        for index in args[1]:
            if index is None or index.dtype != torch.bool:
                places.append(index)
            else:
                zeros = index.new_zeros(self._numbers.count(index), dtype=torch.long)
                places.extend([zeros] * index.dim())
        return (args[0], places, *args[2:])

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
    """An operation and the shapes it is called with; equal ones take equally long.

    Attributes:
        nbytes: of the tensors that it is called with, and of those that it gives.
        flops: of a matrix product or convolution, else 0.
    """

    def __init__(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any = None,
        flops: int = 0,
    ) -> None:
        self.func, self.flops = func, flops
        tensors = [x for x in tree_leaves((args, dict(kwargs), result)) if isinstance(x, Tensor)]
        self.nbytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.args, self.kwargs = tree_map(_described, (args, dict(kwargs)))
        self._key = f"{func} {self.args} {self.kwargs}"

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Call) and other._key == self._key

    @property
    def kind(self) -> Literal["view", "product", "plain"]:
        """Whether it looks at a tensor without reading it, multiplies matrices, or neither."""
        if self.func.is_view:
            return "view"
        return "product" if self.flops else "plain"


class TensorShape:
    """All of a tensor but its numbers."""

    def __init__(self, tensor: Tensor) -> None:
        self.shape, self.stride = tuple(tensor.shape), tensor.stride()
        self.dtype, self.device = tensor.dtype, tensor.device

    def __repr__(self) -> str:
        return f"{self.shape}/{self.stride}/{self.dtype}/{self.device}"

    def make(self) -> Tensor:
        """A tensor of this shape, of numbers that any operation takes."""
        tensor = torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
        return tensor.fill_(0.5 if self.dtype.is_floating_point else int(self.dtype == torch.bool))


def _described(value: Any) -> Any:
    return TensorShape(value) if isinstance(value, Tensor) else value


@contextmanager
def pretending(policy: Policy, device: torch.device) -> Iterator[SmallNumbers]:
    """Inside, tensors have no memory, and the weights of the policy pretend to be on a device.

    Gives the numbers that small tensors have all the same.
    """
    numbers = SmallNumbers()
    with FakeTensorMode(allow_non_fake_inputs=True), numbers, _HostReads(numbers):
        made: dict[int, nn.Parameter] = {}
        for module in policy.modules():
            for name, old in list(module._parameters.items()):
                if old is not None:
                    module._parameters[name] = made.setdefault(id(old), _pretended(old, device))
            for name, buffer in list(module._buffers.items()):
                # Bytes are data, such as a vocabulary: the host reads them.
                if buffer is not None and buffer.dtype != torch.uint8:
                    pretended = torch.empty_like(buffer, device=device)
                    module._buffers[name] = pretended
                    numbers.note(pretended, buffer)
        yield numbers


def _pretended(old: nn.Parameter, device: torch.device) -> nn.Parameter:
    empty = torch.empty(old.shape, dtype=old.dtype, device=device)
    return nn.Parameter(empty, requires_grad=old.requires_grad)


def follow_step(
    policy: Policy, batch: Mapping[str, Any], autocast: bool, numbers: SmallNumbers
) -> Trace:
    """Follow the forward and backward pass of a policy that pretends, in training mode."""
    policy.train()
    given = [leaf for leaf in tree_leaves(dict(batch)) if isinstance(leaf, Tensor)]
    trace = Trace([*policy.parameters(), *policy.buffers(), *given], numbers)
    with trace:
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=autocast):
            loss = policy.loss(batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
    return trace
