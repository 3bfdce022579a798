"""Models by name."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError
from torch import nn

from teamvla.config.explain import explain
from teamvla.config.source import Address, Mark, Source
from teamvla.errors import ConfigError
from teamvla.models.base import Policy, PolicyConfig, is_policy
from teamvla.models.building import build_policy
from teamvla.models.registries import MODELS
from teamvla.models.spaces import Spaces

_AROUND = ("statistics", "loss", "seed")
#: how sizes may be spelt -> what :meth:`Spaces.plain` calls them
_SIZES = {
    "action_dim": "action_dim",
    "state_dim": "state_dim",
    "image_size": "image_size",
    "image_channels": "image_channels",
    "in_channels": "image_channels",
    "num_cameras": "num_cameras",
}

#: decorator that enters a model class under a name: ``@register_model("my_model")``
register_model = MODELS.register


class ModelRegistry:
    """Creates models by name: this package's, plugins' and those of :func:`register_model`."""

    @staticmethod
    def list() -> list[str]:
        """All names, sorted."""
        return MODELS.names()

    @staticmethod
    def create(name: str, **arguments: Any) -> nn.Module:
        """A new model.

        Args:
            name: one of :meth:`list`.
            arguments: for a policy its settings, and what it is made for: ``contract``, or
                plain sizes (``action_dim``, ``state_dim``, ``image_size``, ``image_channels``,
                ``num_cameras``: see :meth:`teamvla.models.spaces.Spaces.plain`); optionally
                ``statistics``, ``loss`` and ``seed`` (see
                :func:`teamvla.models.building.build_policy`). For any other module what its class
                takes.

        Raises:
            RegistryError: there is no such model.
            ConfigError: a setting is wrong, or a size is missing.
        """
        kind = MODELS.get(name)
        if not is_policy(kind):
            return kind(**arguments)
        around = {key: arguments.pop(key) for key in _AROUND if key in arguments}
        contract = arguments.pop("contract", None) or _plain(kind, name, arguments)
        config = _settings(kind, name, arguments)
        return build_policy(config, contract, **around)


def _plain(kind: type[Policy], name: str, arguments: dict[str, Any]) -> Spaces:
    given, said = dict(kind.SIZES), set(arguments)
    for spelling in [argument for argument in arguments if argument in _SIZES]:
        size = _SIZES[spelling]
        if spelling != size and size in said:
            raise ConfigError(f"argument {spelling}: another spelling of {size}: give one of them")
        given[size] = arguments.pop(spelling)
    if "action_dim" not in given:
        mend = "Pass contract=..., such as that of an environment or a dataset, or action_dim=..."
        raise ConfigError(f"model {name!r}", "a contract or sizes", "neither", mend)
    return Spaces.plain(**given)


def _settings(kind: type[Policy], name: str, arguments: dict[str, Any]) -> PolicyConfig:
    try:
        return kind.Config.model_validate({"type": name, **arguments})
    except ValidationError as error:
        source = Source({"model": arguments}, _places(kind, name, arguments))
        lines = explain(error, kind.Config, source, ("model",))
        raise ConfigError("\n".join(lines)) from None


def _places(
    kind: type[Policy], name: str, arguments: dict[str, Any]
) -> dict[Address, tuple[Mark, Mark]]:
    """Address of a setting -> the argument that says it."""
    marks: dict[Address, Mark] = {("model",): Mark(f"model {name!r}")}
    for argument in arguments:
        for place in (argument, *kind.Config.FLAT.get(argument, ())):
            marks[("model", *place.split("."))] = Mark(f"argument {argument}")
    return {address: (mark, mark) for address, mark in marks.items()}
