"""Stops training at a target accuracy, with a margin for the test set."""

import math
from statistics import NormalDist
from typing import Any

import pytorch_lightning as pl

from cifar_lightning.errors import UserError
from cifar_lightning.training.callbacks.throughput import Throughput


class TargetReached(pl.Callback):
    """Stops training once validation accuracy is high enough for a target test accuracy.

    A run whose validation accuracy equals the target reaches the target on the test images in only
    half of all cases. So the threshold is higher, by the margin of `validation_threshold`.
    (Lightning's EarlyStopping stops only strictly above its threshold.)

    Args:
        target: test accuracy from 0 to 1; None trains to the end.
        confidence: see `validation_threshold`.
        val_images, test_images: number of images.

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
        # For each validation so far: epochs and seconds of training, and the accuracy.
        self._validations: list[tuple[float, float, float]] = []

    @property
    def reached_after(self) -> tuple[float, float] | None:
        """The epochs and the seconds of training after which the threshold was reached."""
        reached = ((e, s) for e, s, accuracy in self._validations if self.reached_by(accuracy))
        return next(reached, None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop at once if the run had reached the target before it was resumed."""
        trainer.should_stop |= self.reached_after is not None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if the accuracy of this validation reaches the threshold."""
        if trainer.state.fn != "fit":
            return
        if "val/acc" not in trainer.callback_metrics:
            if self.threshold is None:
                return
            raise UserError(
                f"target_accuracy={self.target} is judged by val/acc, which "
                f"{type(pl_module).__name__} does not log in a validation. Log it, or set "
                "target_accuracy=null."
            )
        if trainer.sanity_checking:
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        throughput = next(c for c in callbacks if isinstance(c, Throughput))
        accuracy = trainer.callback_metrics["val/acc"].item()
        self._validations.append((throughput.epochs, throughput.seconds, accuracy))
        trainer.should_stop |= self.reached_after is not None

    def state_dict(self) -> dict[str, Any]:
        """The validations so far, because a resume may have another target."""
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the validations."""
        # Converted, so that a damaged value is refused here.
        self._validations = [
            (float(e), float(s), float(a)) for e, s, a in state_dict["validations"]
        ]

    def reached_by(self, accuracy: float) -> bool:
        """Whether a validation accuracy is at or above the threshold; False without a target."""
        # Accuracies are float32, in which 0.7 is 0.69999999.
        return self.threshold is not None and round(accuracy, 6) >= round(self.threshold, 6)


def validation_threshold(
    target: float, confidence: float, val_images: int, test_images: int
) -> float:
    """Compute the validation accuracy that implies a target test accuracy, with some confidence.

    Both accuracies are means over images drawn at random, so their difference has the standard
    error sqrt(p (1 - p) (1 / val_images + 1 / test_images)). The margin is that error times the
    quantile of the normal distribution at `confidence`. With 5,000 and 10,000 images and a
    confidence of 0.9, 0.80 becomes 0.8089.

    Args:
        target: test accuracy, from 0 to 1.
        confidence: probability of reaching it, from 0.5, which adds no margin, to below 1.
        val_images: number of validation images; 0 adds no margin.
        test_images: number of test images.

    Returns:
        A validation accuracy, at most 1.

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
