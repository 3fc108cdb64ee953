import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_lightning.training.loss import bce_loss, focal_loss

LOGITS = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)) * 3  # [N, classes]
LABELS = torch.arange(20) % 5  # [N]


def test_focal_loss_is_the_weighted_cross_entropy_of_each_image() -> None:
    p = LOGITS.softmax(1)[torch.arange(20), LABELS]
    assert torch.allclose(focal_loss(LOGITS, LABELS, gamma=3.0), -((1 - p) ** 3) * p.log())
    entropies = F.cross_entropy(LOGITS, LABELS, reduction="none")
    assert torch.allclose(focal_loss(LOGITS, LABELS, gamma=0.0), entropies)


def test_focal_loss_of_a_sure_answer_has_a_finite_gradient() -> None:
    sure = (100 * torch.eye(5)).requires_grad_()
    (gradient,) = torch.autograd.grad(focal_loss(sure, torch.arange(5), 0.5).sum(), sure)
    assert gradient.isfinite().all()


def test_bce_loss_asks_of_each_class_whether_it_is_there() -> None:
    p = LOGITS.sigmoid()
    there: Tensor = F.one_hot(LABELS, 5).bool()
    expected = -torch.where(there, p.log(), (1 - p).log()).sum(1)
    assert torch.allclose(bce_loss(LOGITS, LABELS), expected, atol=1e-3)


def test_gamma_is_not_negative() -> None:
    with pytest.raises(ValueError, match="gamma must not be negative, not -1"):
        focal_loss(LOGITS, LABELS, gamma=-1)
