import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import Compose
from fake_gpu import copies_of_an_epoch
from torch import Tensor, nn

from cifar_lightning import run
from cifar_lightning.errors import UserError
from cifar_lightning.models import DilatedDW, ResidualDW, initialise
from cifar_lightning.train import train
from cifar_lightning.training.callbacks.mirror import (
    MirrorSymmetry,
    mirror_channels,
    mirror_index,
    symmetrise,
    symmetrise_statistics,
)


def images(n: int = 8, size: int = 32) -> Tensor:
    """Smooth, as photographs are."""
    generator = torch.Generator().manual_seed(0)
    small = torch.randn(n, 3, 8, 8, generator=generator)
    return nn.functional.interpolate(small, size=(size, size), mode="bicubic")


def both_ways(n: int) -> Tensor:
    return torch.cat([images(n), images(n).flip(-1)])


def first_of(network: nn.Module) -> nn.Conv2d:
    return next(m for m in network.modules() if isinstance(m, nn.Conv2d))


def symmetric(network: nn.Module, dirac: bool = True) -> tuple[nn.Module, Tensor, Tensor]:
    """Whitened, and made symmetric; with its partners and its index."""
    initialise(network, both_ways(200), whiten=0.5, dirac=dirac)
    partners = mirror_channels(first_of(network))
    index = mirror_index(network, partners)
    symmetrise([weight.data for weight in network.parameters()], index)
    return network.double(), partners, index


@pytest.mark.parametrize("kind", [DilatedDW, ResidualDW])
def test_a_mirrored_image_has_the_same_logits(kind: type[nn.Module]) -> None:
    network, partners, _ = symmetric(kind())
    network(images(16).double())  # statistics that are not those of the start
    symmetrise_statistics(network, partners)
    network.eval()
    for size in (32, 24):
        batch = images(size=size).double()
        logits, mirrored = network(batch), network(batch.flip(-1))
        assert logits.std() > 1e-4
        assert torch.allclose(logits, mirrored, atol=1e-10)


def test_weights_that_are_not_symmetric_tell_the_difference() -> None:
    network = DilatedDW().eval()
    assert not torch.allclose(network(images()), network(images().flip(-1)), atol=1e-4)


# ResidualDW not from identity, which there passes a ReLU's zeros on to a max pool: of equals it
# takes the first, whichever way the image is.
@pytest.mark.parametrize(("kind", "dirac"), [(DilatedDW, True), (ResidualDW, False)])
def test_a_symmetric_gradient_is_that_of_the_images_and_the_mirrored_images(
    kind: type[nn.Module], dirac: bool
) -> None:
    network, _, index = symmetric(kind(), dirac)
    labels = torch.arange(8)
    gradients = []
    for batch in (images().double(), images().double().flip(-1)):
        twin = copy.deepcopy(network)
        nn.functional.cross_entropy(twin(batch), labels).backward()
        gradients.append([p.grad for p in twin.parameters() if p.grad is not None])
    means = [(one + other) / 2 for one, other in zip(*gradients, strict=True)]
    symmetrise(gradients[0], index)
    for ours, mean in zip(gradients[0], means, strict=True):
        assert torch.allclose(ours, mean, atol=1e-12)


def test_convolutions_that_start_as_the_identity_stay_it() -> None:
    network = symmetric(DilatedDW())[0].float()
    convolution = network.get_submodule("layers.12")
    expected = torch.zeros(128, 128, 3, 3)
    nn.init.dirac_(expected)
    assert isinstance(convolution, nn.Conv2d)
    assert torch.equal(convolution.weight, expected)


def test_whitened_filters_find_their_mirror_images() -> None:
    network = DilatedDW()
    initialise(network, both_ways(200), whiten=0.5, dirac=True)
    first = first_of(network)
    partners = mirror_channels(first)
    assert torch.equal(partners[partners], torch.arange(32))
    assert (partners == torch.arange(32)).any()  # filters that are symmetric themselves
    pairs = (partners == (torch.arange(32) + 16) % 32).nonzero().flatten()
    assert len(pairs) > 4  # odd ones, whose mirror images are their negatives
    for filter_, partner in enumerate(partners.tolist()):
        mirrored = first.weight[filter_].flip(-1)
        assert (mirrored - first.weight[partner]).norm() < 0.2 * mirrored.norm()


@pytest.mark.parametrize(
    "layer", [nn.LayerNorm([4, 30, 30]), nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 4, 3)]
)
def test_a_layer_whose_mirror_image_is_unknown_is_refused(layer: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), layer)
    with pytest.raises(UserError, match=type(layer).__name__):
        mirror_index(network, torch.arange(4))


def test_mirror_symmetry_refuses_a_network_that_cannot_have_it(tiny: Compose) -> None:
    with pytest.raises(UserError, match="not mirror-symmetric, even with symmetric weights"):
        train(tiny("experiment=airbench94", "data.batch_size=25", "callbacks=mirror"))


def both_logits(checkpoint: Path) -> tuple[Tensor, Tensor]:
    classifier, _ = run.rebuild(checkpoint)
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return classifier(images.byte()), classifier(images.byte().flip(-1))


def test_trained_with_mirror_symmetry_a_mirrored_image_gets_the_same_logits(
    tiny: Compose, tmp_path: Path
) -> None:
    train(tiny("callbacks=mirror", "target_accuracy=null", "trainer.max_epochs=2"))
    for name in ("best", "last"):
        logits, mirrored = both_logits(tmp_path / f"run/checkpoints/{name}.ckpt")
        assert logits.std() > 0.1
        assert torch.allclose(logits, mirrored, atol=1e-3)


def test_it_works_in_low_precision_and_without_validation(tiny: Compose, tmp_path: Path) -> None:
    options = ["callbacks=mirror", "target_accuracy=null", "data.val_size=0"]
    train(tiny(*options, "trainer.precision=bf16-true"))
    assert torch.allclose(*both_logits(tmp_path / "run/checkpoints/best.ckpt"), atol=0.1)


class Paired(MirrorSymmetry):
    """With pairs of which none was read from weights, as at the start of a training."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        weights = sum(weight.numel() for weight in pl_module.parameters())
        self._partners, self._index = torch.arange(32), torch.arange(weights)


def test_a_gpu_waits_for_no_gradient() -> None:
    assert copies_of_an_epoch(Paired()) == ([], 4)
