"""The networks, one file each, the blocks they share, and how their weights start."""

from cifar_lightning.models.dilated_dw import DilatedDW
from cifar_lightning.models.init import initialise

__all__ = ["DilatedDW", "initialise"]
