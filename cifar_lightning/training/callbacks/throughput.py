"""Measures training time and throughput."""

import time
from typing import Any

import pytorch_lightning as pl
import torch


class Throughput(pl.Callback):
    """Measures training time alone, without set-up, validation and checkpoints.

    At each validation, or at the end of each epoch if there is none, it logs
    `throughput/images_per_s` (since it last logged), `throughput/train_seconds` and `epoch` (both
    since the start).

    Attributes:
        seconds: training time so far, including the time before a resume.
        images_by_size: number of images trained on so far, over all devices, by size in pixels.
        epochs: number of epochs so far, fractions included.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images_by_size: dict[int, int] = {}
        self.epochs = 0.0
        self._started: float | None = None
        self._logged_seconds = 0.0
        self._logged_images = 0

    @property
    def images(self) -> int:
        """Number of images trained on so far, over all devices."""
        return sum(self.images_by_size.values())

    @property
    def images_per_s(self) -> float:
        """Mean throughput of the training so far; 0 before it begins."""
        return self.images / self.seconds if self.seconds else 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock at the first step of an epoch and after a validation."""
        if self._started is None:
            _synchronize(pl_module.device)
            self._started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the images; the clock is not read, because a GPU would have to wait for it."""
        images = len(batch[0]) * trainer.world_size
        size = outputs.get("image_size", batch[0].shape[-1])
        self.images_by_size[size] = self.images_by_size.get(size, 0) + images
        self.epochs = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self.stop(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log with the validation's metrics."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._log(pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch and the step of the test."""
        # Lightning would log the epochs begun, and one step too few if a resume takes no step.
        pl_module.log("epoch", self.epochs)
        pl_module.log("step", float(trainer.global_step))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock; log if there is no validation."""
        self.stop(pl_module)
        if not trainer.enable_validation:
            self._log(pl_module)
        elif trainer.fit_loop.epoch_loop._results.metrics(on_step=False)["log"]:
            # What a module logs by epoch gets the epochs done, as validations have them, and not
            # Lightning's count, which begins with 0.
            pl_module.log("epoch", self.epochs)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop the clock."""
        self.stop(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The measurements so far, for a resume."""
        return {
            "seconds": self.seconds,
            "images_by_size": dict(self.images_by_size),
            "epochs": self.epochs,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from an earlier run's measurements."""
        # Converted, so that a damaged value raises an error here, not during training.
        self.seconds = self._logged_seconds = float(state_dict["seconds"])
        sizes = state_dict["images_by_size"].items()
        self.images_by_size = {int(size): int(images) for size, images in sizes}
        self._logged_images = self.images
        self.epochs = float(state_dict["epochs"])

    def stop(self, pl_module: pl.LightningModule) -> None:
        """Stop the clock until the next step."""
        if self._started is not None:
            _synchronize(pl_module.device)
            self.seconds += time.perf_counter() - self._started
            self._started = None

    def _log(self, pl_module: pl.LightningModule) -> None:
        seconds = self.seconds - self._logged_seconds
        images = self.images - self._logged_images
        self._logged_seconds, self._logged_images = self.seconds, self.images
        pl_module.log("throughput/images_per_s", images / max(seconds, 1e-9))
        pl_module.log("throughput/train_seconds", self.seconds)
        pl_module.log("epoch", self.epochs)


def _synchronize(device: torch.device) -> None:
    """Wait for a GPU: it works asynchronously, so only its kernels' launches would be timed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
