"""The results of a run: `metrics.json`, and plots in `figures/`."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib.figure import Figure
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer
from torch import nn

from cifar_lightning.data import ImageData
from cifar_lightning.data.datamodule import images_within
from cifar_lightning.models.budget import NetworkCounts, train_tflop
from cifar_lightning.system.atomic import atomic_write
from cifar_lightning.tracking import console, plots, saliency
from cifar_lightning.tracking.run_folder import RunFolder, read_rows
from cifar_lightning.training.callbacks import TargetReached, Throughput
from cifar_lightning.training.metrics import class_accuracies, confusion_matrix
from cifar_lightning.training.module import (
    Classifier,
    classifier_of,
    network_of,
    test_predictions_of,
)

CLASSES_SHOWN = 10  # one image of each


def collect(
    config: DictConfig,
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: ImageData,
    callbacks: dict[str, Callback],
    counts: NetworkCounts,
    device_name: str,
    tested: Path | None,
    validation: dict[str, float],
    finished: bool,
) -> dict[str, Any]:
    """The content of `metrics.json`, a flat dictionary; None for what does not apply.

    Args:
        config: the run's.
        trainer: after fit, and after test if the run was not interrupted.
        module: the run's.
        data: of the run.
        callbacks: by name; `best`, `throughput` and `target` are read.
        counts: of the network.
        device_name: of the hardware.
        tested: the checkpoint that was tested, or would have been; None if there is none.
        validation: the validation metrics of that checkpoint, by name; empty if it has none.
        finished: False if it was interrupted.
    """
    best, throughput, target = callbacks["best"], callbacks["throughput"], callbacks.get("target")
    assert isinstance(best, ModelCheckpoint)
    assert isinstance(throughput, Throughput)
    target = target if isinstance(target, TargetReached) else None
    epochs = _whole(throughput.epochs)
    is_last = finished and tested is not None and (best.monitor is None or not best.best_model_path)
    last_epoch = epochs if is_last else None
    reached = None if target is None else target.reached_after
    metrics = {
        "data": config.choices.data,
        "model": config.choices.model,
        "params": counts.parameters,
        "teacher": getattr(getattr(module, "distillation", None), "name", None),
        "seed": config.seed,
        "epochs": epochs,
        "stopped_by": stopped_by(trainer, target) if finished else "interrupted",
        "resumes": len(RunFolder(Path(config.run_dir)).starts()[1:]) or None,
        "label_shift": None if data.label_shift is None else data.label_shift.distance,
        "target_val_acc": None if target is None else target.threshold,
        # These are of the tested checkpoint, even if val/acc did not choose it.
        "checkpoint": None if tested is None else tested.name,
        "monitor": best.monitor,
        "monitor_value": validation.get(best.monitor or ""),
        "val/acc": validation.get("val/acc"),
        "best_epoch": _whole(validation["epoch"]) if validation else last_epoch,
        "test_images": images_within(len(data.test), trainer.limit_test_batches, data.batch_size)
        if "test/acc" in trainer.callback_metrics
        else None,
        "test/acc": None,
        "test/loss": None,
        # All test metrics, including those that a user added.
        **{k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("test/")},
        "epochs_to_target": None if reached is None else _whole(reached[0]),
        "seconds_to_target": None if reached is None else reached[1],
        "train_seconds": throughput.seconds,
        "images_per_s": throughput.images_per_s,
        "train_images": throughput.images,
        "train_tflop": _train_tflop(module, data.image_size, throughput),
        "precision": str(trainer.precision),
        "device": device_name,
        "torch": torch.__version__,
        "world_size": trainer.world_size,
    }
    # float32's 0.8187999725341797 is 0.8188.
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in metrics.items()}


def stopped_by(trainer: pl.Trainer, target: TargetReached | None) -> str:
    """What ended a training that was not interrupted.

    Returns:
        `target`, `max_epochs`, `max_steps`, `pruned` or another callback's `stopped_by`,
        `early_stopping`, `max_time` (of any Timer, not only `trainer.max_time`), or `callback` for
        any other callback.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    epochs = next(c for c in callbacks if isinstance(c, Throughput)).epochs
    reached = None if target is None else target.reached_after
    if reached is not None and reached[0] == epochs:
        return "target"
    assert trainer.max_epochs is not None
    if epochs >= trainer.max_epochs:
        return "max_epochs"
    if 0 <= trainer.max_steps <= trainer.global_step:
        return "max_steps"
    if reached is not None:  # earlier, but the run was not yet allowed to stop
        return "target"
    for callback in callbacks:
        if ending := getattr(callback, "stopped_by", None):
            return str(ending)
        # Perhaps epochs earlier, when the run was not yet allowed to stop.
        if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
            return "early_stopping"
    for callback in callbacks:
        remaining = callback.time_remaining() if isinstance(callback, Timer) else None
        if remaining is not None and remaining <= 0:
            return "max_time"
    return "callback"


def _train_tflop(module: pl.LightningModule, image_size: int, throughput: Throughput) -> float:
    """Training compute in TFLOP: the network's, and a teacher's on images of full size."""
    own = train_tflop(network_of(module), throughput.images_by_size)
    if not isinstance(module, Classifier) or module.distillation is None:
        return own
    seen = {image_size: throughput.images}
    # The teacher has no backward pass, which costs twice the forward pass.
    return own + train_tflop(module.distillation.teacher, seen) / 3


