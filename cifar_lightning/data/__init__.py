"""Sources of images, and the LightningDataModule that splits and batches them."""

from cifar_lightning.data.cifar10 import Cifar10Data
from cifar_lightning.data.datamodule import ImageData
from cifar_lightning.data.image_folder import FolderData
from cifar_lightning.data.shapes import ShapesData
from cifar_lightning.data.splits import ImageSplit, Splits, split_balanced

__all__ = [
    "Cifar10Data",
    "FolderData",
    "ImageData",
    "ImageSplit",
    "ShapesData",
    "Splits",
    "split_balanced",
]
