"""Where images come from, and the LightningDataModule that splits and batches them."""

from cifar_lightning.data.cifar10 import Cifar10Data
from cifar_lightning.data.datamodule import ImageData, split_balanced
from cifar_lightning.data.folder import FolderData
from cifar_lightning.data.shapes import ShapesData
from cifar_lightning.data.splits import Part, Parts, check_memory

__all__ = [
    "Cifar10Data",
    "FolderData",
    "ImageData",
    "Part",
    "Parts",
    "ShapesData",
    "check_memory",
    "split_balanced",
]
