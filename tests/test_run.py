from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from cifar_lightning import run
from cifar_lightning.errors import UserError
from cifar_lightning.train import train

Compose = Callable[..., DictConfig]


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
    with pytest.raises(UserError, match="model: dilated_dw needs images of at least 24 x 24"):
        run.build_classifier(config, run.build_data(config))


def test_compiling_keeps_the_checkpoints_keys(tiny: Compose) -> None:
    plain = run.build_classifier(config := tiny(), data := run.build_data(config))[0]
    compiled = run.build_classifier(tiny("trainer.compile=true"), data)[0]
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_a_checkpoint_rebuilds_itself_without_pickle(tiny: Compose, tmp_path: Path) -> None:
    metrics = train(tiny("optimizer=sgd", "seed=3"))
    classifier, config = run.rebuild(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert config.optimizer._target_ == "torch.optim.SGD"
    assert classifier.classes[0] == "bar"
    data = run.build_data(config)
    with torch.no_grad():
        guesses = classifier.eval()(data.test.images).argmax(1)
    accuracy = (guesses == data.test.labels).float().mean().item()
    assert accuracy == pytest.approx(metrics["test/acc"], abs=1.5 / len(data.test))  # bf16


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"hello")
    torch.save({"weights": torch.ones(1)}, tmp_path / "y.ckpt")
    for name, message in (
        ("x.ckpt", "is not a checkpoint of cifar-lightning"),
        ("y.ckpt", "is not a checkpoint of cifar-lightning"),
        ("z.ckpt", "there is no such file"),
    ):
        with pytest.raises(UserError, match=message):
            run.rebuild(tmp_path / name)


def test_a_resumed_configuration_is_the_checkpoints_with_overrides_on_top(
    tiny: Compose, tmp_path: Path
) -> None:
    train(tiny("optimizer.lr=0.07", "seed=5"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    overrides = ["trainer.max_epochs=9", "scheduler=cosine", f"resume={last}"]
    config = run.resumed(tiny(*overrides, run_dir="other"), overrides)
    assert (config.optimizer.lr, config.seed) == (0.07, 5)
    assert config.trainer.max_epochs == 9
    assert config.scheduler._target_ == "cifar_lightning.optim.cosine_schedule"
    assert config.choices.scheduler == "cosine"
    assert config.run_id == "run"  # the same run on W&B
    assert config.run_dir == str(tmp_path / "other")
    with pytest.raises(UserError, match="leave experiment= out"):
        run.resumed(config, ["experiment=sgd"])
