"""Training a part of a policy: low-rank adapters, frozen weights, checkpointed blocks.

What is frozen is out of the optimiser, out of the averaging, and in evaluation mode. Patterns
are those of a shell over the full names: ``vision.*`` is everything inside ``vision``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, Protocol, Self, TypeGuard, cast

from pydantic import Field
from torch import Tensor, nn

from teamvla.config import Settings
from teamvla.errors import ConfigError, MissingDependencyError
from teamvla.models.attention import TransformerBlock
from teamvla.registry import did_you_mean

#: linear layers of transformer blocks, as this package and transformers call them
TARGETS = (
    "*.q_proj", "*.k_proj", "*.v_proj", "*.o_proj", "*.out_proj", "*.qkv_proj",
    "*.query", "*.key", "*.value",
    "*.mlp.0", "*.mlp.2", "*.fc1", "*.fc2",
    "*.gate_proj", "*.up_proj", "*.down_proj", "*.gate_up_proj",
)  # fmt: skip
#: where peft keeps the layer that it adapts
_BASE = ".base_layer."
#: nearest names that an error shows
_SHOWN = 12


class LoRAConfig(Settings):
    """Settings of :func:`enable_lora`."""

    r: int = Field(default=16, ge=1, description="Rank of the adapters.")
    alpha: float = Field(default=32.0, gt=0, description="Adapters are scaled by alpha / r.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Rate before each adapter.")
    target: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Patterns of linear layers that get one; null: those of transformer blocks.",
    )
    train: tuple[str, ...] = Field(
        default=(), description="Patterns of parameters that are trained besides, such as heads.*."
    )


class AdaptationConfig(Settings):
    """Which part of a policy is trained, and how its memory is saved."""

    lora: LoRAConfig | None = Field(
        default=None, description="Low-rank adapters: r, alpha, dropout, target, train; null: none."
    )
    freeze: tuple[str, ...] = Field(
        default=(), description="Patterns of parameters that keep their values."
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Whether transformer blocks are computed again in the backward pass, "
        "instead of keeping what they computed.",
    )


class Adaptable(nn.Module):
    """A module of which a part may be trained; ``config.adaptation`` says what it is."""

    #: settings that have an :class:`AdaptationConfig` as ``adaptation``
    config: Any
    #: what was frozen before adapters came
    frozen_before: tuple[str, ...] = ()

    def enable_lora(self, r: int = 16, alpha: float = 32.0, **settings: Any) -> None:
        """See :func:`enable_lora`; ``settings`` are others of :class:`LoRAConfig`."""
        enable_lora(self, LoRAConfig(r=r, alpha=alpha, **settings))

    def merge_lora(self) -> None:
        """See :func:`merge_lora`."""
        merge_lora(self)

    def enable_gradient_checkpointing(self) -> None:
        """See :func:`enable_gradient_checkpointing`."""
        enable_gradient_checkpointing(self)

    def train(self, mode: bool = True) -> Self:
        """Switch the mode; what is frozen as a whole stays in evaluation mode."""
        super().train(mode)
        for part in self.children() if mode else ():
            _rest_frozen(part)
        return self


def adapt(policy: Adaptable, config: AdaptationConfig) -> None:
    """Do to a policy with fresh weights all that the settings say.

    Raises:
        ConfigError: a pattern matches nothing, or there is no transformer to checkpoint.
        MissingDependencyError: adapters, without peft.
    """
    freeze(policy, config.freeze)
    if config.lora is not None:
        enable_lora(policy, config.lora)
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(policy)


def freeze(policy: nn.Module, patterns: Sequence[str]) -> None:
    """Keep the parameters that match as they are; modules that have no others stop dropping out.

    Raises:
        ConfigError: a pattern matches no parameter.
    """
    named = dict(policy.named_parameters())
    for name in matching(patterns, named, "model.adaptation.freeze"):
        named[name].requires_grad_(False)
    policy.train(policy.training)


def enable_lora(policy: Adaptable, config: LoRAConfig) -> None:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) beside linear layers, through peft.

        y = W x + alpha / r * B A dropout(x)

    A is random, B zero: the policy stays what it was until it is trained. Everything but the
    adapters and what ``config.train`` names is frozen. What is frozen already gets no adapter.
    They are in float32 beside bf16 weights too, which would round small updates away.

    Raises:
        ConfigError: a pattern matches nothing, or it has adapters already.
        MissingDependencyError: peft is not installed.
    """
    peft = _peft()
    if has_lora(policy):
        raise ConfigError("enable_lora", "a policy without adapters", "one that has them",
                          "Call merge_lora() first.")  # fmt: skip
    policy.frozen_before = tuple(frozen_names(policy))
    targets = "|".join(map(re.escape, _targets(policy, config.target)))
    settings = peft.LoraConfig(
        r=config.r, lora_alpha=config.alpha, lora_dropout=config.dropout,
        target_modules=rf"policy\.({targets})",
    )  # fmt: skip
    # peft reads a model's own `config`, which of a policy is another thing.
    around = nn.Module()
    around.policy = policy
    around.train(policy.training)
    peft.inject_adapter_in_model(settings, around)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    named = dict(policy.named_parameters())
    for name in matching(config.train, named, "model.adaptation.lora.train"):
        named[name].requires_grad_(True)
    _note(policy, lora=config)
    policy.train(policy.training)


