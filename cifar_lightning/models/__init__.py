"""The networks, one file each, the blocks they share, and weight initialisation."""

from cifar_lightning.models.airbench94 import Airbench94
from cifar_lightning.models.dilated_dw import DilatedDW
from cifar_lightning.models.init import initialise
from cifar_lightning.models.residual_dw import ResidualDW
from cifar_lightning.models.resnet20 import ResNet20

__all__ = ["Airbench94", "DilatedDW", "ResNet20", "ResidualDW", "initialise"]
