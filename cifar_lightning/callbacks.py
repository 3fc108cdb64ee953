"""What watches a run: the clock and the target."""

import time
from typing import Any

import pytorch_lightning as pl
import torch


class Throughput(pl.Callback):
    """Measures training alone: no set-up, no validation, no checkpoints.

    Logs `throughput/images_per_s` (since the last time) and `throughput/train_seconds` (since the
    start) with each validation, or each epoch where there is none.

    Attributes:
        seconds: of training so far, over resumes too.
        images: trained on so far, over all devices.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.images = 0
        self._started: float | None = None
        self._logged_seconds = 0.0
        self._logged_images = 0

    @property
    def images_per_s(self) -> float:
        """Mean over the whole training; 0 before it."""
        return self.images / self.seconds if self.seconds else 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._start(pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the images."""
        self.images += len(batch[0]) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._stop(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log with the validation's metrics."""
        if trainer.state.fn == "fit":
            self._log(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on where validation came in the middle of an epoch."""
        if (
            trainer.state.fn == "fit"
            and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        ):
            self._start(pl_module)

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
        """Seconds and images so far, for a resume."""
        return {"seconds": self.seconds, "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting from an earlier run."""
        self.seconds = self._logged_seconds = state_dict["seconds"]
        self.images = self._logged_images = state_dict["images"]

    def _start(self, pl_module: pl.LightningModule) -> None:
        _finish_work(pl_module.device)
        self._started = time.perf_counter()

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


def _finish_work(device: torch.device) -> None:
    """A GPU works on after the program has gone on: wait, or the clock shows the launching only."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class TargetReached(pl.Callback):
    """Stops training once validation accuracy is at or above a target.

    Lightning's EarlyStopping stops strictly above its threshold, and only there.

    Args:
        target: accuracy from 0 to 1; None trains to the end.

    Attributes:
        reached: whether it was.
    """

    def __init__(self, target: float | None) -> None:
        self.target = target
        self.reached = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the validation that has just ended."""
        if self.target is None or trainer.state.fn != "fit":
            return
        if trainer.callback_metrics["val/acc"].item() >= self.target:
            self.reached = True
            trainer.should_stop = True
