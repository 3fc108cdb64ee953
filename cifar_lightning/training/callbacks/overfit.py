"""The same few batches over and over."""

from typing import Any, cast

import pytorch_lightning as pl
from torch import Tensor

from cifar_lightning.data import ImageData, ImageSplit, split_balanced
from cifar_lightning.errors import UserError
from cifar_lightning.training.augment import Augment


class SameBatches(pl.Callback):
    """Makes every epoch of the same few images, as they are, and has them validate too.

    They are balanced over the classes, and nothing augments them, whatever the module's `augment`
    is. How many is the Trainer's `limit_train_batches`, times the batch size; without this callback
    each epoch would have other ones. Lightning's own `overfit_batches` does the same for data whose
    order is not theirs to decide, and validates on other images.

    Raises:
        UserError: before the training, if `limit_train_batches` is no count of batches, or more
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
        # Not the first ones: where file names begin with the class, these are of one class alone.
        labels = data.train.labels[data.train_index]
        drawn, _ = split_balanced(labels, batches * data.batch_size, data.split_seed)
        index = data.train_index[drawn]
        data.train_index = index
        data.val = ImageSplit(data.train.images[index], data.train.labels[index])
        # Past nn.Module, which puts nothing but a module in the place of one.
        vars(pl_module)["augment"] = Augment()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the data as they were."""
        if self._before is not None:
            data = _data(trainer)
            data.train_index, data.val, vars(pl_module)["augment"] = self._before
            self._before = None


def _data(trainer: pl.Trainer) -> ImageData:
    return cast(ImageData, trainer.datamodule)  # type: ignore[attr-defined]
