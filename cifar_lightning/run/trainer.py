"""Builds callbacks, loggers and the Trainer from a configuration."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint, Timer
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from rich import get_console

from cifar_lightning.checkpoints.io import AtomicCheckpointIO, read_checkpoint
from cifar_lightning.data import ImageData
from cifar_lightning.data.datamodule import images_within
from cifar_lightning.errors import UserError
from cifar_lightning.run.build import instantiate_part
from cifar_lightning.run.devices import resolve_devices
from cifar_lightning.tracking.console import EpochLines, ProgressBar
from cifar_lightning.tracking.csv_logger import CSVLogger
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.tracking.run_logger import RunLogger
from cifar_lightning.training.callbacks import BestCheckpoint, LastCheckpoint, Throughput
from cifar_lightning.training.callbacks.checkpoints import BEST
from cifar_lightning.training.module import Classifier

CLASSIFIER = f"{Classifier.__module__}.{Classifier.__qualname__}"


def build_callbacks(config: DictConfig, data: ImageData) -> dict[str, Callback]:
    """Build the callbacks, by name.

    Args:
        config: `val_images` and `test_images` of callbacks are replaced by the numbers of images
            that a validation and the test read.
        data: set up.
    """
    trainer, validates = config.trainer, will_validate(config, data)
    val_images = len(data.val) if data.val is not None and validates else 0
    val_images = images_within(val_images, trainer.get("limit_val_batches"), data.batch_size)
    test_images = images_within(len(data.test), trainer.get("limit_test_batches"), data.batch_size)
    # A search does not test; its target is then for all test images.
    of_data = {"val_images": val_images, "test_images": test_images or len(data.test)}
    callbacks: dict[str, Callback] = {}
    for name, part in config.callbacks.items():
        if part is None:  # null removes it
            continue
        fitting = {key: value for key, value in of_data.items() if key in part}
        callback = instantiate_part(part, f"callbacks.{name}", _kind_of(name), **fitting)
        callbacks[str(name)] = callback
        if isinstance(callback, EarlyStopping) and "val/" in callback.monitor and not validates:
            raise UserError(
                f"callbacks.{name}: training ends before the first validation, so there is never a "
                f"{callback.monitor}."
            )
        if not isinstance(callback, ModelCheckpoint):
            continue
        if callback.dirpath is None:
            callback.dirpath = str(Path(config.run_dir) / "checkpoints" / str(name))
        if not validates and not _has_best(callback, config.resume):
            callback.monitor = None  # then the best checkpoint is the last
    _check_states(callbacks)
    return callbacks


def _has_best(callback: ModelCheckpoint, resume: str | None) -> bool:
    """Whether a resumed run has already chosen a best checkpoint by a validation."""
    if resume is None or callback.monitor is None or not isinstance(callback, BestCheckpoint):
        return False
    try:
        best = read_checkpoint(Path(callback.dirpath or "", BEST))
    except UserError:
        return False
    is_earlier = best.global_step <= read_checkpoint(resume).global_step
    return is_earlier and callback.monitor in best.validation


def _kind_of(name: object) -> type[Callback]:
    """The class that a callback of this name must have, because results are read from it."""
    kinds: dict[object, type[Callback]] = {
        "best": BestCheckpoint,
        "last": LastCheckpoint,
        "throughput": Throughput,
    }
    return kinds.get(name, Callback)


def _check_states(callbacks: dict[str, Callback]) -> None:
    """Refuse two callbacks whose states a checkpoint cannot tell apart."""
    names: dict[str, str] = {}
    for name, callback in callbacks.items():
        if type(callback).state_dict is Callback.state_dict:
            continue
        if (other := names.setdefault(callback.state_key, name)) != name:
            raise UserError(
                f"callbacks.{name} and callbacks.{other} are of the same class and would share one "
                "state in checkpoints. Leave one out, or change what it monitors or when it saves."
            )


def will_validate(config: DictConfig, data: ImageData) -> bool:
    """Whether a training will validate before it ends, if no callback or target ends it earlier.

    Args:
        config: its `trainer` is read.
        data: set up.
    """
    trainer = config.trainer
    if data.val is None or trainer.get("limit_val_batches") == 0:
        return False
    limit, interval = trainer.get("limit_train_batches"), trainer.get("val_check_interval", 1.0)
    batches = len(data.train_index) // data.batch_size  # of an epoch
    if limit is not None:
        batches = int(batches * limit) if isinstance(limit, float) else min(limit, batches)
    every = trainer.get("check_val_every_n_epoch", 1)
    if isinstance(interval, int) and every is not None and interval > batches:
        return True  # if no callback repeats images, Lightning refuses this
    if not isinstance(interval, int | float):  # a time
        return True
    first = int(batches * interval) if isinstance(interval, float) else interval
    first += ((every or 1) - 1) * batches
    last, steps = trainer.max_epochs * batches, trainer.get("max_steps", -1)
    if steps >= 0:
        last = min(last, steps * trainer.get("accumulate_grad_batches", 1))
    return bool(first <= last)


@contextmanager
def open_loggers(config: DictConfig, trainer: pl.Trainer) -> Iterator[Callable[[], None]]:
    """Give the Trainer its loggers: metrics.csv and the terminal now, the configured ones later.

    Yields:
        A function that opens the configured loggers. They are closed at the end.
    """
    resumed_at = None if config.resume is None else read_checkpoint(config.resume).logged_steps
    earlier = [] if config.resume is None else _earlier_rows(config.run_dir)
    loggers: list[Logger] = [
        CSVLogger(config.run_dir, steps_done=resumed_at),
        EpochLines(config.trainer.max_epochs),
    ]
    trainer.loggers = loggers

    def open_others() -> None:
        for name, part in config.logger.items():
            logger = instantiate_part(part, f"logger.{name}")
            if logger is None:  # it is disabled or could not start
                continue
            if not isinstance(logger, Logger):
                raise UserError(
                    f"logger.{name}: {part._target_} returns a {type(logger).__name__}, not a "
                    "Lightning Logger."
                )
            loggers.append(logger)
            if isinstance(logger, RunLogger):
                logger.skip_before(1 + int(max((row["step"] for row in earlier), default=-1)))
        trainer.loggers = loggers

    exit_code = 1
    try:
        yield open_others
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
            f"{run_dir}/metrics.csv cannot be read: {error}. To resume the run without the metrics "
            "so far, move the file away."
        ) from error
    return rows


def build_trainer(
    config: DictConfig, callbacks: dict[str, Callback], validates: bool = True
) -> pl.Trainer:
    """Build Lightning's Trainer, without loggers, which are opened after all checks.

    Args:
        config: `trainer`, `data.batch_size` and `run_dir` are read.
        callbacks: by name.
        validates: whether there will be a validation, see `will_validate`.

    Raises:
        UserError: if the devices do not exist, do not match the processes that were started, or
            cannot share a batch evenly; or if Lightning refuses the configuration.
    """
    arguments = _arguments(config, callbacks.values())
    if not validates:
        # With other values of the last two, ModelCheckpoint would wait for a validation.
        never = {"limit_val_batches": 0, "val_check_interval": 1.0, "check_val_every_n_epoch": 1}
        arguments |= never
    elif config.module._target_ != CLASSIFIER and arguments.get("num_sanity_val_steps") == 0:
        # One batch before the first step shows whether another module logs what is monitored.
        arguments["num_sanity_val_steps"] = 1
    watching = sorted(callbacks.values(), key=lambda c: getattr(c, "RUNS_LAST", False))
    has_bar = any(isinstance(callback, pl.callbacks.ProgressBar) for callback in watching)
    if arguments.get("enable_progress_bar") is None:
        arguments["enable_progress_bar"] = get_console().is_terminal or has_bar
    if arguments["enable_progress_bar"] and not has_bar:
        watching.append(ProgressBar(refresh_rate=5))
    return _instantiated(arguments, watching)


def check_trainer(config: DictConfig) -> None:
    """Build callbacks and a Trainer once before the data is read, to find mistakes early.

    Only callbacks of this package and of Lightning: constructors of others may have side effects.

    Raises:
        UserError: as `build_trainer`, or if a callback refuses its arguments.
    """
    with get_console().capture(), warnings.catch_warnings(action="ignore"), _no_log():
        callbacks = {
            str(name): instantiate_part(part, f"callbacks.{name}", _kind_of(name))
            for name, part in config.callbacks.items()
            if part and part["_target_"].startswith(("cifar_lightning.", "pytorch_lightning."))
        }
        _check_states(callbacks)
        trainer = build_trainer(config, callbacks)
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy) or isinstance(
        trainer.strategy, DeepSpeedStrategy
    ):
        name = type(trainer.strategy).__name__
        raise UserError(
            f"trainer.strategy: {name} divides the network, but here every device needs all of it. "
            "Use ddp."
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and left <= 0:
            limit = config.trainer.get("max_time")
            limit = f"trainer.max_time={limit}" if limit else "The duration of a Timer"
            raise UserError(f"{limit} leaves no time to train.")


@contextmanager
def _no_log() -> Iterator[None]:
    """Turn off logging, because what is built here is built again later, with logging."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


