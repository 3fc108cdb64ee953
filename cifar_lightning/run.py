"""Builds a run from its configuration, and rebuilds one from a checkpoint.

The only place that instantiates configurations: everything else takes plain arguments.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from rich import get_console
from torch import nn

from cifar_lightning.board import BoardLogger
from cifar_lightning.budget import Budget, check, count
from cifar_lightning.callbacks import RevisitHardest
from cifar_lightning.checkpoint import AtomicCheckpointIO, read_checkpoint
from cifar_lightning.classifier import Classifier
from cifar_lightning.cli import CONF
from cifar_lightning.console import EpochLines, ProgressBar
from cifar_lightning.curves import Curves
from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError
from cifar_lightning.hardware import choose_devices, choose_precision

# The first layer's starting filters come from as many pixels as 5,000 CIFAR images have; larger
# images are fewer, so that their patches fit into memory.
PIXELS_FOR_INITIALISATION = 5000 * 32 * 32

NO_DDP_IN_SWEEPS = (
    "A job of a sweep (-m) trains on one device: the processes of the others would start the whole "
    "sweep again. Take trainer.gpus=1."
)


@contextmanager
def named(key: str) -> Iterator[None]:
    """Turn what a constructor or function refuses into a message that names the key.

    Raises:
        UserError: for a value or an argument that is refused.
    """
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(f"{key}: {error.__cause__ or error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {error}") from error


def instantiate_part(config: Any, key: str, **arguments: Any) -> Any:
    """Hydra's `instantiate`, with an error that names the key.

    Raises:
        UserError: if the target refuses its arguments.
    """
    with named(key):
        return instantiate(config, **arguments)


def build_data(config: DictConfig) -> ImageData:
    """The data, prepared, loaded and split.

    Raises:
        DataUnavailable: if it is nowhere to be had.
        UserError: if it is damaged or does not suit the configuration.
    """
    data: ImageData = instantiate_part(config.data, "data", seed=config.seed)
    data.prepare_data()
    with named("data"):
        data.setup()
    return data


def build_network(config: DictConfig, num_classes: int, image_size: int) -> nn.Module:
    """The network; the data's class count and image size go into the keys that its options have."""
    facts = {"num_classes": num_classes, "image_size": image_size}
    fitting = {key: value for key, value in facts.items() if key in config.model}
    network: nn.Module = instantiate_part(config.model, "model", **fitting)
    return network


def build_classifier(config: DictConfig, data: ImageData) -> tuple[Classifier, Budget]:
    """The classifier with its starting weights, and what the budget counted.

    Raises:
        UserError: if the network breaks the budget.
    """
    network = build_network(config, len(data.classes), data.image_size)
    budget = count(network, data.image_size)
    with named("budget"):
        check(budget, **config.budget)
    facts = {
        "classes": list(data.classes),
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
    }
    classifier = _classifier(config, network, facts)
    images = PIXELS_FOR_INITIALISATION // data.image_size**2
    sample = data.train.images[data.train_index[:images]]
    initialise = instantiate_part(config.init, "init")
    with named("init"):
        initialise(network, classifier.normalise(sample))
    _try_out(classifier, data)
    return classifier, budget


def _try_out(classifier: Classifier, data: ImageData) -> None:
    """Make now what the first step would make, so that a mistake is named before the training."""
    with named("optimizer"):
        optimizer = classifier.make_optimizer(classifier.network.parameters())
    with named("scheduler"):
        classifier.make_scheduler(optimizer, 100)
    with named("augment"):
        index = torch.arange(2)
        classifier.augment(data.test.images[index], index, 0, torch.Generator())


