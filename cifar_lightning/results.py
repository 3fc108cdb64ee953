"""What a run leaves behind: `metrics.json` and the learning-curve picture."""

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger

from cifar_lightning.atomic import atomic_write
from cifar_lightning.board import BoardLogger
from cifar_lightning.budget import Budget, train_tflop
from cifar_lightning.callbacks import TargetReached, Throughput
from cifar_lightning.classifier import Classifier
from cifar_lightning.curves import read_rows
from cifar_lightning.hardware import device_name
from cifar_lightning.pictures import learning_curves


def collect(
    config: DictConfig,
    trainer: pl.Trainer,
    classifier: Classifier,
    callbacks: dict[str, Callback],
    budget: Budget,
    finished: bool,
) -> dict[str, Any]:
    """The run's figures, flat; what it has not got, such as a target not reached, is None.

    Args:
        config: the run's.
        trainer: after fit, and after test where the run was not interrupted.
        classifier: the run's.
        callbacks: by name; `best`, `throughput` and `target` are read.
        budget: of the network.
        finished: False after Ctrl-C.
    """
    best, throughput = callbacks["best"], callbacks["throughput"]
    assert isinstance(best, ModelCheckpoint)
    assert isinstance(throughput, Throughput)
    score = best.best_model_score if best.monitor else None
    target = callbacks.get("target")
    reached = (
        score is not None and isinstance(target, TargetReached) and target.reached_by(score.item())
    )
    ending = "target" if reached else "max_epochs"
    epochs = _whole(throughput.epochs)
    metrics = {
        "data": config.choices.data,
        "model": config.choices.model,
        "params": budget.parameters,
        "seed": config.seed,
        "epochs": epochs,
        "stopped_by": ending if finished else "interrupted",
        "val/acc": None if score is None else score.item(),
        "test/acc": _metric(trainer, "test/acc"),
        "test/loss": _metric(trainer, "test/loss"),
        "epochs_to_target": epochs if reached else None,
        "seconds_to_target": throughput.seconds if reached else None,
        "train_seconds": throughput.seconds,
        "images_per_s": throughput.images_per_s,
        "train_images": throughput.images,
        "train_tflop": train_tflop(classifier.network, throughput.images_by_size),
        "precision": str(trainer.precision),
        "device": device_name(trainer.strategy.root_device),
        "torch": torch.__version__,
        "world_size": trainer.world_size,
    }
    # float32's 0.8187999725341797 is 0.8188.
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in metrics.items()}


def _whole(epochs: float) -> float | int:
    return int(epochs) if epochs == int(epochs) else epochs


def _metric(trainer: pl.Trainer, name: str) -> float | None:
    value = trainer.callback_metrics.get(name)
    return None if value is None else value.item()


def save(
    config: DictConfig,
    metrics: dict[str, Any],
    callbacks: dict[str, Callback],
    loggers: list[Logger],
) -> None:
    """Write `metrics.json` and `figures/learning_curves.png`; show both on the board."""
    run_dir = Path(config.run_dir)
    with atomic_write(run_dir / "metrics.json") as file:
        file.write(f"{json.dumps(metrics, indent=2)}\n".encode())

    rows = read_rows(run_dir)
    curves = {
        name: [(row["epoch"], row[name]) for row in rows if name in row]
        for name in ("train/acc", "train/loss", "val/acc", "val/loss")
    }
    title = f"{metrics['model']} on {metrics['data']}, seed {metrics['seed']}"
    if metrics["test/acc"] is not None:
        title += f": {metrics['test/acc']:.2%} test accuracy"
    picture = run_dir / "figures" / "learning_curves.png"
    picture.parent.mkdir(exist_ok=True)
    target = callbacks.get("target")
    threshold = target.threshold if isinstance(target, TargetReached) else None
    with atomic_write(picture) as file:
        learning_curves(curves, threshold, title).savefig(file, format="png")
    for logger in loggers:
        if isinstance(logger, BoardLogger):
            logger.log_summary(metrics)
            logger.log_picture("learning_curves", str(picture))
