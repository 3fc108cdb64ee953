"""Classification metrics: loss, accuracy, predictions, confusion, calibration, mistakes."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)
from torchmetrics.utilities import dim_zero_cat

CALIBRATION_BINS = 15  # as in Guo et al.


class Scores(nn.Module):
    """Mean loss and accuracy over many batches and all devices.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # torchmetrics' search for NaN would make a GPU wait at every step.
        self.loss = MeanMetric(nan_strategy="disable")
        # Mean over images; torchmetrics' default is over classes.
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)

    def _apply(self, fn: Any, recurse: bool = True) -> "Scores":
        """Keep float32 when the module is converted, as trainer.precision=bf16-true does."""
        super()._apply(lambda t: t.to(fn(t).device), recurse)  # type: ignore[no-untyped-call]
        return self

    def update(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: losses [N] or their mean, logits [N, classes], labels [N]."""
        self.loss.update(losses)
        self.accuracy.update(logits, labels)

    def reset(self) -> None:
        """Set all counts to 0."""
        self.loss.reset()
        self.accuracy.reset()

    def counts(self) -> dict[str, dict[str, Tensor]]:
        """The counts so far, summed over all devices; every process has to call this."""
        states = {}
        for name in ("loss", "accuracy"):
            metric = getattr(self, name)
            with metric.sync_context():
                states[name] = dict(metric.metric_state)
        return states

    def restore(self, counts: dict[str, dict[str, Tensor]]) -> None:
        """Restore the counts of an earlier run."""
        for name, state in counts.items():
            for key, value in state.items():
                setattr(getattr(self, name), key, value)


@dataclass(frozen=True)
class TestPredictions:
    """Predictions on test images: [N] each, on the CPU.

    Attributes:
        index: position of the image, int64.
        predictions: predicted class, int64.
        confidences: its probability, float32.
    """

    __test__ = False  # or pytest would take it for a test

    index: Tensor
    predictions: Tensor
    confidences: Tensor


class Predictions(Metric):
    """Predictions on all images, gathered from all devices."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, index: Tensor, logits: Tensor) -> None:
        """Add a batch: index [N], logits [N, classes]; N may be 0."""
        predictions = logits.argmax(1, keepdim=True)  # [N, 1]
        confidences = logits.float().softmax(1).gather(1, predictions)
        self.rows.append(torch.cat([index[:, None], predictions, confidences], dim=1))  # [N, 3]

    def compute(self) -> Tensor:
        """Index, prediction and confidence of each image, float32 [images, 3]."""
        return dim_zero_cat(self.rows)


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Compute accuracy, loss and calibration error over all images.

    Args:
        logits: float [N, classes].
        labels: int64 [N].

    Returns:
        `acc`, from 0 to 1; `top2`, the share whose label is among the two largest logits; `loss`,
        the mean cross-entropy in nats; and `ece`, the expected calibration error from 0 to 1 (Guo
        et al., "On Calibration of Modern Neural Networks", 2017; 15 bins).
    """
    classes = logits.shape[1]
    probabilities = logits.softmax(1)
    found = {
        "acc": multiclass_accuracy(logits, labels, classes, average="micro"),
        "top2": multiclass_accuracy(
            logits, labels, classes, average="micro", top_k=min(2, classes)
        ),
        "loss": F.cross_entropy(logits, labels),
        "ece": multiclass_calibration_error(probabilities, labels, classes, CALIBRATION_BINS),
    }
    # Rounded as in metrics.json: float32's 0.8187999725341797 is 0.8188.
    return {name: round(value.item(), 6) for name, value in found.items()}


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count the images of each class (row) by predicted class (column).

    Args:
        predictions: int64 [N].
        labels: int64 [N].
        num_classes: number of classes.

    Returns:
        int64 [classes, classes].
    """
    matrix: Tensor = multiclass_confusion_matrix(predictions, labels, num_classes)
    return matrix


def calibration(logits: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Compute confidence and accuracy in bins of equal width, for a reliability diagram.

    Args:
        logits: float [N, classes].
        labels: int64 [N].

    Returns:
        For each bin that has images, lowest first: mean `confidence` and `acc`, from 0 to 1, and
        the fraction of all `images` in it.
    """
    confidence, predictions = logits.softmax(1).max(1)  # [N], [N]
    bins = (confidence * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    correct = (predictions == labels).float()
    return [
        {
            "confidence": round(confidence[bins == b].mean().item(), 6),
            "acc": round(correct[bins == b].mean().item(), 6),
            "images": round((bins == b).float().mean().item(), 6),
        }
        for b in bins.unique().tolist()
    ]


def confident_mistakes(
    predictions: Tensor, confidences: Tensor, labels: Tensor, count: int
) -> TestPredictions:
    """Find the most confident mistakes, at most `count`.

    Args:
        predictions: int64 [N].
        confidences: their probabilities, float [N].
        labels: int64 [N].
        count: largest number of mistakes.

    Returns:
        The mistakes, most confident first.
    """
    wrong = (predictions != labels).nonzero().flatten()
    index = wrong[confidences[wrong].argsort(descending=True, stable=True)[:count]]
    return TestPredictions(index, predictions[index], confidences[index])


def class_accuracies(matrix: Tensor) -> list[float | None]:
    """Compute the accuracy of each class.

    Args:
        matrix: confusion matrix, [classes, classes].

    Returns:
        An accuracy from 0 to 1 per class; None for a class without images.
    """
    return [
        None if (images := int(row.sum())) == 0 else round(int(row[c]) / images, 6)
        for c, row in enumerate(torch.as_tensor(matrix))
    ]
