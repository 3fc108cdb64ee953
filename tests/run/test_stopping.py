"""How training ends, what the results say about that, and how it is resumed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import Compose
from test_interruption import assert_the_same_run
from test_train import as_typed

from cifar_lightning import run
from cifar_lightning.checkpoints.io import read_checkpoint
from cifar_lightning.config.training import check_config
from cifar_lightning.errors import UserError
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import train
from cifar_lightning.training.callbacks import validation_threshold

FULL = "trainer.precision=32-true"
LOW = "target_accuracy=0.0"
NONE = "target_accuracy=null"
EARLY = (
    "+callbacks.early._target_=pytorch_lightning.callbacks.EarlyStopping",
    "+callbacks.early.monitor=val/loss",
    "+callbacks.early.patience=1",
    "+callbacks.early.min_delta=100",
)


EMA = (
    "+callbacks.ema._target_=pytorch_lightning.callbacks.EMAWeightAveraging",
    "+callbacks.ema.decay=0.9",
)
TIMER = (
    "+callbacks.timer._target_=pytorch_lightning.callbacks.Timer",
    "+callbacks.timer.duration={microseconds:1}",  # over after the first step
)


class Stop(pl.Callback):
    """Stops the training after some steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: pl.Trainer, *others: Any) -> None:
        trainer.should_stop |= trainer.global_step == self.steps


STOP = (f"+callbacks.stop._target_={__name__}.Stop", "+callbacks.stop.steps=4")


@pytest.mark.parametrize(
    ("stopped_by", "epochs", "overrides"),
    [
        ("max_epochs", 2, [NONE]),
        ("max_steps", 0.666667, [NONE, "trainer.max_steps=4"]),
        ("max_time", 0.166667, [NONE, *TIMER]),
        ("early_stopping", 2, [NONE, "trainer.max_epochs=3", *EARLY]),
        ("callback", 0.666667, [NONE, *STOP]),
        ("target", 1, [LOW]),
        # Reached in the first epoch, after which the run is told to go on.
        ("max_epochs", 2, [LOW, "trainer.min_epochs=2"]),
    ],
)
def test_the_results_say_what_has_ended_the_training(
    stopped_by: str, epochs: float, overrides: Sequence[str], tiny: Compose
) -> None:
    metrics = train(tiny("trainer.max_epochs=2", *overrides))
    assert (metrics["stopped_by"], metrics["epochs"]) == (stopped_by, epochs)
    assert metrics["epochs_to_target"] == (1 if LOW in overrides else None)
    validated = stopped_by != "max_steps"
    assert metrics["checkpoint"] == ("best.ckpt" if validated else "last.ckpt")
    assert (metrics["val/acc"] is not None) == validated
    assert metrics["test/acc"] is not None


class Score(pl.Callback):
    """Logs a metric that only the second epoch does not improve."""

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("val/score", [0.5, 0.4, 0.9, 1.0][trainer.current_epoch])


def test_early_stopping_ends_a_run_also_where_min_epochs_delayed_it(tiny: Compose) -> None:
    early = (*EARLY[:1], "+callbacks.early.monitor=val/score", "+callbacks.early.mode=max")
    score = f"+callbacks.score._target_={__name__}.Score"
    limits = ("+callbacks.early.patience=1", "trainer.min_epochs=3", "trainer.max_epochs=4")
    metrics = train(tiny(NONE, score, *early, *limits))
    assert (metrics["stopped_by"], metrics["epochs"]) == ("early_stopping", 3)
    first = ("trainer.max_steps=14", "resume=other/checkpoints/last.ckpt")
    train(tiny(NONE, score, *early, *limits, first[0], run_dir="other"))
    metrics = train(as_typed(tiny, [first[1], score, "trainer.max_steps=-1"]))
    assert (metrics["stopped_by"], metrics["epochs"]) == ("early_stopping", 3)
    # What ended it then has not ended its resume.
    stop = (*STOP[:1], "+callbacks.stop.steps=20", "trainer.min_epochs=null")
    metrics = train(as_typed(tiny, ["resume=run/checkpoints/last.ckpt", score, *stop]))
    assert (metrics["stopped_by"], metrics["epochs"]) == ("callback", 3.333333)