def _whole(epochs: float) -> float | int:
    return int(epochs) if epochs == int(epochs) else epochs


def save(config: DictConfig, metrics: dict[str, Any]) -> None:
    """Write `metrics.json`."""
    with atomic_write(RunFolder(Path(config.run_dir)).metrics_json) as file:
        file.write(f"{json.dumps(metrics, indent=2)}\n".encode())


def save_plots(
    config: DictConfig,
    module: pl.LightningModule,
    data: ImageData,
    metrics: dict[str, Any],
    finished: bool,
) -> dict[str, Path]:
    """Write the plots of a run to `figures/`; print which of them failed, if any.

    Args:
        config: of the run; nothing is written if its `plots` is false.
        module: the tested one.
        data: of the run.
        metrics: as `collect` returns them.
        finished: whether it was tested; if not, only the curves are plotted.

    Returns:
        The PNG files by their names.
    """
    if not config.plots:
        return {}
    title = f"{metrics['model']} on {metrics['data']}, seed {metrics['seed']}"
    if metrics["test/acc"] is not None:
        title += f": {metrics['test/acc']:.2%} test accuracy"
    run = RunFolder(Path(config.run_dir))
    to_plot = {"curves": partial(_learning_curves, run.path, metrics["target_val_acc"], title)}
    if finished:
        to_plot["layers"] = partial(layer_plots, module, data)
        to_plot["test"] = partial(_test_plots, module, data, title)
    written = {}
    for what, plot in to_plot.items():
        try:
            run.figures.mkdir(exist_ok=True)
            for name, figure in plot().items():
                file = run.figures / f"{name}.png"
                plots.save_png(figure, file)
                written[name] = file
        # A user's network may fail, or the disk be full: the results must not be lost.
        except Exception as error:
            reason = str(error) or type(error).__name__
            console.note("figures", f"the {what} of this run cannot be plotted: {reason}")
    return written


def _learning_curves(run_dir: Path, target: float | None, title: str) -> dict[str, Figure]:
    rows = read_rows(run_dir)
    curves = {
        name: [(row["epoch"], row[name]) for row in rows if name in row]
        for name in ("train/acc", "train/loss", "val/acc", "val/loss")
    }
    return {"learning_curves": plots.learning_curves(curves, target, title)}


def _test_plots(module: pl.LightningModule, data: ImageData, title: str) -> dict[str, Figure]:
    if (tested := test_predictions_of(module)) is None:  # such as in a search
        if not hasattr(module, "test_predictions"):
            without = "the confusion matrix and the accuracy by class are left out"
            console.note("figures", f"{type(module).__name__} has no test_predictions: {without}")
        return {}
    labels = data.test.labels[tested.index]
    matrix = confusion_matrix(tested.predictions, labels, len(data.classes))
    by_class = dict(zip(data.classes, class_accuracies(matrix), strict=True))
    return {
        "confusion_matrix": plots.confusion_matrix(matrix.numpy(), data.classes, title),
        "class_accuracies": plots.class_accuracies(by_class, title),
    }


def layer_plots(module: pl.LightningModule, data: ImageData) -> dict[str, Figure]:
    """Plot what the network's layers have learned.

    `filters`: those of the first layer. `feature_maps`: the feature maps of one image.
    `activation_maps`: where each layer saw the predicted class. The images are validation images,
    or training images if there is no validation; test images are for the final test only.

    Returns:
        The figures by name; empty if the network has no convolution to plot.
    """
    classifier = module if isinstance(module, Classifier) else _with_its_network(module, data)
    split = data.train if data.val is None else data.val
    labels = split.labels.unique()[:CLASSES_SHOWN].tolist()  # a rare class may have no image
    of_each = [int((split.labels == label).nonzero()[0]) for label in labels]
    images = split.images[of_each]  # [classes, 3, H, W]
    pixels = images.permute(0, 2, 3, 1).numpy()
    layers = saliency.feature_maps(classifier, images[:1])
    if not layers:
        return {}  # no convolution has an output larger than 1x1
    predictions, activations = saliency.activation_maps(classifier, images)
    first = next(m for m in classifier.network.modules() if isinstance(m, nn.Conv2d))
    weights = first.weight.detach().float().cpu().numpy()  # [filters, 3, H, W]
    captions = [
        f"{data.classes[label]}\npredicted: {data.classes[prediction]}"
        for label, prediction in zip(labels, predictions.tolist(), strict=True)
    ]
    maps = [(layer.name, layer.maps[0].numpy()) for layer in layers]
    seen = [(layer.name, layer.maps[:, 0].numpy()) for layer in activations if layer.spatial]
    return {
        "filters": plots.filters(weights, "Filters of the first layer; grey is 0"),
        "feature_maps": plots.feature_maps(
            pixels[0], maps, "One image through the network: channels with the most contrast"
        ),
        "activation_maps": plots.activation_maps(
            pixels, captions, seen, "Where each layer saw the predicted class (LayerCAM)"
        ),
    }


def _with_its_network(module: pl.LightningModule, data: ImageData) -> Classifier:
    """A classifier with the network of another module, which need not take uint8 images."""
    described = (data.classes, data.image_size, data.mean, data.std)
    return classifier_of(network_of(module), *described).to(module.device)
