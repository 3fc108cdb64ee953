"""The networks, one file each, the blocks they share, and how their weights start."""

from cifar_lightning.models.airbench94 import Airbench94
from cifar_lightning.models.dilated_dw import DilatedDW
from cifar_lightning.models.init import initialise

__all__ = ["Airbench94", "DilatedDW", "initialise"]
