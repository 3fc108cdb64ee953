"""What a network learns from another one's answers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Teacher:
    """A trained classifier whose answers another one learns, beside the labels.

    Distillation (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015). It sees the
    same augmented images as its pupil (Beyer et al., "Knowledge distillation: A good teacher is
    patient and consistent", 2022).

    Args:
        classifier: gives logits [N, classes] of images uint8 [N, 3, H, W]; it is put into
            evaluation mode, and its weights stay as they are.
        name: of its network.
        weight: share of the pupil's loss that its answers have, from 0 to 1.
        temperature: both networks' logits are divided by it, so that the small probabilities count.

    Raises:
        ValueError: if `weight` is not in [0, 1] or `temperature` is not above 0.
    """

    def __init__(self, classifier: nn.Module, name: str, weight: float, temperature: float) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be from 0 to 1, not {weight}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.classifier = classifier.eval().requires_grad_(False)
        self.name = name
        self.weight = weight
        self.temperature = temperature

    def losses(self, images: Tensor, logits: Tensor, losses: Tensor) -> Tensor:
        """The pupil's losses [N] with the teacher's share in them.

        Args:
            images: uint8 [N, 3, H, W], augmented.
            logits: the pupil's [N, classes].
            losses: the pupil's on the labels [N].
        """
        with torch.no_grad():
            answers = self.classifier(images)  # [N, classes]
        divergences = F.kl_div(
            (logits.float() / self.temperature).log_softmax(1),
            (answers.float() / self.temperature).softmax(1),
            reduction="none",
        ).sum(1)
        # Gradients of logits divided by the temperature shrink with its square.
        divergences = self.temperature**2 * divergences
        return (1 - self.weight) * losses + self.weight * divergences
