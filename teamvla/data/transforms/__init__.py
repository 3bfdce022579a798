"""What is done to a batch before training sees it."""

from teamvla.data.transforms.base import Batch, Transform
from teamvla.data.transforms.color import Color, ColorConfig
from teamvla.data.transforms.kinds import TRANSFORMS, TransformConfig
from teamvla.data.transforms.mirror import Mirror, MirrorConfig
from teamvla.data.transforms.shift import RandomShift, RandomShiftConfig, shift_pictures

__all__ = [
    "TRANSFORMS",
    "Batch",
    "Color",
    "ColorConfig",
    "Mirror",
    "MirrorConfig",
    "RandomShift",
    "RandomShiftConfig",
    "Transform",
    "TransformConfig",
    "shift_pictures",
]
