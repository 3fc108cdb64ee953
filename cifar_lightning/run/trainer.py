"""Builds callbacks, loggers and the Trainer from a configuration."""

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
from cifar_lightning.tracking.csv_logger import CSVLogger
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.tracking.run_logger import RunLogger

NO_DDP_IN_SWEEPS = (
    "A job of a sweep (-m) trains on one device: the processes of the others would start the whole "
    "sweep again. What works: a job per GPU (trainer.gpus=1 hydra/launcher=joblib "
    "hydra.launcher.n_jobs=GPUS); several GPUs per job if SLURM starts the processes "
    "(hydra/launcher=submitit_slurm hydra.launcher.gpus_per_node=2 hydra.launcher.tasks_per_node=2 "
    "trainer=ddp trainer.gpus=2); or no -m."
)


def build_callbacks(config: DictConfig, data: ImageData) -> dict[str, Callback]:
    """Build the callbacks, by name.

    Args:
        config: `val_images` and `test_images` of callbacks are replaced by the data's.
        data: set up.
    """
    val_images = 0 if data.val is None else len(data.val)
    of_data = {"val_images": val_images, "test_images": len(data.test)}
    callbacks: dict[str, Callback] = {}
    for name, part in config.callbacks.items():
        if part is None:  # null removes it
            continue
        fitting = {key: value for key, value in of_data.items() if key in part}
        callback = instantiate_part(part, f"callbacks.{name}", **fitting)
        callbacks[str(name)] = callback
        if isinstance(callback, ModelCheckpoint) and not val_images:
            # Without validation the best checkpoint is the last.
            callback.monitor = None
    return callbacks


@contextmanager
def open_loggers(config: DictConfig) -> Iterator[list[Logger]]:
    """Open the loggers: metrics.csv, the terminal, the configuration's; close them at the end."""
    resumed_at = None if config.resume is None else read_checkpoint(config.resume).global_step
    earlier = [] if config.resume is None else _earlier_rows(config.run_dir)
    loggers: list[Logger] = [
        CSVLogger(config.run_dir, steps_done=resumed_at),
        EpochLines(config.trainer.max_epochs),
    ]
    exit_code = 1
    try:
        for name, part in config.logger.items():
            logger = instantiate_part(part, f"logger.{name}")
            if logger is not None:  # None if it is disabled or could not start
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
    """Read the metrics.csv of a resumed run."""
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
    """Build Lightning's Trainer, without loggers, which are opened when all checks are done.

    Args:
        config: `trainer` and `data.batch_size` are read.
        callbacks: by name.
        has_validation: whether there are validation images.

    Raises:
        UserError: if the devices do not exist, do not match the processes that were started, or
            cannot share a batch evenly; or if Lightning refuses the configuration.
    """
    arguments = OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(arguments, dict)
    del arguments["compile"]
    plugins = [instantiate_part(p, "trainer.plugins") for p in arguments.pop("plugins", None) or []]
    one_device = _why_one_device(callbacks)
    num_nodes = arguments.get("num_nodes", 1)  # a user's own trainer option may lack it
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
    # cuDNN measures which kernels are fastest, which may differ from run to run.
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
    """The error message for more than one device; None if several are allowed."""
    started = launch()
    if in_job_process() and (started is None or started.total == 1):
        return NO_DDP_IN_SWEEPS
    reasons = (getattr(callback, "ONE_DEVICE", None) for callback in callbacks.values())
    return next((reason for reason in reasons if reason), None)


def _check_processes(num_nodes: int, devices: int) -> None:
    """Refuse started processes that do not match the configuration: they would wait without end."""
    started = launch()
    if started is None and num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={num_nodes}, but this process was started alone. torchrun or srun "
            "has to start one process per device on every machine; without, trainer.num_nodes=1."
        )
    wanted = (num_nodes * devices, devices)
    if started is None or (started.total, started.per_node) == wanted:
        return
    raise UserError(
        f"{started.by} started {started.total // started.per_node} x {started.per_node} processes "
        f"(machines x processes on each), but the configuration asks for {num_nodes} x {devices}. "
        "trainer.num_nodes is the number of machines, trainer.gpus (with trainer=ddp_sim: "
        "trainer.devices) the number of processes on each."
    )
