import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from cifar_lightning import run, training
from cifar_lightning.callbacks import Throughput, reaches
from cifar_lightning.train import train

Compose = Callable[..., DictConfig]


def test_training_stops_at_the_first_validation_that_reaches_the_target(tiny: Compose) -> None:
    metrics = train(tiny("target_accuracy=0.0", "trainer.max_epochs=3"))
    assert metrics["stopped_by"] == "target"
    assert metrics["epochs"] == metrics["epochs_to_target"] == 1
    assert metrics["seconds_to_target"] == metrics["train_seconds"] > 0


def test_the_target_counts_when_equalled_and_in_the_last_epoch(tiny: Compose) -> None:
    first = train(tiny("target_accuracy=null"))
    assert first["stopped_by"] == "max_epochs"
    assert first["epochs_to_target"] is None
    assert first["seconds_to_target"] is None
    again = train(tiny(f"target_accuracy={first['val/acc']}", run_dir="again"))
    assert again["stopped_by"] == "target"


def test_a_target_that_is_missed_lets_training_end(tiny: Compose) -> None:
    metrics = train(tiny("target_accuracy=1.0"))
    assert metrics["stopped_by"] == "max_epochs"
    assert metrics["epochs"] == 1


def test_the_target_can_be_reached_within_an_epoch(tiny: Compose) -> None:
    metrics = train(tiny("target_accuracy=0.0", "trainer.val_check_interval=0.5"))
    assert metrics["stopped_by"] == "target"
    assert metrics["epochs"] == 0.5
    assert metrics["images_per_s"] == pytest.approx(75 / metrics["train_seconds"], rel=1e-4)


def test_the_clock_counts_training_without_validation(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny("target_accuracy=null", "trainer.max_epochs=2", "trainer.val_check_interval=0.5")
    data = run.build_data(config)
    classifier, _ = run.build_classifier(config, data)
    validate, step = classifier.on_validation_epoch_end, classifier.training_step

    def slow_validation() -> None:
        time.sleep(0.5)
        validate()

    monkeypatch.setattr(classifier, "on_validation_epoch_end", slow_validation)

    def slow_step(*arguments: object) -> object:
        time.sleep(0.05)
        return step(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(classifier, "training_step", slow_step)
    callbacks = run.build_callbacks(config, has_validation=True)
    throughput = callbacks["throughput"]
    assert isinstance(throughput, Throughput)
    began = time.perf_counter()
    with training.quiet():
        run.build_trainer(config, callbacks).fit(classifier, data)
    elapsed = time.perf_counter() - began
    assert throughput.images == 2 * 150
    assert throughput.seconds >= 12 * 0.05
    assert throughput.seconds <= elapsed - 4 * 0.5


def test_the_clock_goes_on_after_a_resume() -> None:
    first, second = Throughput(), Throughput()
    first.seconds, first.images = 12.5, 1000
    second.load_state_dict(first.state_dict())
    assert second.images_per_s == 80.0


def test_no_images_make_no_rate() -> None:
    assert Throughput().images_per_s == 0.0


@pytest.mark.parametrize("target", [0.1, 0.7, 0.8, 0.9])
def test_a_target_is_reached_by_the_float32_nearest_to_it(target: float) -> None:
    assert reaches(torch.tensor(target).item(), target)
    assert not reaches(torch.tensor(target - 1e-4).item(), target)
    assert not reaches(1.0, None)


def test_each_validation_is_one_row_of_metrics(tiny: Compose, tmp_path: Path) -> None:
    train(tiny("target_accuracy=null", "trainer.max_epochs=2", "trainer.val_check_interval=0.5"))
    *rows, last = run.read_rows(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [0.5, 1.0, 1.5, 2.0]
    names = {"train/loss", "train/acc", "val/loss", "val/acc", "lr", "throughput/images_per_s"}
    assert all(names <= set(row) for row in rows)
    assert {"test/loss", "test/acc"} <= set(last)
