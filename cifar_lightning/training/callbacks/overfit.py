"""Trains and validates on the same few batches, for debug=overfit."""

from typing import Any, cast

import pytorch_lightning as pl
from torch import Tensor

from cifar_lightning.data import ImageData, ImageSplit, split_balanced
from cifar_lightning.errors import UserError
from cifar_lightning.training.augment import Augment


class SameBatches(pl.Callback):
    """Trains on the same few images in every epoch, and validates on them too.

    The Trainer's `limit_train_batches` is the number of batches. The images are balanced over the
    classes and not augmented. With Lightning's own `overfit_batches`, the data module would still
    shuffle the images, and validation would use others.

    Raises:
        UserError: before training, if `limit_train_batches` is not a number of batches, or is more
            than there are.
    """

    def __init__(self) -> None:
        self._original: tuple[Tensor, ImageSplit | None, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace the data before Lightning counts its batches."""
        if stage != "fit":
            return
        data = _data(trainer)
        batches, most = trainer.limit_train_batches, len(data.train_index) // data.batch_size
        if not isinstance(batches, int) or not 1 <= batches <= most:
            raise UserError(
                f"trainer.limit_train_batches={batches} is not a whole number from 1 to {most}, "
                "the number of training batches."
            )
        self._original = data.train_index, data.val, getattr(pl_module, "augment", None)
        # Not the first images, which are of one class if file names begin with the class.
        labels = data.train.labels[data.train_index]
        drawn, _ = split_balanced(labels, batches * data.batch_size, data.split_seed)
        index = data.train_index[drawn]
        data.train_index = index
        data.val = ImageSplit(data.train.images[index], data.train.labels[index])
        # Through vars(), because nn.Module refuses to replace a module by a function.
        vars(pl_module)["augment"] = Augment()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the data and the augmentation."""
        if self._original is not None:
            data = _data(trainer)
            data.train_index, data.val, vars(pl_module)["augment"] = self._original
            self._original = None


def _data(trainer: pl.Trainer) -> ImageData:
    return cast(ImageData, trainer.datamodule)  # type: ignore[attr-defined]