def _classifier(config: DictConfig, network: nn.Module, facts: dict[str, Any]) -> Classifier:
    optimizer = instantiate_part(config.optimizer, "optimizer")
    scheduler = instantiate_part(config.scheduler, "scheduler")
    augment = instantiate_part(config.augment, "augment")
    with named("label_smoothing"):
        classifier = Classifier(
            network,
            classes=facts["classes"],
            mean=facts["mean"],
            std=facts["std"],
            optimizer=optimizer,
            scheduler=scheduler,
            augment=augment,
            label_smoothing=config.label_smoothing,
            seed=config.seed,
        )
    # What a checkpoint needs to rebuild itself, as primitives, so that it loads without pickle.
    # Interpolations stay, so that an override at a resume reaches all that depend on it; but the
    # data's are of this machine's environment.
    kept = copy.deepcopy(config)
    OmegaConf.resolve(kept.data)
    content = {"config": OmegaConf.to_container(kept), "data_facts": facts}
    classifier.save_hyperparameters(content, logger=False)
    return classifier


def rebuild(checkpoint: str | Path) -> tuple[Classifier, DictConfig]:
    """The classifier of a checkpoint, ready to evaluate, and the configuration of its training.

    The configuration in the file says which classes are made: open only files that you trust.

    Raises:
        UserError: if the file is missing or is no checkpoint of this package.
    """
    content = read_checkpoint(checkpoint)
    facts = content["data_facts"]
    config: DictConfig = OmegaConf.create(content["config"])
    network = build_network(config, len(facts["classes"]), facts["image_size"])
    classifier = _classifier(config, network, facts)
    classifier.load_state_dict(content["state_dict"])
    return classifier.eval(), config


def with_option(config: DictConfig, group: str, option: str) -> DictConfig:
    """The configuration with another option in one of its groups."""
    result: DictConfig = copy.deepcopy(config)
    with open_dict(result):
        result[group] = OmegaConf.load(CONF / group / f"{option}.yaml")
        result.choices[group] = option
    return result


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
    """`metrics.csv`, the lines on the screen, and the configured boards, closed at the end."""
    resumed_at = None if config.resume is None else read_checkpoint(config.resume)["global_step"]
    loggers: list[Logger] = [
        Curves(config.run_dir, up_to_step=resumed_at),
        EpochLines(config.trainer.max_epochs),
    ]
    for name, part in config.logger.items():
        logger = instantiate_part(part, f"logger.{name}")
        if logger is not None:  # a board that could not be opened, or is not wanted
            loggers.append(logger)
    boards = [logger for logger in loggers if isinstance(logger, BoardLogger)]
    try:
        for board in boards:
            board.log_hyperparams(OmegaConf.to_container(config, resolve=True))
        yield loggers
    except BaseException:
        for board in boards:
            board.close(exit_code=1)
        raise
    for board in boards:
        board.close()


def build_trainer(
    config: DictConfig, callbacks: dict[str, Callback], has_validation: bool = True
) -> pl.Trainer:
    """Lightning's Trainer on the devices and in the precision that the configuration asks for.

    Without loggers: they write to the run's folder, so nothing may be wrong any more before they
    are opened.

    Raises:
        UserError: if the devices are not there or the configuration is refused.
    """
    arguments = OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(arguments, dict)
    del arguments["compile"]
    plugins = [instantiate_part(p, "trainer.plugins") for p in arguments.pop("plugins", None) or []]
    one_device = None
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        one_device = NO_DDP_IN_SWEEPS
    elif any(isinstance(callback, RevisitHardest) for callback in callbacks.values()):
        one_device = RevisitHardest.ONE_DEVICE
    accelerator, devices = choose_devices(
        arguments.pop("gpus"), torch.cuda.device_count(), config.data.batch_size, one_device
    )
    arguments.setdefault("accelerator", accelerator)
    arguments.setdefault("devices", devices)
    if one_device and isinstance(arguments["devices"], int) and arguments["devices"] > 1:
        raise UserError(one_device)
    # cuDNN picks its fastest kernels by trying them, which may differ from run to run.
    arguments.setdefault("benchmark", not arguments["deterministic"])
    if arguments["precision"] == "auto":
        arguments["precision"] = choose_precision(arguments["accelerator"])
    if not has_validation:
        arguments["limit_val_batches"] = 0
    watching = list(callbacks.values())
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
    return trainer
