"""What watches a run: the clock, the target, and losses that are no numbers."""

import math
import time
from statistics import NormalDist
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from cifar_lightning.errors import UserError


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
    """Stops training once validation says that test accuracy will be at or above a target.

    A validation at exactly the target is above it on the test images only every other time, so the
    threshold is higher by a margin: that of `validation_threshold`. Lightning's EarlyStopping
    stops strictly above its threshold only.

    Args:
        target: test accuracy from 0 to 1; None trains to the end.
        confidence: see `validation_threshold`.
        val_images, test_images: their numbers.

    Attributes:
        target, confidence: as given.
        threshold: the validation accuracy to reach, or None.

    Raises:
        ValueError: if `target` or `confidence` is out of range.
    """

    def __init__(
        self,
        target: float | None,
        confidence: float = 0.9,
        val_images: int = 5000,
        test_images: int = 10_000,
    ) -> None:
        self.target = target
        self.confidence = confidence
        threshold = validation_threshold(target or 0.0, confidence, val_images, test_images)
        self.threshold = None if target is None else threshold

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the validation that has just ended."""
        accuracy = trainer.callback_metrics["val/acc"].item()
        if trainer.state.fn == "fit" and self.reached_by(accuracy):
            trainer.should_stop = True

    def reached_by(self, accuracy: float) -> bool:
        """Whether a validation accuracy is at or above the threshold; False without a target."""
        # Accuracies are float32, in which 0.7 is 0.69999999.
        return self.threshold is not None and round(accuracy, 6) >= round(self.threshold, 6)


def validation_threshold(
    target: float, confidence: float, val_images: int, test_images: int
) -> float:
    """The validation accuracy that promises a test accuracy of at least `target`.

    Both accuracies are shares of images drawn at random, so their difference has the standard error
    sqrt(p (1 - p) (1 / val_images + 1 / test_images)); of it as many are added to the target as a
    normal distribution has below `confidence`. With 5,000 and 10,000 images and a confidence of
    0.9, 0.80 becomes 0.8089. It is never above 1.

    Args:
        target: from 0 to 1.
        confidence: from 0.5, which adds nothing, to below 1.
        val_images: their number; with 0 there is no validation, and nothing is added.
        test_images: their number.

    Raises:
        ValueError: if `target` or `confidence` is out of range.
    """
    if not 0 <= target <= 1:
        raise ValueError(f"target must be from 0 to 1, not {target}")
    if not 0.5 <= confidence < 1:
        raise ValueError(f"confidence must be from 0.5 to below 1, not {confidence}")
    if not val_images:
        return target
    error = math.sqrt(target * (1 - target) * (1 / val_images + 1 / test_images))
    return min(1.0, target + NormalDist().inv_cdf(confidence) * error)


class TerminateOnNaN(pl.Callback):
    """Ends a training whose loss or weights are not finite, before a checkpoint is made of them.

    Looks at the losses of many steps together, because a GPU waits whenever a value is read.

    Args:
        every_n_steps: steps between two looks; it also looks whenever a checkpoint may follow.

    Raises:
        ValueError: if `every_n_steps` is below 1.
        UserError: from the training, naming the step.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, not {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._losses: list[Tensor] = []  # since the last look
        self._step = 0  # of the last loss, counted from 1 over the whole training

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the loss; look from time to time."""
        self._losses.append(outputs["loss"])
        self._step = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        if len(self._losses) == self.every_n_steps:
            self._look(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look before the best checkpoint is saved."""
        if trainer.state.fn == "fit":
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look before the last checkpoint is saved."""
        self._look(trainer, pl_module)

    def _look(self, trainer: pl.Trainer, module: pl.LightningModule | None = None) -> None:
        """Look at the noted losses, and at the weights and statistics of a module."""
        losses, self._losses = self._losses, []
        finite = torch.stack(losses).isfinite() if losses else torch.ones(1, dtype=torch.bool)
        step = math.inf
        if not finite.all():
            step = self._step - len(losses) + 1 + int(finite.int().argmin())
        elif module and not _is_finite(module):
            step = self._step  # its loss was a number, what it did to the weights is not
        # All devices stop together, or those that go on would wait for the others for ever.
        found = torch.tensor(float(step), device=trainer.strategy.root_device)
        first = trainer.strategy.reduce(found, reduce_op="min").item()
        if first < math.inf:
            epoch = (int(first) - 1) // int(trainer.num_training_batches) + 1
            raise UserError(
                f"The loss is not a finite number any more: step {first:.0f}, in epoch {epoch}. "
                "The training was stopped; the checkpoints are of before that. What helps: a lower "
                "learning rate (optimizer.lr), a longer warm-up (scheduler.warmup), or "
                "trainer.precision=32-true."
            )


def _is_finite(module: pl.LightningModule) -> bool:
    state = [value for value in module.state_dict().values() if value.is_floating_point()]
    return bool(get_total_norm(state).isfinite())
