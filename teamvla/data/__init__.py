"""Episodes: their schema, files, index, and what training reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from teamvla.registry import import_object

if TYPE_CHECKING:
    from teamvla.data.casting import as_step as as_step
    from teamvla.data.dataloader import DatasetConfig as DatasetConfig
    from teamvla.data.dataloader import MultiTaskDataset as MultiTaskDataset
    from teamvla.data.dataloader import make_dataloader as make_dataloader
    from teamvla.data.episodes import find_episodes as find_episodes
    from teamvla.data.index import Index as Index
    from teamvla.data.index import IndexConfig as IndexConfig
    from teamvla.data.index import build_index as build_index
    from teamvla.data.npz import Episode as Episode
    from teamvla.data.npz import read_episode as read_episode
    from teamvla.data.npz import read_meta as read_meta
    from teamvla.data.ragged import Ragged as Ragged
    from teamvla.data.schema import EPISODE_FILE_VERSION as EPISODE_FILE_VERSION
    from teamvla.data.schema import OPTIONAL_FIELDS as OPTIONAL_FIELDS
    from teamvla.data.schema import STEP_SPECS as STEP_SPECS
    from teamvla.data.schema import EpisodeMeta as EpisodeMeta
    from teamvla.data.schema import FieldSpec as FieldSpec
    from teamvla.data.schema import step_specs as step_specs
    from teamvla.data.schema import validate_episode_meta as validate_episode_meta
    from teamvla.data.schema import validate_step as validate_step
    from teamvla.data.transforms import RandomShift as RandomShift
    from teamvla.data.validation import Finding as Finding
    from teamvla.data.validation import validate_file as validate_file
    from teamvla.data.validation import validate_roots as validate_roots
    from teamvla.data.writer import EpisodeWriter as EpisodeWriter

_HOME = {
    "as_step": "casting",
    "DatasetConfig": "dataloader",
    "MultiTaskDataset": "dataloader",
    "make_dataloader": "dataloader",
    "find_episodes": "episodes",
    "Index": "index",
    "IndexConfig": "index",
    "build_index": "index",
    "Episode": "npz",
    "read_episode": "npz",
    "read_meta": "npz",
    "Ragged": "ragged",
    "EPISODE_FILE_VERSION": "schema",
    "OPTIONAL_FIELDS": "schema",
    "STEP_SPECS": "schema",
    "EpisodeMeta": "schema",
    "FieldSpec": "schema",
    "step_specs": "schema",
    "validate_episode_meta": "schema",
    "validate_step": "schema",
    "RandomShift": "transforms",
    "Finding": "validation",
    "validate_file": "validation",
    "validate_roots": "validation",
    "EpisodeWriter": "writer",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_object(f"{__name__}.{_HOME[name]}:{name}")
