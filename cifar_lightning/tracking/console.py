"""What a run prints on the terminal."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchinfo
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, RichProgressBar, WeightAveraging
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only
from rich import get_console
from rich.markup import escape
from rich.panel import Panel
from torch import nn

from cifar_lightning.config.compose import PACKAGE, typed_config_dir
from cifar_lightning.config.training import unused_by
from cifar_lightning.data import ImageData
from cifar_lightning.data.datamodule import images_within
from cifar_lightning.models.budget import NetworkCounts
from cifar_lightning.system.counted import counted
from cifar_lightning.system.typed import from_here, program
from cifar_lightning.tracking.conclusion import conclusion
from cifar_lightning.tracking.run_folder import RunFolder
from cifar_lightning.tracking.run_logger import RunLogger
from cifar_lightning.training.callbacks import TargetReached

REHEARSAL = (
    "The network is trained on generated images (data=shapes) instead. "
    "Its accuracy is NOT a CIFAR-10 accuracy: it only shows that everything works here."
)


class EpochLines(Logger):
    """Prints a line per validation. It is a logger, because loggers get all metrics in one call.

    Args:
        max_epochs: of the training.
    """

    name = "console"
    version = ""

    def __init__(self, max_epochs: int) -> None:
        super().__init__()
        self.max_epochs = max_epochs

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Ignore the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Print training and validation metrics; test metrics are printed at the end."""
        words = []
        for split in ("train", "val"):  # a module of one's own may log less
            loss, accuracy = metrics.get(f"{split}/loss"), metrics.get(f"{split}/acc")
            shown = [split, *([] if loss is None else [f"loss {loss:.3f}"])]
            shown += [] if accuracy is None else [f"acc {accuracy:6.2%}"]
            words += [" ".join(shown)] if shown[1:] else []
        if not words:
            return
        words.insert(0, f"epoch {metrics['epoch']:.4g}/{self.max_epochs}")
        if "throughput/train_seconds" in metrics:
            words.append(f"{metrics['throughput/images_per_s']:,.0f} images/s")
            words.append(f"{metrics['throughput/train_seconds']:.1f} s")
        get_console().print("  ".join(words), highlight=False, soft_wrap=True)


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, with epochs from 1 and without the logger's version."""

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        description = f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"
        return description.ljust(len(self.validation_description))


@rank_zero_only
def show_network(
    network: nn.Module,
    name: str,
    image_size: int,
    counts: NetworkCounts,
    limits: Mapping[str, Any],
    layers: bool = True,
) -> None:
    """Print a network's layers, its counts, and the limits of the budget.

    Args:
        network: takes images [N, 3, image_size, image_size].
        name: of the option in conf/model/.
        image_size: in pixels.
        counts: from `models.budget.count_network`.
        limits: the arguments of `models.budget.check_budget`, which passed; None or 0 is no limit.
        layers: whether to print a table of the layers.
    """
    console = get_console()
    if layers:
        table = _layers(network, image_size)
        console.print(table, highlight=False, markup=False, soft_wrap=True)
    kept = ", ".join(f"{key}={limit:,.0f}" for key, limit in limits.items() if limit)
    budget_kept = f"within the budget ({kept})" if kept else "no budget is set"
    console.print(
        f"[bold]{escape(name)}[/]: {counts.parameters:,} parameters, "
        f"{counts.dilated} dilated and {counts.separable} depthwise separable convolutions, "
        f"{counts.multiply_adds / 1e6:.2f} M multiply-adds per image; {budget_kept}\n",
        highlight=False,
        soft_wrap=True,
    )


def _layers(network: nn.Module, image_size: int) -> str:
    # torchinfo draws a random image. Without the fork, a sweep job, which prints no table, would
    # get other random numbers than the same run started alone.
    with torch.random.fork_rng(devices=[]):
        summary = torchinfo.summary(
            network,
            input_size=(1, 3, image_size, image_size),
            col_names=("output_size", "num_params", "mult_adds"),
            col_width=15,
            depth=3,
            verbose=0,
            device="cpu",
        )
    lines = str(summary).replace("Units.MEGABYTES", "M").splitlines()  # its enum's name
    # Its total counts norms and biases too; ours, printed below, counts as papers do.
    return "\n".join(line for line in lines if not line.startswith("Total mult-adds"))


