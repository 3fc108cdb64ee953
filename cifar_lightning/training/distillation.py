"""Distillation: learning from a trained network's answers beside the labels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Distillation:
    """The loss of a student that learns the answers of a trained classifier, its teacher.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. The teacher sees the same
    augmented images as the student (Beyer et al., "Knowledge distillation: A good teacher is
    patient and consistent", 2022).

    Args:
        teacher: gives logits [N, classes] of images uint8 [N, 3, H, W]. It is put into evaluation
            mode, and its weights are frozen.
        name: of the teacher's network.
        weight: share of the student's loss that comes from the teacher's answers, from 0 to 1.
        temperature: both networks' logits are divided by it, so that small probabilities count.

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
        """The student's losses [N], with the teacher's share in them.

        Args:
            images: uint8 [N, 3, H, W], augmented.
            logits: the student's [N, classes].
            losses: the student's on the labels [N].
        """
        with torch.no_grad():
            answers = self.teacher(images)  # [N, classes]
        divergences = F.kl_div(
            (logits.float() / self.temperature).log_softmax(1),
            (answers.float() / self.temperature).softmax(1),
            reduction="none",
        ).sum(1)
        # Gradients of logits divided by the temperature shrink with its square.
        divergences = self.temperature**2 * divergences
        return (1 - self.weight) * losses + self.weight * divergences
