"""What logits and guesses say of a classifier."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

CALIBRATION_BINS = 15  # as in Guo et al.


def scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Figures of all images together.

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


def confusion_matrix(guesses: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """How many images of a class (row) were taken for which (column): int64 [classes, classes].

    Args:
        guesses: int64 [N].
        labels: int64 [N].
        num_classes: of both.
    """
    matrix: Tensor = multiclass_confusion_matrix(guesses, labels, num_classes)
    return matrix


def calibration(logits: Tensor, labels: Tensor) -> list[dict[str, float]]:
    """Confidence beside accuracy, in bins of equal width; of bins that hold images.

    Args:
        logits: float [N, classes].
        labels: int64 [N].

    Returns:
        For each, lowest first, mean `confidence` and `acc` from 0 to 1, and the share of all
        `images` that it holds.
    """
    confidence, guesses = logits.softmax(1).max(1)  # [N], [N]
    bins = (confidence * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    hits = (guesses == labels).float()
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
    """Wrong guesses, most confident first: positions, guesses and confidences, [M] each."""

    index: Tensor
    guesses: Tensor
    confidences: Tensor


def confident_mistakes(
    guesses: Tensor, confidences: Tensor, labels: Tensor, count: int
) -> Mistakes:
    """The mistakes that the classifier was surest of, at most `count`.

    Args:
        guesses: int64 [N].
        confidences: their probabilities [N].
        labels: int64 [N].
        count: of the mistakes.
    """
    wrong = (guesses != labels).nonzero().flatten()
    index = wrong[confidences[wrong].argsort(descending=True, stable=True)[:count]]
    return Mistakes(index, guesses[index], confidences[index])


def class_accuracies(matrix: Tensor) -> list[float | None]:
    """The accuracy on each class's images, from a confusion matrix; None where it has no images."""
    return [
        None if (images := int(row.sum())) == 0 else round(int(row[c]) / images, 6)
        for c, row in enumerate(torch.as_tensor(matrix))
    ]
