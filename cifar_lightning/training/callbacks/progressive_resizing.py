"""Small images first, full ones later."""

from typing import Any, Protocol, cast

import pytorch_lightning as pl
import torch

from cifar_lightning.errors import UserError


class Resizing(Protocol):
    """A module whose training steps see images of `train_size` pixels, of their own with None."""

    train_size: int | None


class LowResolutionFirst(pl.Callback):
    """Trains on small images first, whose steps cost less, and on full ones at the end.

    Progressive resizing (Howard, in DAWNBench, 2018; Tan and Le, "EfficientNetV2", 2021). For
    networks that end in a mean over the last map, and so take images of any size. Validation and
    test see full images.

    Args:
        size: of the small images, height and width in pixels.
        until: fraction of all steps that see them, from 0 to 1.

    Raises:
        ValueError: if `size` is below 1 or `until` is not in [0, 1].
        UserError: before the first step, if the network cannot take images so small, or the data's
            are no larger.
    """

    def __init__(self, size: int, until: float) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        if not 0 <= until <= 1:
            raise ValueError(f"until must be from 0 to 1, not {until}")
        self.size = size
        self.until = until

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Try the small size out."""
        full = trainer.datamodule.image_size  # type: ignore[attr-defined]
        if self.size >= full:
            raise UserError(
                f"Low resolution first gives the network images of {self.size} x {self.size} "
                f"pixels, but the data's have {full} x {full}: take fewer, as "
                f"callbacks.low_resolution.size={full * 3 // 4}."
            )
        image = torch.zeros(1, 3, self.size, self.size, dtype=torch.uint8, device=pl_module.device)
        try:
            with torch.no_grad():
                pl_module.eval()(image)
        except RuntimeError as error:
            raise UserError(
                f"The network cannot take images of {self.size} x {self.size} pixels, which "
                f"low resolution first gives it: {error}"
            ) from error
        finally:
            pl_module.train()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Say which size the step sees."""
        small = trainer.global_step < self.until * trainer.estimated_stepping_batches
        cast(Resizing, pl_module).train_size = self.size if small else None
