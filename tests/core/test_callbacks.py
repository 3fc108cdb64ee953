import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from checkpoints import weights_of
from omegaconf import DictConfig
from torch import Tensor

from cifar_lightning import run
from cifar_lightning.checkpoints.io import read_checkpoint
from cifar_lightning.checkpoints.record import write_record
from cifar_lightning.config.compose import compose
from cifar_lightning.data.sampler import TrainSampler
from cifar_lightning.errors import UserError
from cifar_lightning.models import DilatedDW
from cifar_lightning.models.budget import count
from cifar_lightning.run import fit
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import train
from cifar_lightning.training.callbacks import TargetReached, Throughput, validation_threshold
from cifar_lightning.training.callbacks.grad_norm import GradientNorm
from cifar_lightning.training.callbacks.hard_examples import HardExampleReplay
from cifar_lightning.training.callbacks.mirror import MirrorSymmetry
from cifar_lightning.training.callbacks.progressive_resizing import ProgressiveResizing
from cifar_lightning.training.module import Batch, Classifier

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
    typed = [f"target_accuracy={first['val/acc']}", "target_confidence=0.5"]
    again = train(tiny(*typed, run_dir="again"))
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
    callbacks = run.build_callbacks(config, data)
    throughput = callbacks["throughput"]
    assert isinstance(throughput, Throughput)
    began = time.perf_counter()
    with fit.quiet():
        run.build_trainer(config, callbacks).fit(classifier, data)
    elapsed = time.perf_counter() - began
    assert throughput.images == 2 * 150
    assert throughput.seconds >= 12 * 0.05
    assert throughput.seconds <= elapsed - 4 * 0.5


def test_the_clock_goes_on_after_a_resume() -> None:
    first, second = Throughput(), Throughput()
    first.seconds, first.images_by_size = 12.5, {24: 600, 32: 400}
    second.load_state_dict(first.state_dict())
    assert second.images_per_s == 80.0


@pytest.mark.parametrize("options", [[], ["callbacks=mirror"], ["data.val_size=0"]])
def test_the_gradient_norm_is_the_mean_of_what_the_optimizer_saw(
    tiny: Compose, tmp_path: Path, options: list[str]
) -> None:
    config = tiny("target_accuracy=null", "trainer.max_epochs=2", *options)
    data = run.build_data(config)
    classifier, _ = run.build_classifier(config, data)
    callbacks = run.build_callbacks(config, data)
    trainer = run.build_trainer(config, callbacks, has_validation=data.val is not None)
    seen: list[float] = []

    class Spy(pl.Callback):
        def on_train_batch_end(self, *arguments: object) -> None:
            squares = [p.grad.square().sum() for p in classifier.parameters() if p.grad is not None]
            seen.append(torch.stack(squares).sum().sqrt().item())

    trainer.callbacks.append(Spy())  # type: ignore[attr-defined]
    with fit.quiet(), run.open_loggers(config) as trainer.loggers:
        fit.fit(trainer, classifier, data, config)
    steps = len(seen) // 2
    means = [sum(seen[:steps]) / steps, sum(seen[steps:]) / steps]
    rows = read_rows(tmp_path / "run")
    assert [row["train/grad_norm"] for row in rows] == pytest.approx(means, rel=1e-4)


def test_a_step_that_is_skipped_has_no_gradient_norm() -> None:
    callback = GradientNorm()
    logged: dict[str, Tensor] = {}
    module = torch.nn.Linear(1, 2, bias=False)
    module.log = logged.__setitem__  # type: ignore[assignment]
    for gradient in ([3.0, 4.0], [float("inf"), 0.0], [6.0, 8.0]):
        module.weight.grad = torch.tensor(gradient)[:, None]
        callback.on_before_optimizer_step(None, module, None)  # type: ignore[arg-type]
    fitting = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    callback.on_validation_epoch_end(fitting, module)  # type: ignore[arg-type]
    assert logged["train/grad_norm"] == 7.5


def test_no_images_make_no_rate() -> None:
    assert Throughput().images_per_s == 0.0


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


LR, NORM = r"(?P<lr>\S+)", r"(?P<norm>\S+)"


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


