import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import weights_of
from conftest import TINY, Compose
from data_sets import png, write_zip
from programs import read_json
from torch import Tensor

from cifar_lightning import run
from cifar_lightning.checkpoints.io import read_checkpoint
from cifar_lightning.config.compose import compose
from cifar_lightning.errors import UserError
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import train
from cifar_lightning.training.callbacks import TargetReached, Throughput, validation_threshold
from cifar_lightning.training.module import Batch, Classifier


def test_training_stops_at_the_first_validation_that_reaches_the_target(
    tiny: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["trainer.max_epochs=3", "trainer.val_check_interval=0.5"]
    metrics = train(tiny("target_accuracy=0.0", *options))
    assert "0.00% on validation, to reach 0.00% on test in 90% of runs" in capsys.readouterr().out
    assert (metrics["stopped_by"], metrics["label_shift"]) == ("target", None)
    assert metrics["epochs"] == metrics["epochs_to_target"] == 0.5
    assert metrics["seconds_to_target"] == metrics["train_seconds"] > 0
    assert metrics["images_per_s"] == pytest.approx(75 / metrics["train_seconds"], rel=1e-4)


def test_the_target_counts_when_equalled_and_in_the_last_epoch(
    trained_run: Path, tiny: Compose
) -> None:
    reached = read_json(trained_run / "metrics.json")["val/acc"]
    metrics = train(tiny(f"target_accuracy={reached}", "target_confidence=0.5"))
    assert (metrics["stopped_by"], metrics["epochs"]) == ("target", 1)


def test_the_clock_counts_training_without_validation_and_each_validation_is_a_row(
    tiny: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate, step = Classifier.on_validation_epoch_end, Classifier.training_step
    moments: list[float] = []

    def slow_validation(classifier: Classifier) -> None:
        time.sleep(0.5)
        validate(classifier)
        moments.append(time.perf_counter())

    def slow_step(*arguments: Any) -> Any:
        moments.append(time.perf_counter())
        time.sleep(0.05)
        return step(*arguments)

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", slow_validation)
    monkeypatch.setattr(Classifier, "training_step", slow_step)
    metrics = train(tiny("target_accuracy=1.0", "trainer.val_check_interval=0.5"))
    assert metrics["train_images"] == 150
    assert 6 * 0.05 <= metrics["train_seconds"] <= moments[-1] - moments[0] - 2 * 0.5
    assert metrics["stopped_by"] == "max_epochs"
    assert metrics["epochs_to_target"] is metrics["seconds_to_target"] is None
    *rows, last = read_rows(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [0.5, 1.0]
    names = {"train/loss", "train/acc", "val/loss", "val/acc", "lr", "throughput/images_per_s"}
    assert all(names <= set(row) for row in rows)
    assert {"test/loss", "test/acc"} <= set(last)


def test_the_clock_goes_on_after_a_resume() -> None:
    first, second = Throughput(), Throughput()
    first.seconds, first.images_by_size = 12.5, {24: 600, 32: 400}
    second.load_state_dict(first.state_dict())
    assert second.images_per_s == 80.0


@pytest.mark.parametrize("target", [0.1, 0.7, 0.8, 0.9])
def test_a_target_is_reached_by_the_float32_nearest_to_it(target: float) -> None:
    without_margin = TargetReached(target, confidence=0.5)
    assert without_margin.reached_by(torch.tensor(target).item())
    assert not without_margin.reached_by(torch.tensor(target - 1e-4).item())
    assert not TargetReached(None).reached_by(1.0)


def test_the_threshold_is_above_the_target_by_the_margin_of_both_samples() -> None:
    # By hand: 1.2816 standard errors of 0.4 * sqrt(1 / 5000 + 1 / 10000) = 0.006928.
    assert validation_threshold(0.8, 0.9, 5000, 10_000) == pytest.approx(0.80888, abs=1e-5)
    assert validation_threshold(0.8, 0.5, 5000, 10_000) == 0.8
    assert validation_threshold(0.8, 0.9, 500, 1000) > 0.82
    assert validation_threshold(0.99, 0.999999, 10, 10) == 1.0
    assert validation_threshold(0.8, 0.9, 0, 10_000) == 0.8


def test_the_threshold_keeps_its_promise_by_chance_alone() -> None:
    """Networks of all true accuracies around the target: of those that pass, most are there."""
    generator = np.random.default_rng(0)
    truth = generator.uniform(0.78, 0.83, 200_000)
    val, test = (generator.binomial(n, truth) / n for n in (5000, 10_000))
    just_passed = np.abs(val - validation_threshold(0.8, 0.9, 5000, 10_000)) < 0.0005
    assert just_passed.sum() > 1000
    assert (test[just_passed] >= 0.8).mean() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(("target", "confidence"), [(-0.1, 0.9), (80, 0.9), (0.8, 0.4), (0.8, 1.0)])
def test_a_threshold_out_of_range_is_refused(target: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="must be from"):
        validation_threshold(target, confidence, 5000, 10_000)


def test_the_threshold_is_of_the_data_that_the_run_has(tiny: Compose) -> None:
    config = tiny("target_accuracy=0.8")
    target = run.build_callbacks(config, run.build_data(config))["target"]
    assert isinstance(target, TargetReached)
    assert target.threshold == validation_threshold(0.8, 0.9, 50, 60)


def test_a_run_promises_nothing_on_test_images_with_other_shares_of_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"train/cat": 100, "train/dog": 10, "test/cat": 30, "test/dog": 30}
    files = {
        f"{kind}/{i}.png": png((2 * i, i, 0))
        for kind, count in counts.items()
        for i in range(count)
    }
    path = write_zip(tmp_path / "uneven.zip", files)
    options = [
        *(o for o in TINY if not o.startswith("data")),
        "data=folder",
        f"data.path={path}",
        "data.batch_size=22",
        "data.val_size=22",
        "target_accuracy=0.8",
    ]
    metrics = train(compose(options, tmp_path / "run"))
    assert metrics["label_shift"] == pytest.approx(100 / 110 - 0.5, abs=1e-6)
    printed = capsys.readouterr().out
    assert "shares differ: cat is 90.91% of the training and validation images, 50.00%" in printed
    assert "on validation, which promises nothing on test" in printed
    assert "of runs" not in printed


class Diverging(Classifier):
    """Its loss is no number in one step, or that step ruins its weights."""

    bad_step = 8
    ruins_weights = False

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor | int]:
        result = super().training_step(batch, batch_idx)
        loss = result["loss"]
        assert isinstance(loss, Tensor)
        if self.current_epoch * 6 + batch_idx + 1 != self.bad_step:
            return result
        if self.ruins_weights:
            loss.register_hook(lambda gradient: gradient * math.nan)
            return result
        return {**result, "loss": loss * math.inf}


@pytest.mark.parametrize(
    ("bad_step", "every", "ruins_weights"),
    [(1, 50, False), (8, 50, True), (9, 2, False), (12, 50, True)],
)
def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_last_good_checkpoint(
    tiny: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad_step: int,
    every: int,
    ruins_weights: bool,
) -> None:
    monkeypatch.setattr(Diverging, "bad_step", bad_step)
    monkeypatch.setattr(Diverging, "ruins_weights", ruins_weights)
    config = tiny(
        "module._target_=test_callbacks.Diverging",
        "target_accuracy=null",
        "trainer.max_epochs=2",
        f"callbacks.nan.every_n_steps={every}",
    )
    # Ruined weights show in the next step's loss, or at the epoch's end in themselves.
    named = bad_step + (1 if ruins_weights and bad_step % 6 else 0)
    epoch = (bad_step - 1) // 6 + 1
    with pytest.raises(UserError, match=rf"step {named}, in epoch {epoch} \(learn"):
        train(config)
    assert not (tmp_path / "run" / "metrics.json").exists()
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("*"))
    assert [file.name for file in checkpoints] == (["best.ckpt", "last.ckpt"] if epoch > 1 else [])
    for file in checkpoints:
        assert read_checkpoint(file).global_step == 6
        assert all(bool(weight.isfinite().all()) for weight in weights_of(file).values())
    finished = [row for row in read_rows(tmp_path / "run") if row["epoch"] < epoch]
    assert [row["epoch"] for row in finished] == [1.0] * (epoch - 1)
    assert all(math.isfinite(value) for row in finished for value in row.values())
