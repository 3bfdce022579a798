"""Named by LeRobot's augmentations, which are not used here."""

from torchvision.transforms.v2 import functional as functional


class Transform:
    pass