def _arguments(config: DictConfig, callbacks: Iterable[object]) -> dict[str, Any]:
    """The Trainer's arguments, except the callbacks.

    Args:
        config: `trainer`, `data.batch_size` and `run_dir` are read.
        callbacks: callbacks or their classes.
    """
    arguments: Any = OmegaConf.to_container(config.trainer, resolve=True)
    del arguments["compile"]
    _check_strategy(arguments.get("strategy"))
    resolve_devices(arguments, config.data.batch_size, callbacks)
    if arguments.get("benchmark") is None:
        # cuDNN measures which kernels are fastest; the choice may differ from run to run.
        arguments["benchmark"] = not arguments["deterministic"]
    return {
        **arguments,
        "logger": False,
        "use_distributed_sampler": False,  # the data module shares batches among the devices
        "default_root_dir": config.run_dir,
    }


def _check_strategy(strategy: Any) -> None:
    """Refuse strategies whose processes cannot return results, such as `spawn`."""
    method = strategy.get("start_method") if isinstance(strategy, dict) else strategy
    if any(word in str(method) for word in ("spawn", "fork", "notebook")):
        raise UserError(f"trainer.strategy: {method} cannot return a run's results. Use ddp.")


def _instantiated(arguments: dict[str, Any], callbacks: list[Callback]) -> pl.Trainer:
    """Create Lightning's Trainer, with `AtomicCheckpointIO` among its plugins."""
    plugins = arguments.pop("plugins", None) or []
    if isinstance(plugins, dict):
        plugins = [plugins]
    plugins = [instantiate_part(plugin, "trainer.plugins") for plugin in plugins]
    for plugin in plugins:
        if isinstance(plugin, Precision) and (chosen := arguments.get("precision")):
            raise UserError(
                f"trainer.plugins: {type(plugin).__name__} conflicts with trainer.precision="
                f"{chosen}. Leave it out, and set trainer.precision={plugin.precision}."
            )
    trainer: pl.Trainer = instantiate_part(
        arguments,
        "trainer",
        pl.Trainer,
        callbacks=callbacks,
        plugins=[*plugins, AtomicCheckpointIO()],
    )
    return trainer
