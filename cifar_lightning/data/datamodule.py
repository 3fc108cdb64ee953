"""The LightningDataModule: splits and batches of any source of images."""

import math
from abc import abstractmethod
from typing import NamedTuple

import pytorch_lightning as pl
import torch
from torch import Tensor

from cifar_lightning.data.sampler import BatchLoader, InOrderSampler, TrainLoader, TrainSampler
from cifar_lightning.data.splits import (
    ImageSplit,
    LabelShift,
    Splits,
    find_label_shift,
    split_balanced,
)
from cifar_lightning.errors import UserError

# A split that needs a larger fraction of a GPU's free memory stays in the host's memory, and its
# batches are copied one by one, because training needs the rest.
LARGEST_SHARE_OF_MEMORY = 0.5


class Expected(NamedTuple):
    """What is known about a data set before it is read."""

    classes: int
    image_size: int  # height and width in pixels
    train_images: int  # of the official train split


def images_within(images: int, limit: int | float | None, batch_size: int) -> int:
    """The number of images within a limit of the Trainer's: batches, or a fraction of them."""
    if limit is None:
        return images
    batches = math.ceil(images / batch_size)
    batches = int(batches * limit) if isinstance(limit, float) else limit
    return min(images, batches * batch_size)


class ImageData(pl.LightningDataModule):
    """Train, validation and test batches of a data set that fits into memory.

    A subclass for other data implements `load`; it also implements `fetch` if files have to be
    downloaded or prepared first.

    A batch is (images uint8 [N, 3, H, W], labels int64 [N], index int64 [N]), where `index` is each
    image's position in its official split. Images are not augmented here: the training step does
    that, on whole batches, on the device.

    Validation images are drawn from the official train split, balanced over the classes; the
    official test split is the test set.

    Args:
        batch_size: images per step, over all devices together.
        val_size: validation images, as a count (int) or a fraction (float) of the train split.
            With 0 there is no validation and training sees the whole train split.
        split_seed: chooses the validation images. Not `seed`, so that runs with different seeds
            are validated on the same images.
        seed: determines the order of the training images.

    Attributes, after `setup`:
        classes: class names.
        image_size: height and width in pixels.
        mean, std: of the training images per channel, on the scale 0 to 1.
        train: the official train split; `train_index` (int64) are the positions trained on.
        val: the validation images, or None with `val_size=0`.
        test: the official test split.
        label_shift: how the classes' shares in test differ from those in train and validation;
            None if they hardly do, see `find_label_shift`.
        replay: fraction of the training images that each epoch repeats at its end: those with the
            largest `losses`. Images of the incomplete last batch, which is left out, come first. 0
            unless a callback sets it before training.
        losses: float [images of the official train split], on the device of the batches. A callback
            that sets `replay` stores each batch's losses here; they are infinite when an epoch
            begins.

    Raises:
        UserError: from `setup`, if the images are not square, or `val_size` or `batch_size` does
            not fit their number.
    """

    def __init__(
        self,
        batch_size: int = 256,
        val_size: int | float = 5000,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.seed = seed
        self.val: ImageSplit | None = None
        self.replay = 0.0
        self._loaded = False

    def prepare_data(self) -> None:
        """Fetch the files once; Lightning calls this before every fit and test."""
        if not self._loaded:
            self.fetch()

    def expected(self) -> Expected | None:
        """What `load` will return, if that is known before the files are read; else None."""
        return None

    def fetch(self) -> None:
        """Download or prepare the files that `load` reads; does nothing by default."""

    @abstractmethod
    def load(self) -> Splits:
        """Return the official splits."""

    def setup(self, stage: str | None = None) -> None:
        """Load and split once; Lightning calls this before every fit, validate and test."""
        if self._loaded:
            return
        splits = self.load()
        self.classes = splits.classes
        self.test: ImageSplit = splits.test
        height, width = splits.train.images.shape[2:]
        if height != width:
            raise UserError(
                f"The images are {width} x {height} pixels; they must be square. "
                f"data.image_size={min(height, width)} crops each to the square in its middle."
            )
        self.image_size = height

        val_count = self.check_sizes(len(self.classes), len(splits.train))
        val_index, train_index = split_balanced(splits.train.labels, val_count, self.split_seed)
        self.train: ImageSplit = splits.train
        self.train_index = train_index
        self.label_shift: LabelShift | None = find_label_shift(self.train.labels, self.test.labels)
        if val_count:
            self.val = ImageSplit(splits.train.images[val_index], splits.train.labels[val_index])
        self.mean, deviations = channel_statistics(splits.train.images[train_index])
        # A constant channel has deviation 0, by which images cannot be divided.
        self.std = [deviation or 1.0 for deviation in deviations]
        self._loaded = True

    def check_sizes(self, classes: int, train_images: int) -> int:
        """Check that `val_size` and `batch_size` fit the data.

        Args:
            classes: number of classes.
            train_images: number of images in the official train split.

        Returns:
            The number of validation images.

        Raises:
            UserError: if one of them does not fit.
        """
        size = self.val_size
        val_count = round(size * train_images) if isinstance(size, float) else size
        too_few = size != 0 and val_count < classes
        if too_few or not 0 <= val_count < train_images:
            raise UserError(
                f"data.val_size={size} of {train_images} training images is invalid. Give a "
                f"number from {classes} (one per class) to {train_images - 1}, a fraction such as "
                "0.1, or 0 for no validation."
            )
        if not 1 <= self.batch_size <= train_images - val_count:
            raise UserError(
                f"data.batch_size={self.batch_size} is not from 1 to {train_images - val_count}, "
                "the number of training images."
            )
        return val_count

    def train_dataloader(self) -> TrainLoader:
        """Batches in a new order every epoch, without an incomplete last one."""
        train = self._on_device(self.train)
        index = self.train_index.to(train.labels.device)
        self.losses = torch.full((len(train),), math.inf, device=index.device)
        rank, world_size = self._rank_and_world_size()
        sampler = TrainSampler(
            index, self.batch_size, self.seed, rank, world_size, self.replay, self.losses
        )
        return TrainLoader(train, sampler)

    def val_dataloader(self) -> BatchLoader | list[Tensor]:
        """All validation images in order; an empty list with `val_size=0`."""
        return [] if self.val is None else self._in_order(self.val)

    def test_dataloader(self) -> BatchLoader:
        """All official test images in order."""
        return self._in_order(self.test)

    def _in_order(self, split: ImageSplit) -> BatchLoader:
        split = self._on_device(split)
        rank, world_size = self._rank_and_world_size()
        device = split.labels.device
        sampler = InOrderSampler(len(split), self.batch_size, rank, world_size, device)
        return BatchLoader(split, sampler)

    def _on_device(self, split: ImageSplit) -> ImageSplit:
        """Copy a split to the training device, so that no step copies images from the host."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if split.images.nbytes > free * LARGEST_SHARE_OF_MEMORY:
                return split
        return split.to(device)

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Compute mean and standard deviation per channel.

    Args:
        images: uint8 [N, C, H, W].

    Returns:
        C means and C standard deviations, on the scale 0 to 1.
    """
    means, deviations = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for channel in images.unbind(1):
        # A histogram is exact and needs no float copy of the data set.
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * levels).sum()
        means.append(mean.item())
        deviations.append((share * (levels - mean) ** 2).sum().sqrt().item())
    return means, deviations
