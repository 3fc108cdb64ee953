"""Hard-example replay: repeats images with large losses."""

from typing import Any, cast

import pytorch_lightning as pl

from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError


class HardExampleReplay(pl.Callback):
    """Repeats the training images with the largest losses at the end of each epoch.

    An image's loss is that of its training step in this epoch, so measuring it costs nothing.
    Images that are classified correctly with confidence have small gradients (Jiang et al.,
    "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019). Images of the epoch's
    incomplete last batch, which is left out, count as hard.

    Args:
        fraction: fraction of the training images that is repeated, from 0 to 1.

    Raises:
        ValueError: if `fraction` is not in [0, 1].
        UserError: before training, if there are several devices: each knows only its own losses; or
            after the first step, if it returns no losses [N].
    """

    ONE_DEVICE = (
        "Hard-example replay works on one device only: use trainer.gpus=1, or "
        "callbacks.hard_examples=null."
    )

    def __init__(self, fraction: float) -> None:
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be from 0 to 1, not {fraction}")
        self.fraction = fraction

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Set the fraction before Lightning counts the batches of an epoch."""
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
        """Store the losses of the batch, on the device."""
        if outputs.get("losses") is None or outputs["losses"].ndim != 1:
            raise UserError(
                "Hard-example replay needs the loss of each image: a loss that returns the losses "
                "[N], not their mean, and a training_step that returns them as `losses` (here that "
                f"of {type(pl_module).__name__}). callbacks.hard_examples=null leaves it out."
            )
        _, _, index = batch
        losses = _data(trainer).losses
        losses[index.to(losses.device)] = outputs["losses"].to(losses)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Stop repeating images."""
        _data(trainer).replay = 0.0


def _data(trainer: pl.Trainer) -> ImageData:
    return cast(ImageData, trainer.datamodule)  # type: ignore[attr-defined]
