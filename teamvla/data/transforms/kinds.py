"""The transforms that a configuration can name."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from teamvla.config import Settings
from teamvla.data.transforms.color import ColorConfig
from teamvla.data.transforms.mirror import MirrorConfig
from teamvla.data.transforms.shift import RandomShiftConfig

#: the settings of any transform; a new one is a class with ``type`` and ``build``, added here
TransformConfig = Annotated[
    RandomShiftConfig | ColorConfig | MirrorConfig, Field(discriminator="type")
]

#: type -> class of its settings
TRANSFORMS: dict[str, type[Settings]] = {
    kind.model_fields["type"].default: kind
    for kind in (RandomShiftConfig, ColorConfig, MirrorConfig)
}
