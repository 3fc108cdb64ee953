"""Classification metrics: loss, accuracy, predictions, confusion, calibration, mistakes."""

from dataclasses import dataclass

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
        num_classes: of the logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # Neither hides a NaN nor looks for one, for which a GPU would have to wait at every step.
        self.loss = MeanMetric(nan_strategy="disable")
        # Over images, not over classes (torchmetrics' default); the inputs are ours, unchecked.
        self.accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)

    def update(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: losses [N] or their mean, logits [N, classes], labels [N]."""
        self.loss.update(losses)
        self.accuracy.update(logits, labels)

    def reset(self) -> None:
        """Start again from nothing."""
        self.loss.reset()
        self.accuracy.reset()

    def counts(self) -> dict[str, dict[str, Tensor]]:
        """The counts so far of all devices together; all must call this at once."""
        states = {}
        for name in ("loss", "accuracy"):
            metric = getattr(self, name)
            with metric.sync_context():
                states[name] = dict(metric.metric_state)
        return states

    def restore(self, counts: dict[str, dict[str, Tensor]]) -> None:
        """Continue from counts of an earlier run."""
        for name, state in counts.items():
            for key, value in state.items():
                setattr(getattr(self, name), key, value)


@dataclass(frozen=True)
class TestPredictions:
    """The predictions of a test in the order of the images: [N] each, on the CPU.

    Attributes:
        index: of the image, int64.
        predictions: the class, int64.
        confidences: its probability, float32.
    """

    __test__ = False  # pytest would take it for a test

    index: Tensor
    predictions: Tensor
    confidences: Tensor


class Predictions(Metric):
    """The predictions of all images, gathered from all devices."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, index: Tensor, logits: Tensor) -> None:
        """Add a batch: index [N], logits [N, classes]; N may be 0, as it is on some devices."""
        predictions = logits.argmax(1, keepdim=True)  # [N, 1]
        confidences = logits.float().softmax(1).gather(1, predictions)
        self.rows.append(torch.cat([index[:, None], predictions, confidences], dim=1))  # [N, 3]

    def compute(self) -> Tensor:
        """Float32 [images, 3]: index, prediction and confidence."""
        return dim_zero_cat(self.rows)


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, loss and calibration error over all images.

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
    # As in metrics.json: float32's 0.8187999725341797 is 0.8188.
    return {name: round(value.item(), 6) for name, value in found.items()}


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How many images of a class (row) were predicted as which (column): int64 [classes, classes].

    Args:
        predictions: int64 [N].
        labels: int64 [N].
        num_classes: of both.
    """
    matrix: Tensor = multiclass_confusion_matrix(predictions, labels, num_classes)
    return matrix


def calibration(logits: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Confidence and accuracy in bins of equal width, as a reliability diagram shows them.

    Args:
        logits: float [N, classes].
        labels: int64 [N].

    Returns:
        For each bin that has images, lowest first: mean `confidence` and `acc` from 0 to 1, and its
        share of all `images`.
    """
    confidence, predictions = logits.softmax(1).max(1)  # [N], [N]
    bins = (confidence * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    hits = (predictions == labels).float()
    return [
        {
            "confidence": round(confidence[bins == b].mean().item(), 6),
            "acc": round(hits[bins == b].mean().item(), 6),
            "images": round((bins == b).float().mean().item(), 6),
        }
        for b in bins.unique().tolist()
    ]


@dataclass(frozen=True)
class Mistakes:
    """Wrong predictions, most confident first: index, predictions and confidences, [M] each."""

    index: Tensor
    predictions: Tensor
    confidences: Tensor


def confident_mistakes(
    predictions: Tensor, confidences: Tensor, labels: Tensor, count: int
) -> Mistakes:
    """The most confident mistakes, at most `count`.

    Args:
        predictions: int64 [N].
        confidences: their probabilities [N].
        labels: int64 [N].
        count: largest number of mistakes.
    """
    wrong = (predictions != labels).nonzero().flatten()
    index = wrong[confidences[wrong].argsort(descending=True, stable=True)[:count]]
    return Mistakes(index, predictions[index], confidences[index])


def class_accuracies(matrix: Tensor) -> list[float | None]:
    """The accuracy of each class, from a confusion matrix; None for a class without images."""
    return [
        None if (images := int(row.sum())) == 0 else round(int(row[c]) / images, 6)
        for c, row in enumerate(torch.as_tensor(matrix))
    ]
