from pathlib import Path

import pytest
import torch
from conftest import Compose
from programs import read_json

from cifar_lightning import run
from cifar_lightning.errors import UserError


def test_class_count_and_image_size_travel_from_the_data_to_the_network(tiny: Compose) -> None:
    config = tiny("data.image_size=40")
    data = run.build_data(config)
    classifier, budget = run.build_classifier(config, data)
    assert classifier(data.test.images[:2]).shape == (2, 10)
    assert budget.multiply_adds > 44_167_744
    assert (
        run.build_network(config, num_classes=3, image_size=40)(torch.zeros(1, 3, 40, 40)).shape[1]
        == 3
    )


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
