"""What a classifier counts: losses, accuracies, and what each image was taken for."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities import dim_zero_cat


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
        """Begin anew."""
        self.loss.reset()
        self.accuracy.reset()

    def counted(self) -> dict[str, dict[str, Tensor]]:
        """What has been counted so far, on all devices together; they call this at once."""
        states = {}
        for name in ("loss", "accuracy"):
            metric = getattr(self, name)
            with metric.sync_context():
                states[name] = dict(metric.metric_state)
        return states

    def go_on_from(self, counted: dict[str, dict[str, Tensor]]) -> None:
        """Have counted already what another one has."""
        for name, state in counted.items():
            for key, value in state.items():
                setattr(getattr(self, name), key, value)


@dataclass(frozen=True)
class Tested:
    """What each image was taken for, in their order: [N] each, on the CPU.

    Attributes:
        index: of the image, int64.
        guesses: the class, int64.
        confidences: its probability, float32.
    """

    index: Tensor
    guesses: Tensor
    confidences: Tensor


class Guesses(Metric):
    """What each image was taken for, gathered from all devices."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, index: Tensor, logits: Tensor) -> None:
        """Note a batch: index [N], logits [N, classes]; N may be 0, as it is on some devices."""
        guesses = logits.argmax(1, keepdim=True)  # [N, 1]
        confidences = logits.float().softmax(1).gather(1, guesses)
        self.rows.append(torch.cat([index[:, None], guesses, confidences], dim=1))  # [N, 3]

    def compute(self) -> Tensor:
        """Float32 [images, 3]: index, guess and confidence."""
        return dim_zero_cat(self.rows)
