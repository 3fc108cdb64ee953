"""The hardest images once more."""

from typing import Any, cast

import pytorch_lightning as pl

from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError


class RevisitHardest(pl.Callback):
    """Makes an epoch all training images once and then, again, those with the largest losses.

    An image's loss is the one it had when the epoch saw it, so the choice costs nothing; images
    that a network has right already would teach it little (Jiang et al., "Accelerating Deep
    Learning by Focusing on the Biggest Losers", 2019). Images that had no place in a whole batch,
    fewer than a batch of them, count as hard.

    Args:
        fraction: of the training images that come again, from 0 to 1.

    Raises:
        ValueError: if `fraction` is not in [0, 1].
        UserError: before the training, on several devices, where each knows its own losses only.
    """

    ONE_DEVICE = (
        "Revisiting the hardest images works on one device: take trainer.gpus=1, or "
        "callbacks.revisit=null."
    )

    def __init__(self, fraction: float) -> None:
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be from 0 to 1, not {fraction}")
        self.fraction = fraction

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Tell the data before its batches are counted."""
        if trainer.world_size > 1:
            raise UserError(self.ONE_DEVICE)
        _data(trainer).replay = self.fraction

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the losses, on the device."""
        _, _, index = batch
        noted = _data(trainer).losses
        noted[index.to(noted.device)] = outputs["losses"].to(noted)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave the data as they were."""
        _data(trainer).replay = 0.0


def _data(trainer: pl.Trainer) -> ImageData:
    return cast(ImageData, trainer.datamodule)  # type: ignore[attr-defined]
