"""Trains and validates on the same few batches, as debug=overfit does."""

from typing import Any, cast

import pytorch_lightning as pl
from torch import Tensor

from cifar_lightning.data import ImageData, ImageSplit, split_balanced
from cifar_lightning.errors import UserError
from cifar_lightning.training.augment import Augment


class SameBatches(pl.Callback):
    """Makes every epoch consist of the same few images, and validates on them too.

    They are balanced over the classes and not augmented, whatever the module's `augment` is. There
    are the Trainer's `limit_train_batches` times the batch size of them. Lightning's own
    `overfit_batches` cannot be used: the data module decides the order of its images itself, and
    it would validate on other images.

    Raises:
        UserError: before the training, if `limit_train_batches` is not a count of batches, or more
            than there are.
    """

    def __init__(self) -> None:
        self._before: tuple[Tensor, ImageSplit | None, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Change the data before its batches are counted."""
        if stage != "fit":
            return
        data = _data(trainer)
        batches, most = trainer.limit_train_batches, len(data.train_index) // data.batch_size
        if not isinstance(batches, int) or not 1 <= batches <= most:
            raise UserError(
                f"trainer.limit_train_batches={batches} is not a count from 1 to {most}, the "
                "batches that there are."
            )
        self._before = data.train_index, data.val, pl_module.augment
        # Not the first ones: they are of one class if the file names begin with the class.
        labels = data.train.labels[data.train_index]
        drawn, _ = split_balanced(labels, batches * data.batch_size, data.split_seed)
        index = data.train_index[drawn]
        data.train_index = index
        data.val = ImageSplit(data.train.images[index], data.train.labels[index])
        # Through vars(), because nn.Module would not replace a module by a function.
        vars(pl_module)["augment"] = Augment()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Restore the data and the augmentation."""
        if self._before is not None:
            data = _data(trainer)
            data.train_index, data.val, vars(pl_module)["augment"] = self._before
            self._before = None


def _data(trainer: pl.Trainer) -> ImageData:
    return cast(ImageData, trainer.datamodule)  # type: ignore[attr-defined]
