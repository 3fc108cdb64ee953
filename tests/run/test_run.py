import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Compose
from programs import read_json
from torch import Tensor, nn

from cifar_lightning import run
from cifar_lightning.errors import UserError
from cifar_lightning.train import train


def test_class_count_and_image_size_travel_from_the_data_to_the_network(tiny: Compose) -> None:
    config = tiny("data.image_size=40")
    data = run.build_data(config)
    classifier, counts = run.build_classifier(config, data)
    assert classifier(data.test.images[:2]).shape == (2, 10)
    assert counts.multiply_adds > 44_167_744
    assert (
        run.build_network(config, num_classes=3, image_size=40)(torch.zeros(1, 3, 40, 40)).shape[1]
        == 3
    )


class Wide(nn.Sequential):
    """Has two more outputs than there are classes, in one mode or both."""

    def __init__(self, only_in_training: bool) -> None:
        layers = (nn.Conv2d(3, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(8))
        super().__init__(*layers, nn.Linear(8, 12))
        self.only_in_training = only_in_training

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return logits[:, :10] if self.only_in_training and not self.training else logits


class Twofold(Wide):
    """As networks with an auxiliary head have it."""

    def forward(self, images: Tensor) -> Any:
        return super().forward(images)[:, :10], images


@pytest.mark.parametrize(
    ("name", "only_in_training", "message"),
    [
        ("Wide", False, "Wide returns [2, 12] for two images in evaluation mode; it has to return"),
        ("Wide", True, "Wide returns [2, 12] for two images in training mode; it has to return"),
        ("Twofold", False, "Twofold returns a tuple for two images in evaluation mode; it has to"),
    ],
)
def test_a_network_whose_output_is_not_a_logit_per_class_is_refused_before_anything_is_written(
    name: str, only_in_training: bool, message: str, tiny: Compose, tmp_path: Path
) -> None:
    lifted = ("budget.min_dilated=null", "budget.min_separable=null", "init=random")
    typed = (f"model._target_={__name__}.{name}", f"+model.only_in_training={only_in_training}")
    without = ("~model.num_classes", "~model.image_size")  # which it does not take
    with pytest.raises(UserError, match=re.escape(message)):
        train(tiny(*lifted, *typed, *without))
    assert not [*tmp_path.iterdir()]


def test_the_check_of_the_output_leaves_the_network_as_it_was(tiny: Compose) -> None:
    config = tiny("model=resnet20", "init=random", "budget.min_dilated=0", "budget.min_separable=0")
    data = run.build_data(config)
    torch.manual_seed(0)
    expected = run.build_network(config, 10, 32).state_dict()
    following = torch.rand(1)
    torch.manual_seed(0)
    classifier, _ = run.build_classifier(config, data)
    assert torch.rand(1) == following
    for key, value in classifier.network.state_dict().items():
        assert torch.equal(value, expected[key])
    assert classifier.network.training


def test_images_too_small_for_the_network_are_named(tiny: Compose) -> None:
    config = tiny("data.image_size=20")
    with pytest.raises(UserError, match="model: dilated_dw needs images of at least 24 x 24") as e:
        run.build_classifier(config, run.build_data(config))
    assert str(e.value).endswith("not 20 x 20: data.image_size=32 makes them larger")


def test_a_network_that_refuses_the_images_size_is_told_how_they_get_another(tiny: Compose) -> None:
    lifted = [f"budget.{key}=null" for key in ("max_params", "min_dilated", "min_separable")]
    config = tiny("data.image_size=8", "model=airbench94", *lifted)
    with pytest.raises(UserError) as refused:
        run.build_classifier(config, run.build_data(config))
    message = str(refused.value)
    assert message.startswith("model: it does not take images of 8 x 8 pixels: Given input size")
    assert message.endswith("data.image_size=32 resizes them to 32 x 32.")
    larger = tiny("data.image_size=32", "model=airbench94", *lifted)
    assert run.build_classifier(larger, run.build_data(larger))


def test_a_rebuilt_network_is_the_trained_one_ready_to_evaluate(
    tiny: Compose, trained_run: Path
) -> None:
    metrics = read_json(trained_run / "metrics.json")
    classifier, info = run.rebuild(trained_run / "checkpoints" / "best.ckpt")
    assert (info.model, info.data, info.precision) == ("dilated_dw", "shapes", "auto")
    assert classifier.classes[0] == info.classes[0] == "bar"
    data = run.build_data(tiny())
    with torch.no_grad():
        logits = classifier(data.test.images)
        alone = classifier(data.test.images[:1])
    accuracy = (logits.argmax(1) == data.test.labels).float().mean().item()
    assert accuracy == pytest.approx(metrics["test/acc"], abs=1.5 / len(data.test))  # bf16
    assert torch.allclose(alone, logits[:1], atol=1e-4)  # batch norm's stored statistics
