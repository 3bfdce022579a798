"""Models by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from teamvla.errors import ConfigError
from teamvla.models.base import MODELS, Policy, build_policy

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
            arguments: for a policy ``contract``, optionally ``statistics``, ``loss`` and ``seed``
                (see :func:`teamvla.models.base.build_policy`), and its settings; for any
                other module what its class takes.

        Raises:
            RegistryError: there is no such model.
            ConfigError: a policy without a contract.
        """
        kind = MODELS.get(name)
        if not issubclass(kind, Policy):
            return kind(**arguments)
        if "contract" not in arguments:
            mend = "Pass contract=..., such as that of an environment or a dataset."
            raise ConfigError(f"model {name!r}", "a contract", "none", mend)
        surroundings = {
            key: arguments.pop(key)
            for key in ("contract", "statistics", "loss", "seed")
            if key in arguments
        }
        return build_policy(kind.Config(**{"type": name, **arguments}), **surroundings)
