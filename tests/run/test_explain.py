import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor, nn

from cifar_lightning import run
from cifar_lightning.config.compose import compose
from cifar_lightning.data import ShapesData
from cifar_lightning.tracking import results, saliency
from cifar_lightning.train import train
from cifar_lightning.training.module import Classifier

Compose = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def built(shapes: ShapesData) -> Classifier:
    return run.build_classifier(compose(TINY, "run"), shapes)[0]


@pytest.fixture
def classifier(built: Classifier) -> Classifier:
    """A copy, which a test may change."""
    return copy.deepcopy(built)


def test_the_maps_are_named_in_order_and_have_the_networks_sizes(
    classifier: Classifier, shapes: ShapesData
) -> None:
    images = shapes.test.images[:2]
    layers = saliency.feature_maps(classifier, images)
    assert [(layer.name, tuple(layer.maps.shape)) for layer in layers] == [
        ("1 conv 3x3", (2, 32, 32, 32)),
        ("2 conv 3x3", (2, 64, 32, 32)),
        ("3 pointwise 1x1", (2, 64, 32, 32)),
        ("4 conv 3x3 dilation 2", (2, 128, 12, 12)),
        ("5 conv 3x3", (2, 128, 8, 8)),
        ("6 depthwise 3x3", (2, 128, 4, 4)),
        ("7 pointwise 1x1", (2, 64, 4, 4)),
        ("8 depthwise 3x3", (2, 64, 2, 2)),
        ("9 pointwise 1x1", (2, 32, 2, 2)),
    ]
    pointwise = [number for number, layer in enumerate(layers, 1) if not layer.spatial]
    assert pointwise == [3, 7, 9]
    first = next(m for m in classifier.network.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        expected = first(classifier.normalise(images))
    assert expected.min() < 0  # the ReLU after it works in place, on a copy
    assert torch.equal(layers[0].maps, expected)


def test_nothing_is_left_behind(classifier: Classifier, shapes: ShapesData) -> None:
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    classifier.train()
    saliency.feature_maps(classifier, shapes.test.images[:2])
    saliency.activation_maps(classifier, shapes.test.images[:2])
    assert classifier.training
    assert all(torch.equal(before[name], v) for name, v in classifier.state_dict().items())
    assert all(p.grad is None for p in classifier.parameters())
    assert not any(m._forward_hooks for m in classifier.modules())


def test_a_frozen_first_layer_has_activation_maps_too(classifier: Classifier) -> None:
    first = next(m for m in classifier.network.modules() if isinstance(m, nn.Conv2d))
    first.weight.requires_grad_(False)
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    _, layers = saliency.activation_maps(classifier, images)
    assert layers[0].maps.shape == (3, 1, 32, 32)
    assert 0 <= layers[0].maps.min() <= layers[0].maps.max() <= 1


class WithAnAuxiliaryHead(nn.Module):
    """As some networks have one for the training alone; the first layer learns nothing."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        self.auxiliary = nn.Conv2d(4, num_classes, 5)
        self.last = nn.Linear(4, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            maps = self.first(images)
        maps = self.second(maps)
        self.auxiliary(maps)
        logits: torch.Tensor = self.last(maps.mean((2, 3)))
        return logits


def test_layers_that_the_logits_do_not_depend_on_have_no_activation_maps(
    classifier: Classifier,
) -> None:
    classifier.network = WithAnAuxiliaryHead(10)
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    assert len(saliency.feature_maps(classifier, images)) == 3
    _, layers = saliency.activation_maps(classifier, images)
    assert [layer.name for layer in layers] == ["2 conv 3x3"]


class RefusesGradients(WithAnAuxiliaryHead):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if images.requires_grad:
            raise RuntimeError("no gradients here")
        return super().forward(images)


class Flat(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))


def test_a_network_without_convolutions_has_no_plots_of_layers(
    classifier: Classifier, shapes: ShapesData
) -> None:
    classifier.network = Flat(10)
    assert results.layer_plots(classifier, shapes) == {}


def test_a_plot_that_fails_costs_neither_the_others_nor_the_results(
    classifier: Classifier, shapes: ShapesData, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    metrics = {"model": "m", "data": "d", "seed": 0, "test/acc": 0.5, "target_val_acc": None}
    config = OmegaConf.create({"plots": True, "run_dir": str(tmp_path)})
    classifier.network = RefusesGradients(10)
    assert [*results.save_plots(config, classifier, shapes, metrics, True)] == ["learning_curves"]
    assert "the layers of this run cannot be plotted: no gradients here" in capsys.readouterr().out
    # By nothing that a network is to blame for either.
    (tmp_path / "metrics.csv").write_text("epoch,val/acc\n1,damaged\n")
    assert results.save_plots(config, classifier, shapes, metrics, True) == {}
    assert "the curves of this run cannot be plotted: could not" in capsys.readouterr().out


class ForAndAgainst(nn.Module):
    """Class 1 by the first layer in the upper left, and by the second in the lower right."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 2, 1, bias=False)
        self.second = nn.Conv2d(3, 1, 3, padding=1, bias=False)
        with torch.no_grad():
            self.first.weight[0], self.first.weight[1] = 1.0, -1.0
            self.second.weight.fill_(0.1)

    def forward(self, images: Tensor) -> Tensor:
        light, dark = self.first(images).unbind(1)  # [N, H, W]; light > 0 > dark here
        score = light[:, :16, :16].mean((1, 2)) + self.second(images)[:, 0, 16:, 16:].mean((1, 2))
        score = score - 0.5 * dark[:, :16, 16:].mean((1, 2))  # a negative gradient
        score = score + 0.5 * dark[:, 16:, :16].mean((1, 2))  # a positive one, of what is below 0
        return torch.stack([torch.zeros_like(score), score], 1)


def test_activation_maps_are_of_each_layer_and_of_what_speaks_for_the_class(
    classifier: Classifier,
) -> None:
    classifier.network = ForAndAgainst()
    images = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    images[1] = 200  # each image has a scale of its own
    guesses, (first, second) = saliency.activation_maps(classifier, images)
    assert guesses.tolist() == [1, 1]
    assert (first.name, second.name) == ("1 pointwise 1x1", "2 conv 3x3")
    corner = torch.zeros(2, 1, 32, 32)
    corner[..., :16, :16] = 1
    assert torch.allclose(first.maps, corner)
    assert second.maps[..., 16:31, 16:31].min() == pytest.approx(1)
    assert second.maps[..., :16, :].max() == second.maps[..., :, :16].max() == 0


def test_a_run_has_figures_that_name_what_they_show(
    classifier: Classifier, shapes: ShapesData, tiny: Compose, tmp_path: Path
) -> None:
    (axes,) = results.layer_plots(classifier, shapes)["activation_maps"].axes
    texts = [text.get_text() for text in axes.texts]
    assert [text.split("\n")[0] for text in texts[:8]] == list(shapes.classes[:8])
    assert "4 conv\n3x3\ndilation 2" in texts
    assert not any("pointwise" in text for text in texts)
    train(tiny("plots=true"))
    names = set()
    for path in (tmp_path / "run" / "figures").iterdir():
        names.add(path.stem)
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 10  # not a blank one
    of_the_run = {"class_accuracies", "confusion_matrix", "learning_curves"}
    assert names == of_the_run | {"activation_maps", "feature_maps", "filters"}
