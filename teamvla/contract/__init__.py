"""The semantic contract: what the numbers in a dataset or checkpoint mean."""

from teamvla.contract.arms import Arm, Camera, Link, Vector
from teamvla.contract.contract import ARM_FIELDS, Contract
from teamvla.contract.signals import Signal

__all__ = ["ARM_FIELDS", "Arm", "Camera", "Contract", "Link", "Signal", "Vector"]