@rank_zero_only
def show_start(
    config: DictConfig, data: ImageData, trainer: pl.Trainer, callbacks: dict[str, Callback]
) -> None:
    """Print the data, the training, the target and the run folder, one line each."""
    val = 0 if data.val is None else len(data.val)
    limit, batches = trainer.limit_train_batches, len(data.train_index) // data.batch_size
    limited = f", {limit} per epoch" if isinstance(limit, int) and limit < batches else ""
    epochs = counted(config.trainer.max_epochs, "epoch")
    epochs += f" or {counted(trainer.max_steps, 'step')}" if trainer.max_steps != -1 else ""
    max_time = config.trainer.get("max_time")
    epochs += f" or max_time={max_time}" if max_time is not None else ""
    devices = f"{trainer.world_size} x {trainer.strategy.root_device.type}"
    target, aim = callbacks.get("target"), "none"
    shift, monitor = data.label_shift, config.callbacks.best.monitor
    cut_short = [
        key
        for key, images in (("limit_val_batches", val), ("limit_test_batches", len(data.test)))
        if 0 < images_within(images, getattr(trainer, key), data.batch_size) < images
    ]
    if isinstance(target, TargetReached) and target.threshold is not None:
        aim = f"training stops at {target.threshold:.2%} on validation"
        if monitor is None:
            aim += "; the last checkpoint is tested"
        elif monitor != "val/acc":
            aim += f"; {monitor} chooses the checkpoint to test"
        elif shift is not None:
            aim += ", which promises nothing on test: the shares of the classes differ there"
        elif cut_short:
            limits = " and ".join(cut_short)
            aim += f", which promises nothing on test: not all images are read ({limits})"
        else:
            aim += f", to reach {target.target:.2%} on test in {target.confidence:.0%} of runs"
        if trainer.limit_val_batches == 0:
            aim = "never reached, because nothing is validated"
    note(
        "data",
        f"{config.choices.data}: {len(data.train_index):,} training, {val:,} validation "
        f"and {len(data.test):,} test images, {len(data.classes)} classes",
    )
    if shift is not None:
        note(
            "classes",
            f"their shares differ: {data.classes[shift.label]} is {shift.train_share:.2%} of the "
            f"training and validation images, {shift.test_share:.2%} of the test images",
        )
    unused = _show_module(config)
    optimizer = "" if "optimizer" in unused else f"{config.choices.optimizer}, "
    note(
        "training",
        f"{optimizer}batches of {data.batch_size}{limited}, {epochs}, "
        f"{trainer.precision} on {devices}",
    )
    if trainer.limit_val_batches == 0:
        has_best = getattr(callbacks["best"], "monitor", None) is not None  # of a resumed run
        tested = "best checkpoint so far" if has_best else "last checkpoint"
        note("validation", f"none, so the {tested} is tested")
    elif monitor is None:
        note("validation", "chooses no checkpoint (callbacks.best.monitor): the last is tested")
    for callback in callbacks.values():
        if isinstance(callback, WeightAveraging):
            name = type(callback).__name__
            note("weights", f"averaged by {name}: these are validated, saved and tested")
    note("target", aim)
    note("run folder", config.run_dir)
    get_console().print()


def _show_module(config: DictConfig) -> list[str]:
    """Print the LightningModule if it is not the template's; returns what it does not read."""
    part: Any = OmegaConf.to_container(config.module, resolve=True)
    unused = unused_by(part)
    if config.choices.module != "classifier":
        left = f", which takes no {', '.join(unused)}" if unused else ""
        note("module", f"{config.choices.module}{left}")
    return unused


@rank_zero_only
def show_result(
    config: DictConfig,
    metrics: dict[str, Any],
    loggers: list[Logger],
    to_resume: Sequence[str] = (),
    details: bool = True,
) -> None:
    """Print how a run ended, where its files are, and the commands that come next.

    Args:
        config: of the run.
        metrics: of `metrics.json`.
        loggers: of the run.
        to_resume: overrides that a resume needs beside the checkpoint.
        details: whether to print all metrics, and the commands that come next.
    """
    if details:
        measured = {key: value for key, value in metrics.items() if value is not None}
        width = max(map(len, measured))
        lines = [f" [dim]{k:<{width}}[/]   {_readable(k, v)}" for k, v in measured.items()]
        get_console().print("", *lines, "", sep="\n", highlight=False, soft_wrap=True)
    folder = RunFolder(Path(config.run_dir))
    note("result", " ".join(conclusion(metrics, config.target_accuracy)))
    if details and metrics["data"] == "shapes":
        note("data", "generated images (data=shapes), so this is not a CIFAR-10 result")
    note("run folder", config.run_dir)
    for file in folder.path.glob("fit-*profile*.txt"):
        note("profile", str(file))
    if metrics["stopped_by"] == "interrupted":
        if details and folder.last.exists():  # a sweep or a search has a command of its own
            note("resume", _command("train", f"resume={from_here(folder.last)}", *to_resume))
    elif details:
        tested = folder.checkpoints / str(metrics["checkpoint"])
        next_steps = {"report": [f"run={from_here(folder.path)}"]}
        if tested.is_file():
            conf = typed_config_dir()  # which may be what names the network
            options = [] if conf is None else ["--config-dir", str(from_here(Path(conf)))]
            next_steps = {"evaluate": [f"checkpoint={from_here(tested)}", *options]} | next_steps
        for tool, arguments in next_steps.items():
            if (PACKAGE / tool / "__main__.py").is_file():  # a user may have deleted the tool
                note(tool, _command(tool, *arguments))
    for logger in loggers:
        if isinstance(logger, RunLogger):
            note(logger.shown_as, logger.how_to_open())


def _command(name: str, *arguments: str) -> str:
    return shlex.join([*program("python"), "-m", f"cifar_lightning.{name}", *arguments])


def _readable(key: str, value: Any) -> str:
    if key.endswith("acc"):
        return f"[bold]{value:.2%}[/]"
    if "seconds" in key:
        return f"{value:.1f} s"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and key != "seed" else escape(str(value))


@rank_zero_only
def note(label: str, text: str) -> None:
    """Print a label and a text on one line."""
    get_console().print(f"[dim]{label:<10}[/] {escape(text)}", highlight=False, soft_wrap=True)


@rank_zero_only
def banner(message: str, title: str) -> None:
    """Print a message in a frame."""
    get_console().print(
        Panel(escape(message), title=title, border_style="bold yellow", padding=(1, 2))
    )
