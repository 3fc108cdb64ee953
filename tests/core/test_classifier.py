from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifar_lightning.training.augment import Augment, cutmix
from cifar_lightning.training.module import Classifier
from cifar_lightning.training.optim import linear_schedule


def classifier(network: nn.Module, **arguments: Any) -> Classifier:
    return Classifier(
        network,
        classes=["a", "b", "c"],
        mean=[0.5, 0.4, 0.3],
        std=[0.25, 0.2, 0.1],
        image_size=8,
        optimizer=torch.optim.SGD,
        scheduler=linear_schedule,
        augment=Augment(shift=1, flip="random"),
        **arguments,
    )


def smoothed(amount: float) -> nn.Module:
    return nn.CrossEntropyLoss(label_smoothing=amount, reduction="none")


def images(n: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, 8, 8), generator=generator).byte()


def test_normalised_images_have_zero_mean_and_unit_variance_by_channel() -> None:
    pixels = torch.tensor([[0.25, 0.75], [0.2, 0.6], [0.2, 0.4]]) * 255  # mean -+ std
    batch = pixels.view(1, 3, 1, 2).round().byte()
    normalised = classifier(nn.Flatten()).normalise(batch)
    assert torch.allclose(normalised[0, :, 0], torch.tensor([[-1.0, 1.0]]).expand(3, 2), atol=0.03)


def test_floats_from_0_to_1_are_normalised_as_the_same_pixels_in_bytes() -> None:
    model = classifier(nn.Flatten())
    assert torch.equal(model.normalise(images() / 255), model.normalise(images()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_images_take_the_weights_dtype(dtype: torch.dtype) -> None:
    model = classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 3))).to(dtype)
    assert model(images()).dtype == dtype


def test_the_network_sees_channels_last() -> None:
    seen = []

    class Spy(nn.Flatten):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.is_contiguous(memory_format=torch.channels_last))
            return super().forward(x)

    classifier(Spy())(images())
    assert seen == [True]


def test_the_loss_is_the_smoothed_cross_entropy() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    smooth = classifier(network, loss=smoothed(0.3))
    smooth.augment = lambda images, index, epoch, generator: images
    labels = torch.arange(16) % 3
    loss = smooth.training_step((images(), labels, torch.arange(16)), 0)["loss"]
    assert isinstance(loss, Tensor)
    log_p = smooth(images()).log_softmax(1)
    expected = -(0.7 * log_p[torch.arange(16), labels] + 0.3 * log_p.mean(1)).mean()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_a_mixed_image_has_the_loss_of_both_its_labels_by_their_shares() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    model = classifier(network, loss=smoothed(0.2), cutmix=0.5)
    model.augment = lambda images, index, epoch, generator: images
    labels = torch.arange(16) % 3
    losses = model.training_step((images(), labels, torch.arange(16)), 4)["losses"]
    mixed, others, kept = cutmix(images(), 0.5, model._generator(4))
    assert torch.equal(kept < 1, (mixed != images()).flatten(1).any(1))
    log_p = model(mixed).log_softmax(1)
    targets = 0.8 * torch.eye(3) + 0.2 / 3  # a row a label
    target = kept[:, None] * targets[labels] + (1 - kept)[:, None] * targets[labels[others]]
    assert isinstance(losses, Tensor)
    assert torch.allclose(losses, -(target * log_p).sum(1), atol=1e-6)


def test_cutmix_is_from_0_to_1() -> None:
    with pytest.raises(ValueError, match=r"cutmix must be from 0 to 1, not 1\.1"):
        classifier(nn.Flatten(), cutmix=1.1)


def test_augmentation_is_for_training_only_and_depends_on_the_step_alone() -> None:
    model = classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), seed=7)
    augmented = []
    augment = model.augment

    def spy(images: Tensor, index: Tensor, epoch: int, generator: torch.Generator) -> Tensor:
        augmented.append(augment(images, index, epoch, generator))
        return augmented[-1]

    model.augment = spy
    batch = (images(), torch.zeros(16, dtype=torch.int64), torch.arange(16))
    model.validation_step(batch, 0)
    model.test_step(batch, 0)
    assert not augmented
    model.training_step(batch, 0)
    model.training_step(batch, 1)
    torch.rand(5)  # others may draw in between
    model.training_step(batch, 0)
    assert torch.equal(augmented[0], augmented[2])
    assert not torch.equal(augmented[0], augmented[1])
