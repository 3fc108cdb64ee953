from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn

from cifar_lightning import run
from cifar_lightning.data import ShapesData
from cifar_lightning.tracking import plots, results, saliency
from cifar_lightning.train import train
from cifar_lightning.training.module import Classifier

Compose = Callable[..., DictConfig]


@pytest.fixture
def classifier(tiny: Compose, shapes: ShapesData) -> Classifier:
    return run.build_classifier(tiny(), shapes)[0]


def test_the_maps_are_named_in_order_and_have_the_networks_sizes(
    classifier: Classifier, shapes: ShapesData
) -> None:
    layers = saliency.feature_maps(classifier, shapes.test.images[:2])
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


def test_the_maps_are_what_the_convolution_gave_not_what_came_of_it_in_place(
    classifier: Classifier, shapes: ShapesData
) -> None:
    images = shapes.test.images[:2]
    first = next(m for m in classifier.network.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        expected = first(classifier.normalise(images))
    assert expected.min() < 0  # the ReLU after it works in place
    assert torch.equal(saliency.feature_maps(classifier, images)[0].maps, expected)


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


OF_EVERY_RUN = {"class_accuracies.png", "confusion_matrix.png", "learning_curves.png"}


def test_a_training_is_not_lost_for_a_network_that_cannot_be_explained(
    tiny: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny("plots=true", "budget.min_dilated=0", "budget.min_separable=0", "init=random")
    config.model = {"_target_": "test_explain.RefusesGradients", "num_classes": 10}
    assert train(config)["test/acc"] is not None
    shown = capsys.readouterr().out
    assert "the layers of this network cannot be plotted: no gradients here" in shown
    assert "test/acc" in shown
    names = {path.name for path in (tmp_path / "run" / "figures").iterdir()}
    assert names == OF_EVERY_RUN


def test_a_network_without_convolutions_has_no_pictures_of_layers(
    classifier: Classifier, shapes: ShapesData
) -> None:
    classifier.network = Flat(10)
    assert results.layer_plots(classifier, shapes) == {}


class Flat(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))


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
    tiny: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    draw = plots.activation_maps

    def watched(images: Any, captions: list[str], layers: Any, title: str) -> Any:
        seen.update(captions=captions, layers=layers)
        return draw(images, captions, layers, title)

    monkeypatch.setattr(plots, "activation_maps", watched)
    config = tiny("plots=true")
    train(config)
    assert [c.split("\n")[0] for c in seen["captions"]] == list(run.build_data(config).classes[:8])
    assert "dilation 2" in " ".join(name for name, _ in seen["layers"])
    assert not [name for name, _ in seen["layers"] if "pointwise" in name]
    figures = tmp_path / "run" / "figures"
    of_layers = {"activation_maps.png", "feature_maps.png", "filters.png"}
    assert {path.name for path in figures.iterdir()} == OF_EVERY_RUN | of_layers
    for path in figures.iterdir():
        with Image.open(path) as picture:
            assert np.asarray(picture.convert("L")).std() > 10  # not a blank one
    with Image.open(figures / "learning_curves.png") as picture:
        assert picture.size == (1200, 480)
