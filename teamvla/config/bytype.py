"""Settings whose class the key ``type`` decides, by a registry that anybody may extend."""

from __future__ import annotations

from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError, core_schema

from teamvla.config.settings import Settings
from teamvla.errors import RegistryError
from teamvla.registry import Registry


class ByType:
    """Note on a field: ``head: Annotated[HeadConfig, ByType(ACTION_HEAD_REGISTRY, "mlp")]``.

    An entry of the registry is a class that keeps its settings as ``Config``. Unlike a union,
    the choice is made when a value is checked, so that entries of other packages count.

    Args:
        registry: of what can be chosen.
        default: what settings without ``type`` are for.
        optional: whether null goes through.
    """

    def __init__(self, registry: Registry[Any], default: str, *, optional: bool = False) -> None:
        self.registry, self.default, self.optional = registry, default, optional

    def settings_of(self, data: Any) -> type[Settings] | None:
        """The class of settings that plain data are for; None if they name nothing usable."""
        try:
            return self._chosen(data)
        except RegistryError:
            return None

    def _chosen(self, data: Any) -> type[Settings] | None:
        """The same, but RegistryError if what they name cannot be imported."""
        name = data.get("type", self.default) if isinstance(data, dict) else self.default
        if not isinstance(name, str) or name not in self.registry:
            return None
        kind: type[Settings] = self.registry.get(name).Config
        return kind

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(
            lambda value, info: value and value.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(self._validate, serialization=dump)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        kinds = dict.fromkeys(entry.Config for entry in self.registry.loadable())
        choices = [handler(kind.__pydantic_core_schema__) for kind in kinds]
        return {"anyOf": [*choices, *[{"type": "null"}] * self.optional]}

    def _validate(self, value: Any) -> Settings | None:
        if value is None and self.optional:
            return None
        if isinstance(value, Settings):
            return self._require_entry(value)
        if not isinstance(value, dict):
            raise PydanticCustomError("settings", "expected keys and values")
        try:
            kind = self._chosen(value)
        except RegistryError as error:
            raise ValueError(str(error)) from None
        if kind is None:
            raise self._no_such_choice(str(value.get("type")))
        return kind.model_validate({"type": self.default, **value})

    def _no_such_choice(self, name: str) -> PydanticCustomError:
        """As pydantic says it of a union, and how one's own is made known."""
        tags = ", ".join(f"'{known}'" for known in self.registry)
        return PydanticCustomError(
            "union_tag_invalid",
            "no such type '{tag}', known are {expected_tags}. {hint}",
            {
                "discriminator": "'type'",
                "tag": name,
                "expected_tags": tags,
                "hint": self.registry.hint,
            },
        )

    def _require_entry(self, settings: Settings) -> Settings:
        kind = self.settings_of({"type": getattr(settings, "type", None)})
        if kind is None or not isinstance(settings, kind):
            context = {"kind": self.registry.kind}
            raise PydanticCustomError("settings", "expected settings of a known {kind}", context)
        return settings


def over_defaults(data: Any, kind: type[Settings]) -> Any:
    """Settings whose sections say only what is different; for a ``before`` validator.

    A section that names no ``type``, or that of its default in ``kind``, is laid over this
    default: one key of it does not reset the others to what the section's class has.
    """
    if not isinstance(data, dict):
        return data
    fields = kind.model_fields
    return {
        name: _over_default(value, fields[name]) if name in fields else value
        for name, value in data.items()
    }


def _over_default(value: Any, field: FieldInfo) -> Any:
    default = field.default
    if not (isinstance(value, dict) and isinstance(default, Settings)):
        return value
    kind = getattr(default, "type", None)
    if value.get("type", kind) != kind:
        return value
    given = {name for name, keys in default.spellings(value).items() if keys}
    below = default.model_dump(exclude_defaults=True, exclude=given)
    return {**below, **value} if kind is None else {**below, "type": kind, **value}
