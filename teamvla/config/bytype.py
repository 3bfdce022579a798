"""Settings whose class the key ``type`` decides, by a registry that anybody may extend."""

from __future__ import annotations

from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, PydanticKnownError, core_schema

from teamvla.config.settings import Settings
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
        """The class of settings that plain data are for; None if they name nothing known."""
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
        kinds = dict.fromkeys(self.registry.get(name).Config for name in self.registry)
        choices = [handler(kind.__pydantic_core_schema__) for kind in kinds]
        return {"anyOf": [*choices, *[{"type": "null"}] * self.optional]}

    def _validate(self, value: Any) -> Settings | None:
        if value is None and self.optional:
            return None
        if isinstance(value, Settings):
            return self._require_entry(value)
        if not isinstance(value, dict):
            raise PydanticCustomError("settings", "expected keys and values")
        kind = self.settings_of(value)
        if kind is None:
            tags = ", ".join(f"'{name}'" for name in self.registry)
            tag = str(value.get("type"))
            context = {"discriminator": "'type'", "tag": tag, "expected_tags": tags}
            raise PydanticKnownError("union_tag_invalid", context)
        return kind.model_validate({"type": self.default, **value})

    def _require_entry(self, settings: Settings) -> Settings:
        kind = self.settings_of({"type": getattr(settings, "type", None)})
        if kind is None or not isinstance(settings, kind):
            context = {"kind": self.registry.kind}
            raise PydanticCustomError("settings", "expected settings of a known {kind}", context)
        return settings
