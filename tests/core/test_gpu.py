"""Tests that need a GPU: `make test-gpu`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from conftest import Compose, exist

from cifar_lightning import run
from cifar_lightning.run import fit
from cifar_lightning.train import train
from cifar_lightning.training.module import Batch

pytestmark = pytest.mark.gpu

ON_GPU = ("trainer.gpus=1", "target_accuracy=null")


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.fail("this machine has no GPU")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "32-true"])
def test_a_run_trains_and_its_checkpoint_gives_the_same_accuracy(
    tiny: Compose, tmp_path: Path, precision: str
) -> None:
    config = tiny(*ON_GPU, f"trainer.precision={precision}", "trainer.max_epochs=4")
    metrics = train(config)
    assert metrics["device"] == torch.cuda.get_device_name()
    classifier, _ = run.rebuild(tmp_path / "run/checkpoints/best.ckpt")
    test = run.build_data(config).test
    with torch.no_grad():
        guesses = classifier.cuda()(test.images.cuda()).argmax(1).cpu()
    accuracy = (guesses == test.labels).float().mean().item()
    assert accuracy == pytest.approx(metrics["test/acc"], abs=3.5 / 60)


class NoWaiting(pl.Callback):
    """From one step's beginning to the next, any wait for the GPU is an error."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        assert all(tensor.is_cuda for tensor in batch)
        if batch_idx > 0:  # the first sets up what all others use
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        if trainer.is_last_batch:  # what follows is logged
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("experiment", [None, "speedrun", "sgd"])
def test_no_step_waits_for_the_gpu_or_copies_to_it(tiny: Compose, experiment: str | None) -> None:
    options = ["data.batch_size=25", "trainer.limit_train_batches=1.0", "trainer.max_epochs=2"]
    chosen = [f"experiment={experiment}"] if experiment else []
    config = tiny(*ON_GPU, *chosen, *options)
    data = run.build_data(config)
    classifier, _ = run.build_classifier(config, data)
    trainer = run.build_trainer(config, run.build_callbacks(config, data))
    trainer.callbacks.append(NoWaiting())  # type: ignore[attr-defined]
    with fit.quiet():
        trainer.fit(classifier, data)


def test_a_compiled_run_trains_like_an_eager_one(
    tiny: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = filter(exist, ["experiment=speedrun"])  # which needs methods that may be deleted
    options = [*ON_GPU, *recipe, "data.batch_size=25", "trainer.max_epochs=4"]
    losses = []
    for compiled in ("false", "true"):
        metrics = train(
            tiny(
                *options,
                f"trainer.compile={compiled}",
                "trainer.precision=32-true",
                run_dir=compiled,
            )
        )
        losses.append(metrics["test/loss"])
    assert "Not compiled" not in capsys.readouterr().out
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
