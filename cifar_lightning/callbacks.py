"""What watches a run: the clock and the target."""

import time
from typing import Any

import pytorch_lightning as pl
import torch


class Throughput(pl.Callback):
    """Measures training alone: no set-up, no validation, no checkpoints.

    Logs, with each validation or each epoch where there is none, `throughput/images_per_s` (since
    the last time), `throughput/train_seconds` and `epoch` (since the start).

    Attributes:
        seconds: of training so far, over resumes too.
        images: trained on so far, over all devices.
        epochs: trained so far; a fraction within an epoch.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self.epochs = 0.0
        self._started: float | None = None
        self._logged_seconds = 0.0
        self._logged_images = 0

    @property
    def images_per_s(self) -> float:
        """Mean over the whole training; 0 before it."""
        return self.images / self.seconds if self.seconds else 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock, at the first step of an epoch and after a validation."""
        if self._started is None:
            _finish_work(pl_module.device)
            self._started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the images; no reading of the clock here, which would make a GPU wait."""
        self.images += len(batch[0]) * trainer.world_size
        self.epochs = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._stop(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log with the validation's metrics."""
        if trainer.state.fn == "fit":
            self._log(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock; log where no validation has."""
        self._stop(pl_module)
        if not trainer.enable_validation:
            self._log(pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Stop the clock."""
        self._stop(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What has been measured so far, for a resume."""
        return {"seconds": self.seconds, "images": self.images, "epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from an earlier run."""
        self.seconds = self._logged_seconds = state_dict["seconds"]
        self.images = self._logged_images = state_dict["images"]
        self.epochs = state_dict["epochs"]

    def _stop(self, pl_module: pl.LightningModule) -> None:
        if self._started is not None:
            _finish_work(pl_module.device)
            self.seconds += time.perf_counter() - self._started
            self._started = None

    def _log(self, pl_module: pl.LightningModule) -> None:
        seconds = self.seconds - self._logged_seconds
        images = self.images - self._logged_images
        self._logged_seconds, self._logged_images = self.seconds, self.images
        pl_module.log("throughput/images_per_s", images / max(seconds, 1e-9))
        pl_module.log("throughput/train_seconds", self.seconds)
        pl_module.log("epoch", self.epochs)


def _finish_work(device: torch.device) -> None:
    """A GPU works on after the program has gone on: wait, or the clock shows the launching only."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class TargetReached(pl.Callback):
    """Stops training once validation accuracy is at or above a target.

    Lightning's EarlyStopping stops strictly above its threshold only.

    Args:
        target: accuracy from 0 to 1; None trains to the end.
    """

    def __init__(self, target: float | None) -> None:
        self.target = target

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the validation that has just ended."""
        accuracy = trainer.callback_metrics["val/acc"].item()
        if trainer.state.fn == "fit" and reaches(accuracy, self.target):
            trainer.should_stop = True


def reaches(accuracy: float, target: float | None) -> bool:
    """Whether an accuracy is at or above the target; False without a target."""
    # Accuracies are float32, in which 0.7 is 0.69999999.
    return target is not None and round(accuracy, 6) >= target