@pytest.mark.parametrize(
    ("limit", "lifted", "further"),
    [
        (["trainer.max_steps=4"], "trainer.max_steps=-1", []),
        (["trainer.max_steps=6"], "trainer.max_steps=1000", []),  # at the end of an epoch
        (["trainer.max_steps=9"], "trainer.max_steps=10", EMA),  # where a validation is due
        (TIMER, "++callbacks.timer=null", ["trainer.accumulate_grad_batches=2"]),
    ],
)
def test_a_run_that_a_limit_has_ended_goes_on_to_the_bit(
    limit: Sequence[str], lifted: str, further: Sequence[str], tiny: Compose, tmp_path: Path
) -> None:
    options = [NONE, "trainer.max_epochs=2", "trainer.val_check_interval=0.5", *further]
    train(tiny(*options, *([lifted] if lifted.endswith("10") else [])))
    (tmp_path / "run").rename(tmp_path / "whole")
    train(tiny(*options, *limit))
    first = read_rows(tmp_path / "run")[0]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    train(as_typed(tiny, [f"resume={last}", lifted]))
    # Where its time was up there was a validation, which the whole run has not.
    assert limit is not TIMER or first["epoch"] < 0.4
    assert_the_same_run(tmp_path / "run", tmp_path / "whole", extra=int(limit is TIMER))


