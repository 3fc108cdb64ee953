"""Callbacks, loggers and the Trainer of a configuration."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from rich import get_console

from cifar_lightning.checkpoints.io import AtomicCheckpointIO, read_checkpoint
from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError
from cifar_lightning.run.build import instantiate_part
from cifar_lightning.run.devices import choose_devices, choose_precision
from cifar_lightning.system.jobs import in_job_process
from cifar_lightning.system.processes import launch
from cifar_lightning.tracking.console import EpochLines, ProgressBar
from cifar_lightning.tracking.csv_logger import Curves
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.tracking.run_logger import RunLogger

NO_DDP_IN_SWEEPS = (
    "A job of a sweep (-m) trains on one device: the processes of the others would start the whole "
    "sweep again. What works: a job a GPU (trainer.gpus=1 hydra/launcher=joblib "
    "hydra.launcher.n_jobs=GPUS); several GPUs a job where SLURM starts the processes "
    "(hydra/launcher=submitit_slurm hydra.launcher.gpus_per_node=2 hydra.launcher.tasks_per_node=2 "
    "trainer=ddp trainer.gpus=2); or no -m."
)


def build_callbacks(config: DictConfig, data: ImageData) -> dict[str, Callback]:
    """The callbacks by their names; the data's sizes go into the keys that their options have."""
    val_images = 0 if data.val is None else len(data.val)
    facts = {"val_images": val_images, "test_images": len(data.test)}
    callbacks: dict[str, Callback] = {}
    for name, part in config.callbacks.items():
        if part is None:  # taken out
            continue
        fitting = {key: value for key, value in facts.items() if key in part}
        callback = instantiate_part(part, f"callbacks.{name}", **fitting)
        callbacks[str(name)] = callback
        if isinstance(callback, ModelCheckpoint) and not val_images:
            # Nothing to choose by: the best checkpoint is the last.
            callback.monitor = None
    return callbacks


@contextmanager
def open_loggers(config: DictConfig) -> Iterator[list[Logger]]:
    """`metrics.csv`, the lines on the terminal, and the configured loggers; closed at the end."""
    resumed_at = None if config.resume is None else read_checkpoint(config.resume).global_step
    earlier = [] if config.resume is None else _earlier_rows(config.run_dir)
    loggers: list[Logger] = [
        Curves(config.run_dir, steps_done=resumed_at),
        EpochLines(config.trainer.max_epochs),
    ]
    exit_code = 1
    try:
        for name, part in config.logger.items():
            logger = instantiate_part(part, f"logger.{name}")
            if logger is not None:  # one that is not wanted, or could not start
                loggers.append(logger)
            if isinstance(logger, RunLogger):
                logger.skip_before(1 + int(max((row["step"] for row in earlier), default=-1)))
        yield loggers
        exit_code = 0
    finally:
        for logger in loggers:
            if isinstance(logger, RunLogger):
                logger.close(exit_code)


def _earlier_rows(run_dir: str) -> list[dict[str, float]]:
    """The curves of a resumed run.

    Raises:
        UserError: if they cannot be read.
    """
    try:
        rows = read_rows(run_dir)
        if not all("step" in row for row in rows):
            raise ValueError("a row has no step")
    except ValueError as error:
        raise UserError(
            f"{run_dir}/metrics.csv cannot be read: {error}. Move it away to resume "
            "the run without the curves so far."
        ) from error
    return rows


def build_trainer(
    config: DictConfig, callbacks: dict[str, Callback], has_validation: bool = True
) -> pl.Trainer:
    """Lightning's Trainer on the devices and in the precision that the configuration asks for.

    Without loggers: they write to the run's folder, so nothing may be wrong any more before they
    are opened.

    Raises:
        UserError: if the devices are not there, are not those of the processes that were started,
            or cannot share a batch evenly; or if the configuration is refused.
    """
    arguments = OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(arguments, dict)
    del arguments["compile"]
    plugins = [instantiate_part(p, "trainer.plugins") for p in arguments.pop("plugins", None) or []]
    one_device = _why_one_device(callbacks)
    num_nodes = arguments.get("num_nodes", 1)  # which earlier checkpoints do not say
    if one_device and num_nodes != 1:
        raise UserError(one_device)
    accelerator, devices = choose_devices(
        arguments.pop("gpus"),
        torch.cuda.device_count(),
        config.data.batch_size,
        one_device,
        num_nodes=num_nodes,
    )
    arguments.setdefault("accelerator", accelerator)
    arguments.setdefault("devices", devices)
    if one_device and isinstance(arguments["devices"], int) and arguments["devices"] > 1:
        raise UserError(one_device)
    # cuDNN picks its fastest kernels by trying them, which may differ from run to run.
    arguments.setdefault("benchmark", not arguments["deterministic"])
    if arguments["precision"] == "auto":
        arguments["precision"] = choose_precision(arguments["accelerator"], devices)
    if not has_validation:
        arguments["limit_val_batches"] = 0
    watching = sorted(callbacks.values(), key=lambda c: getattr(c, "RUNS_LAST", False))
    if get_console().is_terminal:
        watching.append(ProgressBar(refresh_rate=5))
    trainer: pl.Trainer = instantiate_part(
        arguments,
        "trainer",
        callbacks=watching,
        plugins=[*plugins, AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=get_console().is_terminal,
    )
    _check_processes(trainer.num_nodes, trainer.num_devices)
    total = trainer.num_nodes * trainer.num_devices
    if config.data.batch_size % total:
        raise UserError(
            f"{total} devices cannot share data.batch_size={config.data.batch_size} evenly."
        )
    return trainer


def _why_one_device(callbacks: dict[str, Callback]) -> str | None:
    """Why a run may not have more; None if it may."""
    started = launch()
    if in_job_process() and (started is None or started.total == 1):
        return NO_DDP_IN_SWEEPS
    reasons = (getattr(callback, "ONE_DEVICE", None) for callback in callbacks.values())
    return next((reason for reason in reasons if reason), None)


def _check_processes(num_nodes: int, devices: int) -> None:
    """Refuse processes that would wait for others for ever, or train each by itself."""
    started = launch()
    if started is None and num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={num_nodes}, but this process was started alone. torchrun or srun "
            "has to start one process a device on every machine; without them, trainer.num_nodes=1."
        )
    wanted = (num_nodes * devices, devices)
    if started is None or (started.total, started.per_node) == wanted:
        return
    raise UserError(
        f"{started.by} started {started.total // started.per_node} x {started.per_node} processes "
        f"(machines x processes on each), but the configuration asks for {num_nodes} x {devices}. "
        "trainer.num_nodes is the number of machines, and trainer.gpus (with trainer=ddp_sim: "
        "trainer.devices) that of the processes on each."
    )
