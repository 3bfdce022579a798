"""The few names of torchvision that LeRobot's data sets use, for a torch that has none.

Pictures are decoded by PyAV, which the real torchvision's ``pyav`` backend calls, too.
"""

from torchvision import io as io
from torchvision import transforms as transforms


def set_video_backend(name: str) -> None:
    """There is but one: pyav."""
    assert name == "pyav", name
