"""Typed, layered configuration."""

from teamvla.config.project import Project, find_config, schema, shipped_configs
from teamvla.config.settings import Settings

__all__ = ["Project", "Settings", "find_config", "schema", "shipped_configs"]
