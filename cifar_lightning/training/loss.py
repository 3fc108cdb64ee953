"""Losses that PyTorch lacks: of each image, from logits and labels."""

import torch.nn.functional as F
from torch import Tensor


def focal_loss(logits: Tensor, labels: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross-entropy times (1 - p)^gamma, where p is the probability of the label.

    Images that are classified with confidence count less (Lin et al., "Focal Loss for Dense Object
    Detection", 2017; here for softmax outputs).

    Args:
        logits: [N, classes].
        labels: int64 [N].
        gamma: 0 is the cross-entropy; the larger, the less confident images count.

    Returns:
        float32 [N].

    Raises:
        ValueError: if `gamma` is negative.
    """
    if gamma < 0:
        raise ValueError(f"gamma must not be negative, not {gamma}")
    entropies = F.cross_entropy(logits.float(), labels, reduction="none")  # [N], -log p
    # 1 - p, without cancellation; not 0, where a power below 1 has an infinite gradient.
    wrong = (-(-entropies).expm1()).clamp_min(1e-6)
    return wrong**gamma * entropies


def bce_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each class against the others, summed over the classes.

    It asks of each class whether it is in the image, so that several may be (Beyer et al., "Are we
    done with ImageNet?", 2020).

    Args:
        logits: [N, classes].
        labels: int64 [N].

    Returns:
        float32 [N].
    """
    targets = F.one_hot(labels, logits.shape[1]).float()  # [N, classes]
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none")
    return losses.sum(1)
