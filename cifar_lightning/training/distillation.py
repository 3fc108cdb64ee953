"""Knowledge distillation: training on the outputs of a trained network as well as on labels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Distillation:
    """The loss of a student that is trained on the outputs of a trained classifier, its teacher.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. The teacher sees the same
    augmented images as the student (Beyer et al., "Knowledge distillation: A good teacher is
    patient and consistent", 2022).

    Args:
        teacher: maps images uint8 [N, 3, H, W] to logits [N, classes]. It is put into evaluation
            mode, and its weights are frozen.
        name: of the teacher's network.
        weight: weight of the teacher's part of the loss, from 0 to 1; the labels have 1 - weight.
        temperature: divides both networks' logits, so that small probabilities count.

    Raises:
        ValueError: if `weight` is not in [0, 1] or `temperature` is not above 0.
    """

    def __init__(self, teacher: nn.Module, name: str, weight: float, temperature: float) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be from 0 to 1, not {weight}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        self.teacher = teacher.eval().requires_grad_(False)
        self.name = name
        self.weight = weight
        self.temperature = temperature

    def losses(self, images: Tensor, logits: Tensor, losses: Tensor) -> Tensor:
        """Combine the losses on the labels with the divergence from the teacher's outputs.

        Args:
            images: uint8 [N, 3, H, W], augmented.
            logits: the student's, [N, classes].
            losses: the student's, on the labels, [N].

        Returns:
            The weighted sums, [N].
        """
        with torch.no_grad():
            teacher_logits = self.teacher(images)  # [N, classes]
        divergences = F.kl_div(
            (logits.float() / self.temperature).log_softmax(1),
            (teacher_logits.float() / self.temperature).softmax(1),
            reduction="none",
        ).sum(1)
        # Dividing the logits has scaled the gradients by 1 / temperature**2.
        divergences = self.temperature**2 * divergences
        return (1 - self.weight) * losses + self.weight * divergences