@pytest.mark.parametrize("ruins_weights", [False, True])
@pytest.mark.parametrize(("bad_step", "every"), [(1, 50), (8, 50), (12, 50), (8, 1), (9, 2)])
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
    monkeypatch.setattr(run.build, "Classifier", Diverging)
    config = tiny(
        "target_accuracy=null", "trainer.max_epochs=3", f"callbacks.nan.every_n_steps={every}"
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


@pytest.mark.parametrize("every", [1, 3, 50])
def test_the_learning_rate_and_the_gradient_norms_of_a_step_without_a_number_are_named(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr(Diverging, "bad_step", 10)
    monkeypatch.setattr(run.build, "Classifier", Diverging)
    norms: list[float] = []
    rates: list[float] = []

    def note(callback: GradientNorm, trainer: pl.Trainer, *others: Any) -> None:
        measure(callback, trainer, *others)
        assert callback.gradient_norm is not None
        norms.append(callback.gradient_norm.item())
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    measure = GradientNorm.on_before_optimizer_step
    monkeypatch.setattr(GradientNorm, "on_before_optimizer_step", note)
    options = ["target_accuracy=null", "trainer.max_epochs=2"]
    said = rf"step 10, in epoch 2 \(learning rate {LR}, gradient norm nan, one step before {NORM}\)"
    with pytest.raises(UserError, match=said) as error:
        train(tiny(*options, f"callbacks.nan.every_n_steps={every}"))
    found = re.search(said, str(error.value))
    assert found is not None
    assert found["lr"] == f"{rates[9]:.3g}" != f"{rates[8]:.3g}"
    assert found["norm"] == f"{norms[8]:.3g}" != f"{norms[7]:.3g}"
    with pytest.raises(UserError, match=rf"step 10, in epoch 2 \(learning rate {LR}\)\."):
        train(
            tiny(*options, f"callbacks.nan.every_n_steps={every}", "callbacks.gradient_norm=null")
        )


def test_each_validation_is_one_row_of_metrics(tiny: Compose, tmp_path: Path) -> None:
    train(tiny("target_accuracy=null", "trainer.max_epochs=2", "trainer.val_check_interval=0.5"))
    *rows, last = read_rows(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [0.5, 1.0, 1.5, 2.0]
    names = {"train/loss", "train/acc", "val/loss", "val/acc", "lr", "throughput/images_per_s"}
    assert all(names <= set(row) for row in rows)
    assert {"test/loss", "test/acc"} <= set(last)


LOW = (
    "callbacks=progressive_resizing",
    "callbacks.progressive_resizing.until=0.5",
    "target_accuracy=null",
    "trainer.max_epochs=2",
)


def test_small_images_come_first_and_full_ones_later(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    forward = DilatedDW.forward

    def spy(network: DilatedDW, images: Tensor) -> Tensor:
        sizes.append((network.training, len(images), images.shape[-1]))
        return forward(network, images)

    monkeypatch.setattr(DilatedDW, "forward", spy)
    metrics = train(tiny(*LOW, "callbacks.progressive_resizing.until=0.25"))
    assert [size for training, _, size in sizes if training] == [24] * 3 + [32] * 9
    evaluated = [size for training, images, size in sizes if not training and images > 1]
    assert set(evaluated) == {32}  # one image alone is for counting
    small, full = (6 * count(DilatedDW(), size).multiply_adds for size in (24, 32))
    expected = 25 * (3 * small + 9 * full) / 1e12
    assert metrics["train_tflop"] == pytest.approx(expected, abs=1e-6)
    assert metrics["train_images"] == 25 * 12


def test_a_network_that_cannot_take_small_images_is_told_before_the_first_step(
    tiny: Compose,
) -> None:
    with pytest.raises(UserError, match="cannot take images of 8 x 8 pixels"):
        train(tiny(*LOW, "callbacks.progressive_resizing.size=8"))
    with pytest.raises(UserError, match=r"the data's have 32 x 32: take fewer, as .*size=24"):
        train(tiny(*LOW, "callbacks.progressive_resizing.size=32"))
    with pytest.raises(ValueError, match="size must be at least 1"):
        ProgressiveResizing(0, 0.5)


@pytest.mark.parametrize("until", [-0.1, 1.1])
def test_a_fraction_of_the_steps_is_from_0_to_1(until: float) -> None:
    with pytest.raises(ValueError, match="until must be from 0 to 1"):
        ProgressiveResizing(24, until)


def test_the_hardest_images_come_again_at_the_end_of_each_epoch(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[int], Tensor]] = []
    step = Classifier.training_step

    def spy(classifier: Classifier, batch: Batch, batch_idx: int) -> dict[str, Tensor | int]:
        result = step(classifier, batch, batch_idx)
        losses, loss = result["losses"], result["loss"]
        assert isinstance(losses, Tensor)
        assert isinstance(loss, Tensor)
        assert losses.mean().item() == pytest.approx(loss.item(), rel=1e-3)
        seen.append((batch[2].tolist(), losses))
        return result

    monkeypatch.setattr(Classifier, "training_step", spy)
    options = [
        "callbacks=hard_examples",
        "callbacks.hard_examples.fraction=0.4",
        "target_accuracy=null",
    ]
    metrics = train(tiny(*options, "trainer.max_epochs=2"))
    assert metrics["train_images"] == 2 * (150 + 50)  # 0.4 of 150 are 60, which are 2 batches of 25
    for epoch in (seen[:8], seen[8:]):
        first = [image for index, _ in epoch[:6] for image in index]
        again = {image for index, _ in epoch[6:] for image in index}
        assert len(set(first)) == 150
        assert len(again) == 50
        losses = dict(zip(first, torch.cat([part for _, part in epoch[:6]]).tolist(), strict=True))
        assert again == set(sorted(first, key=lambda image: -losses[image])[:50])


def test_every_epoch_chooses_anew_what_comes_again() -> None:
    """Else a resumed run, which knows of no earlier epoch, would go another way."""
    losses = torch.zeros(10)
    order = TrainSampler(torch.arange(10), 4, seed=0, replay=0.4, losses=losses)
    for _ in range(2):
        batches = iter(order)
        first = torch.cat([next(batches), next(batches)])
        assert losses.isinf().all()
        losses[first] = torch.arange(8.0)
        # The two that had no place in a whole batch, and the two with the largest losses.
        left_out = set(range(10)) - set(first.tolist())
        assert set(next(batches).tolist()) == left_out | set(first[-2:].tolist())
        losses.fill_(-1.0)
        assert next(batches, None) is None


def test_revisiting_ends_with_the_training_that_wants_it(tiny: Compose) -> None:
    config = tiny("callbacks=hard_examples", "target_accuracy=null")
    data = run.build_data(config)
    classifier, _ = run.build_classifier(config, data)
    trainer = run.build_trainer(config, run.build_callbacks(config, data))
    with fit.quiet():
        trainer.fit(classifier, data)
    assert trainer.num_training_batches == 6 + 3
    assert len(data.train_dataloader()) == 6


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_the_methods_work_in_every_precision(tiny: Compose, precision: str) -> None:
    # Its own batch size comes with an experiment.
    options = ["experiment=speedrun", "data.batch_size=25", f"trainer.precision={precision}"]
    metrics = train(tiny(*options))
    assert metrics["train_images"] == 150 + 75
    assert metrics["train_tflop"] > 0


def test_mirror_symmetry_refuses_a_network_that_cannot_have_it(tiny: Compose) -> None:
    with pytest.raises(UserError, match="not mirror-symmetric, even with symmetric weights"):
        train(tiny("experiment=airbench94", "data.batch_size=25", "callbacks=mirror"))


def test_revisiting_is_for_one_device() -> None:
    two = cast(pl.Trainer, SimpleNamespace(world_size=2))
    with pytest.raises(UserError, match="works on one device"):
        HardExampleReplay(0.5).setup(two, pl.LightningModule(), "fit")


def test_revisiting_asks_for_one_device_before_any_process_starts(tiny: Compose) -> None:
    config = tiny("callbacks=hard_examples", "trainer.gpus=2")
    callbacks = run.build_callbacks(config, run.build_data(config))
    with pytest.raises(UserError, match="works on one device"):
        run.build_trainer(config, callbacks)


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_a_fraction_of_the_images_is_from_0_to_1(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction must be from 0 to 1"):
        HardExampleReplay(fraction)


def both_logits(checkpoint: Path) -> tuple[Tensor, Tensor]:
    classifier, _ = run.rebuild(checkpoint)
    images = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return classifier(images.byte()), classifier(images.byte().flip(-1))


def test_trained_with_mirror_symmetry_a_mirrored_image_gets_the_same_logits(
    tiny: Compose, tmp_path: Path
) -> None:
    for name in ("mirror", "default"):
        options = [f"callbacks={name}", "target_accuracy=null", "trainer.max_epochs=2"]
        train(tiny(*options, run_dir=name))
    checkpoints = tmp_path / "mirror" / "checkpoints"
    for name in ("best", "last"):
        logits, mirrored = both_logits(checkpoints / f"{name}.ckpt")
        assert logits.std() > 0.1
        assert torch.allclose(logits, mirrored, atol=1e-3)
    assert not torch.allclose(*both_logits(tmp_path / "default/checkpoints/last.ckpt"), atol=1e-2)


class GradientsSeen(pl.Callback):
    """What is left of the difference between gradients and their mirror images, by step."""

    def __init__(self) -> None:
        self.differences: list[float] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        gradients = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
        flat = torch.cat(gradients)
        (mirror,) = (c for c in trainer.callbacks if isinstance(c, MirrorSymmetry))  # type: ignore[attr-defined]
        self.differences.append(((flat - flat[mirror._index]).norm() / flat.norm()).item())


def test_every_gradient_is_made_symmetric_and_was_not_before(tiny: Compose) -> None:
    config = tiny("callbacks=mirror", "target_accuracy=null")
    data = run.build_data(config)
    classifier, _ = run.build_classifier(config, data)
    trainer = run.build_trainer(config, run.build_callbacks(config, data))
    before, after = GradientsSeen(), GradientsSeen()
    trainer.callbacks.insert(0, before)  # type: ignore[attr-defined]
    trainer.callbacks.append(after)  # type: ignore[attr-defined]
    with fit.quiet():
        trainer.fit(classifier, data)
    assert len(before.differences) == 6
    assert min(before.differences) > 0.1
    assert max(after.differences) == 0.0


def test_mirror_symmetry_without_validation_is_in_the_last_checkpoint(
    tiny: Compose, tmp_path: Path
) -> None:
    train(tiny("callbacks=mirror", "target_accuracy=null", "data.val_size=0"))
    assert torch.allclose(*both_logits(tmp_path / "run/checkpoints/best.ckpt"), atol=1e-3)


def test_the_methods_go_on_after_a_resume_as_if_there_had_been_no_break(
    tiny: Compose, tmp_path: Path
) -> None:
    mirror = "+callbacks.mirror._target_=cifar_lightning.training.callbacks.mirror.MirrorSymmetry"
    whole = train(tiny(*LOW, mirror, run_dir="whole"))
    # Broken off at the end of the first of two epochs.
    config = tiny(*LOW, mirror, run_dir="broken")
    data = run.build_data(config)
    pl.seed_everything(0, verbose=False)
    classifier, _ = run.build_classifier(config, data)
    trainer = run.build_trainer(config, run.build_callbacks(config, data))
    trainer.callbacks.append(StopAfterEpoch())  # type: ignore[attr-defined]
    write_record(config, [])
    with fit.quiet():
        fit.fit(trainer, classifier, data, config)
    again = train(compose([f"resume={tmp_path}/broken/checkpoints/last.ckpt"], tmp_path / "broken"))
    for key in ("val/acc", "test/acc", "test/loss", "train_images", "train_tflop"):
        assert again[key] == whole[key]
    one, other = (
        weights_of(tmp_path / name / "checkpoints/last.ckpt") for name in ("whole", "broken")
    )
    assert all(torch.equal(value, other[key]) for key, value in one.items())


class StopAfterEpoch(pl.Callback):
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = True