class Overconfident(pl.Callback):
    """Makes all logits larger before the second validation, so that its loss alone is worse."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            *_, last = pl_module.parameters()
            last.data *= 100


def test_the_accuracy_is_that_of_the_tested_checkpoint_whatever_has_chosen_it(
    tiny: Compose, tmp_path: Path
) -> None:
    by_loss = ("callbacks.best.monitor=val/loss", "callbacks.best.mode=min")
    config = tiny(*by_loss, "target_accuracy=0.9", "trainer.max_epochs=2", FULL)
    metrics = train(config, callbacks={"overconfident": Overconfident()})
    rows = [row for row in read_rows(tmp_path / "run") if "val/acc" in row]
    best, last = sorted(rows, key=lambda row: row["val/loss"])
    assert last is rows[-1]
    assert best["val/acc"] < last["val/acc"]
    assert metrics["val/acc"] == pytest.approx(best["val/acc"], abs=1e-6)
    assert metrics["best_epoch"] == best["epoch"]
    assert metrics["monitor"] == "val/loss"
    assert metrics["monitor_value"] == pytest.approx(best["val/loss"], abs=1e-5)
    assert metrics["stopped_by"] == "max_epochs"
    assert metrics["epochs_to_target"] is None
    assert metrics["val/acc"] == pytest.approx(validated(tmp_path / "run", tiny), abs=1e-6)


def test_averaged_weights_are_validated_saved_and_tested(
    tiny: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = train(tiny(*EMA, NONE, FULL, "trainer.max_epochs=2"))
    assert metrics["val/acc"] == pytest.approx(validated(tmp_path / "run", tiny), abs=1e-6)
    said = "weights    averaged by EMAWeightAveraging: these are validated, saved and tested"
    assert said in capsys.readouterr().out
    content = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    trained = content["current_model_state"]
    assert any(not torch.equal(w, trained[name]) for name, w in content["state_dict"].items())
    test = run.build_data(tiny()).test
    classifier, _ = run.rebuild(tmp_path / "run" / "checkpoints" / "best.ckpt")
    loss = torch.nn.functional.cross_entropy(classifier(test.images), test.labels)
    assert metrics["test/loss"] == pytest.approx(loss.item(), abs=1e-4)


def test_a_resume_without_the_averaging_says_that_it_starts_from_the_average(
    tiny: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(*EMA, NONE))
    typed = ["resume=run/checkpoints/last.ckpt", "trainer.max_epochs=2"]
    train(as_typed(tiny, typed))
    assert "starts from the average" not in capsys.readouterr().out
    train(as_typed(tiny, [*typed[:1], "trainer.max_epochs=3", "++callbacks.ema=null"]))
    assert "no weight averaging: it starts from the average" in capsys.readouterr().out


class Validated(pl.Callback):
    """Keeps the weights that are validated."""

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        self.weights = {name: w.clone() for name, w in pl_module.state_dict().items()}


def test_what_averages_at_the_end_of_an_epoch_changes_no_checkpoint_after_its_validation(
    tiny: Compose, tmp_path: Path
) -> None:
    config = tiny(*EMA, "+callbacks.ema.update_starting_at_epoch=0", NONE, FULL)
    train(config, callbacks={"validated": (validated := Validated())})
    for name, same in (("best.ckpt", True), ("last.ckpt", False)):
        content = torch.load(tmp_path / "run" / "checkpoints" / name, weights_only=True)
        weights = content["state_dict"]
        assert all(torch.equal(w, weights[n]) for n, w in validated.weights.items()) is same


def test_a_loss_in_half_precision_is_a_mean_in_full_precision(
    tiny: Compose, tmp_path: Path
) -> None:
    metrics = train(tiny(NONE, "trainer.precision=bf16-true", "data.test_size=300"))
    classifier, _ = run.rebuild(tmp_path / "run" / "checkpoints" / "best.ckpt")
    test = run.build_data(tiny("data.test_size=300")).test
    logits = torch.cat([classifier.bfloat16()(images) for images in test.images.split(25)])
    loss = torch.nn.functional.cross_entropy(logits.float(), test.labels).item()
    assert metrics["test/loss"] == pytest.approx(loss, abs=2e-3)


def test_a_validation_between_two_steps_of_the_optimizer_counts(
    tiny: Compose, tmp_path: Path
) -> None:
    every = ("trainer.accumulate_grad_batches=4", "trainer.val_check_interval=1")
    metrics = train(tiny(*every, NONE, FULL))
    rows = [row for row in read_rows(tmp_path / "run") if "val/acc" in row]
    assert len(rows) == 6
    assert metrics["val/acc"] == pytest.approx(max(row["val/acc"] for row in rows), abs=1e-6)


def test_a_run_can_go_on_from_its_best_checkpoint(tiny: Compose, tmp_path: Path) -> None:
    train(tiny(NONE, "trainer.max_epochs=2"))
    (tmp_path / "run").rename(tmp_path / "whole")
    train(tiny(NONE, "trainer.max_epochs=2", "+callbacks.best.save_top_k=-1"))
    best = tmp_path / "run" / "checkpoints" / "best-6.ckpt"
    with pytest.raises(UserError, match=r"is from step 6, but the run has reached step 12, which"):
        train(as_typed(tiny, [f"resume={best}"]))
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    train(as_typed(tiny, [f"resume={best}", "callbacks.best.monitor=val/acc"]))
    assert_the_same_run(tmp_path / "run", tmp_path / "whole")


def validated(folder: Path, tiny: Compose) -> float:
    """The accuracy of best.ckpt on the validation images, measured again."""
    data = run.build_data(tiny())
    assert data.val is not None
    classifier, _ = run.rebuild(folder / "checkpoints" / "best.ckpt")
    metrics = read_checkpoint(folder / "checkpoints" / "best.ckpt").validation
    logits = classifier(data.val.images).float()
    loss = torch.nn.functional.cross_entropy(logits, data.val.labels).item()
    assert metrics["val/loss"] == pytest.approx(loss, abs=0.01)
    return float((logits.argmax(1) == data.val.labels).float().mean())


def test_of_several_checkpoints_that_are_kept_best_is_the_best(
    tiny: Compose, tmp_path: Path
) -> None:
    by_first = ("callbacks.best.monitor=throughput/train_seconds", "callbacks.best.mode=min")
    kept = ("++callbacks.best.save_top_k=2", "trainer.max_epochs=2", *by_first)
    metrics = train(tiny(*kept, NONE))
    assert (metrics["checkpoint"], metrics["best_epoch"]) == ("best.ckpt", 1)
    folder = tmp_path / "run" / "checkpoints"
    resumed = train(as_typed(tiny, [f"resume={folder}/last.ckpt", "trainer.max_epochs=3"]))
    assert (resumed["best_epoch"], resumed["epochs"]) == (1, 3)
    steps = {file.name: read_checkpoint(file).global_step for file in folder.iterdir()}
    assert steps == {"best.ckpt": 6, "best-6.ckpt": 6, "best-12.ckpt": 12, "last.ckpt": 18}


@pytest.mark.parametrize(
    "never",
    [
        "trainer.limit_val_batches=0",
        "trainer.check_val_every_n_epoch=3",
        "trainer.max_steps=5",
    ],
)
def test_without_a_validation_the_last_checkpoint_is_tested_and_that_is_said_first(
    never: str, tiny: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = train(tiny(never, NONE, "trainer.max_epochs=2"))
    said = capsys.readouterr().out
    assert said.index("validation none, so the last checkpoint is tested") < said.index(
        "train loss"
    )
    assert (metrics["checkpoint"], metrics["val/acc"], metrics["monitor"]) == (
        "last.ckpt",
        None,
        None,
    )
    assert metrics["best_epoch"] == metrics["epochs"]
    assert metrics["test/acc"] is not None
    if "steps" not in never:
        with pytest.raises(UserError, match="leaves no validation to judge the target by"):
            check_config(tiny(never, LOW, "trainer.max_epochs=2"))
    else:
        with pytest.raises(
            UserError, match=r"early: training ends before the first validation, so"
        ):
            train(tiny(never, NONE, "trainer.max_epochs=2", *EARLY, run_dir="other"))
        assert "train loss" not in capsys.readouterr().out


def test_an_interval_may_count_the_batches_that_a_callback_adds_to_an_epoch(tiny: Compose) -> None:
    metrics = train(tiny("callbacks=hard_examples", "trainer.val_check_interval=8", NONE))
    assert metrics["best_epoch"] == pytest.approx(8 / 9, abs=1e-4)


def test_a_training_that_ends_before_its_first_validation_says_what_is_tested(
    tiny: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = train(tiny(NONE, *STOP, "trainer.accumulate_grad_batches=1", "trainer.min_steps=9"))
    assert (metrics["stopped_by"], metrics["checkpoint"]) == ("max_epochs", "best.ckpt")
    metrics = train(tiny(NONE, *STOP, "++callbacks.best.every_n_epochs=2", run_dir="other"))
    assert (metrics["stopped_by"], metrics["checkpoint"]) == ("callback", "last.ckpt")
    assert "no best checkpoint was saved, so the last one is tested" in capsys.readouterr().out


@pytest.mark.parametrize("options", [[], ["+callbacks.best.filename='{epoch}-{step}'"]])
def test_a_resume_knows_what_a_validation_at_the_stop_has_found(
    options: list[str], tiny: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(tiny(LOW, *STOP, *options))
    assert (whole["stopped_by"], whole["epochs_to_target"]) == ("target", 0.666667)
    checkpoints = tmp_path / "run" / "checkpoints"
    resume = f"resume={checkpoints}/last.ckpt"
    # As of a run that was killed while it was tested.
    again = train(as_typed(tiny, [resume, *STOP]))
    kept = ("stopped_by", "epochs_to_target", "checkpoint", "val/acc", "best_epoch", "test/acc")
    assert {key: again[key] for key in kept} == {key: whole[key] for key in kept}
    assert "no best checkpoint was saved" not in capsys.readouterr().out
    for path in checkpoints.glob("*.ckpt"):
        if path.name != "last.ckpt":
            content = torch.load(path, weights_only=True)
            content["validation"]["val/acc"] = 0.9  # which nothing after it will reach
            torch.save(content, path)
    longer = train(as_typed(tiny, [resume, "++callbacks.stop=null", "target_accuracy=null"]))
    assert (longer["val/acc"], longer["epochs"], longer["best_epoch"]) == (0.9, 1, 0.666667)
    assert sorted(path.suffix for path in checkpoints.iterdir()) == [".ckpt"] * (2 + len(options))


def test_the_margin_of_the_target_is_that_of_the_images_that_are_read(
    tiny: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ("trainer.limit_val_batches=1", "trainer.limit_test_batches=0.4")
    metrics = train(tiny("target_accuracy=0.9", *limits))
    assert metrics["target_val_acc"] == round(validation_threshold(0.9, 0.9, 25, 25), 6)
    # The first images, which may be of a few classes.
    said = capsys.readouterr().out
    assert "% on validation, which promises nothing on test: not all images are read" in said
    assert "(limit_val_batches and limit_test_batches)" in said


def test_the_start_says_what_its_limits_are(
    tiny: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    more_than_there_are = [f"trainer.limit_{kind}_batches=9" for kind in ("train", "val", "test")]
    no_best = "callbacks.best.monitor=null"
    train(tiny("target_accuracy=0.9", *more_than_there_are, "trainer.max_steps=7", no_best))
    said = capsys.readouterr().out
    assert "muon, batches of 25, 1 epoch or 7 steps, " in said
    assert "promises nothing" not in said
    assert "chooses no checkpoint (callbacks.best.monitor): the last is tested" in said


def test_a_check_before_the_first_step_is_no_validation(tiny: Compose) -> None:
    metrics = train(tiny(LOW, "trainer.num_sanity_val_steps=2"))
    assert (metrics["stopped_by"], metrics["epochs"]) == ("target", 1)


class Rates(pl.Callback):
    """Lists the learning rate of each step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_before_optimizer_step(self, *others: Any) -> None:
        self.rates.append(others[-1].param_groups[0]["lr"])


def test_the_learning_rate_of_a_row_is_that_of_the_last_step_before_it(
    tiny: Compose, tmp_path: Path
) -> None:
    rates = Rates()
    often = ("trainer.accumulate_grad_batches=2", "trainer.val_check_interval=1")
    train(tiny(NONE, *often), {"rates": rates})
    rows = [row for row in read_rows(tmp_path / "run") if "lr" in row]
    taken = [rates.rates[max(0, number // 2 - 1)] for number in range(1, 7)]
    assert [row["lr"] for row in rows] == pytest.approx(taken)