def merge_lora(policy: Adaptable) -> None:
    """Add the adapters to the weights beside them: a plain policy that computes the same.

    Weights in bf16 stay so: their sums are rounded to 8 bits, each by up to 1/256 of itself.
    What was frozen for the adapters' sake is trained again; what was frozen before is not.
    """
    for parent, name, layer in list(_adapted(policy)):
        layer.merge()
        setattr(parent, name, layer.get_base_layer())
    policy.requires_grad_(True)
    named = dict(policy.named_parameters())
    for frozen in policy.frozen_before:
        named[frozen].requires_grad_(False)
    _note(policy, lora=None)
    freeze(policy, policy.config.adaptation.freeze)


def has_lora(policy: nn.Module) -> bool:
    """Whether it has adapters that are not merged."""
    return any(_is_adapted(module) for module in policy.modules())


def enable_gradient_checkpointing(policy: Adaptable) -> None:
    """Compute transformer blocks again in the backward pass (Chen et al. 2016, arXiv 1604.06174).

    The gradients are the same; of a block only what goes in is kept.

    Raises:
        ConfigError: there is no transformer in it.
    """
    blocks = [block for block in policy.modules() if isinstance(block, TransformerBlock)]
    for block in blocks:
        block.checkpointed = True
    others = [model for model in policy.modules() if _can_checkpoint(model)]
    for model in others:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if not blocks and not others:
        raise ConfigError(
            "model.adaptation.gradient_checkpointing", "transformer blocks", "a model without any",
            "Leave it out.",
        )  # fmt: skip
    _note(policy, gradient_checkpointing=True)


def plain_name(name: str) -> str:
    """What a parameter is called in the policy without adapters."""
    return name.replace(_BASE, ".")


def frozen_names(policy: nn.Module) -> list[str]:
    """The parameters that training does not change."""
    return [name for name, p in policy.named_parameters() if not p.requires_grad]


def under_base(policy: nn.Module, plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a policy without adapters under the names that they have in this one.

    Its own adapters are among them as they are.
    """
    own = policy.state_dict()
    named = {plain_name(name): name for name in own}
    tensors = {named.get(name, name): tensor for name, tensor in plain.items()}
    return {name: own[name] for name in own if "lora_" in name} | tensors


def matching(patterns: Sequence[str], names: Iterable[str], where: str) -> list[str]:
    """The names that match any of the patterns, in their own order.

    Raises:
        ConfigError: a pattern matches none; the message tells the nearest.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = did_you_mean(pattern, _suggestions(names, pattern))
            raise ConfigError(where, "patterns that match", f"{pattern!r}, which does not", near)
    return [name for name in names if any(fnmatchcase(name, p) for p in patterns)]


def _suggestions(names: Sequence[str], pattern: str) -> list[str]:
    """Patterns of modules as deep as a wrong one, or of less if there are too many."""
    for depth in range(pattern.count(".") or 1, 0, -1):
        found = {".".join(name.split(".")[:depth]) + ".*" for name in names if name.count(".")}
        if len(found) <= _SHOWN or depth == 1:
            return sorted(found)
    return []


def _targets(policy: nn.Module, patterns: Sequence[str] | None) -> list[str]:
    """Names of the linear layers that get an adapter."""
    open_ = [
        f"{name}.{child}" if name else child
        for name, parent in policy.named_modules()
        if not isinstance(parent, nn.MultiheadAttention)  # it reads the weight, and calls nothing
        for child, layer in parent.named_children()
        if isinstance(layer, nn.Linear) and layer.weight.requires_grad
    ]
    if patterns is not None:
        return matching(patterns, open_, "model.adaptation.lora.target")
    found = [name for name in open_ if any(fnmatchcase(name, p) for p in TARGETS)]
    if not found:
        raise ConfigError(
            "model.adaptation.lora", "transformer blocks that are not frozen", "none",
            f"Name linear layers by lora.target: {', '.join(open_[:_SHOWN])}, ...",
        )  # fmt: skip
    return found


def _rest_frozen(module: nn.Module) -> None:
    """Put modules all of whose parameters are frozen into evaluation mode."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    for child in module.children():
        _rest_frozen(child)


class _Adapted(Protocol):
    """A linear layer with its adapter, as peft has it."""

    def merge(self) -> None: ...

    def get_base_layer(self) -> nn.Module: ...


def _adapted(policy: nn.Module) -> Iterator[tuple[nn.Module, str, _Adapted]]:
    for parent in policy.modules():
        for name, child in parent.named_children():
            if _is_adapted(child):
                yield parent, name, cast(_Adapted, child)


def _is_adapted(module: nn.Module) -> bool:
    return hasattr(module, "lora_A") and hasattr(module, "get_base_layer")


class _Pretrained(Protocol):
    """What transformers' models have."""

    def gradient_checkpointing_enable(self, settings: dict[str, Any]) -> None: ...


def _can_checkpoint(module: nn.Module) -> TypeGuard[_Pretrained]:
    """Whether it is a model of transformers that offers it."""
    offered = hasattr(module, "gradient_checkpointing_enable")
    return offered and bool(getattr(module, "supports_gradient_checkpointing", False))


def _note(policy: Adaptable, **changes: Any) -> None:
    """Let the policy's settings say what it is, so that it can be rebuilt from them."""
    adaptation = policy.config.adaptation.model_copy(update=changes)
    policy.config = policy.config.model_copy(update={"adaptation": adaptation})


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingDependencyError.for_extra("peft", "pretrained") from None
    return peft
