"""Progressive resizing: small images first, full-size ones later."""

from typing import Any, cast

import pytorch_lightning as pl
import torch

from cifar_lightning.errors import UserError
from cifar_lightning.training.module import Classifier, network_of


class ProgressiveResizing(pl.Callback):
    """Trains on small images first, at less cost per step, and on full-size ones at the end.

    See Howard, in DAWNBench, 2018, and Tan and Le, "EfficientNetV2", 2021. The network has to take
    images of both sizes, as networks with global pooling do. Validation and test use full-size
    images.

    Args:
        size: height and width of the small images, in pixels.
        until: fraction of all steps that use them, from 0 to 1.

    Raises:
        ValueError: if `size` is below 1 or `until` is not in [0, 1].
        UserError: before the first step, if the network cannot take images of that size, or the
            data's images are not larger.
    """

    def __init__(self, size: int, until: float) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        if not 0 <= until <= 1:
            raise ValueError(f"until must be from 0 to 1, not {until}")
        self.size = size
        self.until = until
        self.train_image_sizes = (size,) if until else ()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that the network takes the small size."""
        if not hasattr(pl_module, "train_image_size"):
            raise UserError(
                f"Progressive resizing sets train_image_size, to which a training step scales the "
                f"images; {type(pl_module).__name__} has none. Use callbacks=default."
            )
        full = trainer.datamodule.image_size  # type: ignore[attr-defined]
        if self.size >= full:
            raise UserError(
                f"Progressive resizing begins with images of {self.size} x {self.size} pixels, but "
                f"the data's images have {full} x {full}: use a smaller size, as in "
                f"callbacks.progressive_resizing.size={full * 3 // 4}."
            )
        network = network_of(pl_module)
        image = torch.zeros(1, 3, self.size, self.size).to(next(network.parameters()))
        try:
            with torch.no_grad():
                network.eval()(image)
        except RuntimeError as error:
            raise UserError(
                f"Progressive resizing begins with images of {self.size} x {self.size} pixels, "
                f"which the network cannot take: {error}"
            ) from error
        finally:
            network.train()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the image size of the step."""
        small = trainer.global_step < self.until * trainer.estimated_stepping_batches
        cast(Classifier, pl_module).train_image_size = self.size if small else None
