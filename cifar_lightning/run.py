"""Builds a run from its configuration, and rebuilds one from a checkpoint.

The only place that instantiates configurations: everything else takes plain arguments.
"""

import copy
import csv
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger
from rich import get_console
from torch import nn

from cifar_lightning.board import BoardLogger
from cifar_lightning.budget import Budget, check, count
from cifar_lightning.classifier import Classifier
from cifar_lightning.cli import CONF
from cifar_lightning.console import EpochLines, ProgressBar
from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError
from cifar_lightning.hardware import choose_devices, choose_precision

# Images that the first layer's starting filters are computed from; more change nothing.
IMAGES_FOR_INITIALISATION = 5000


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what Lightning says at every start and is true of no mistake here."""
    with warnings.catch_warnings():
        for message in (
            ".*does not have many workers.*",  # batches come from memory by one indexing
            ".*exists and is not empty.*",  # the run's folder holds Hydra's files already
            ".*smaller than the logging interval.*",  # metrics are logged once a validation
            ".*it is recommended to use .* ensure each sample.*",  # BatchOrder repeats none
            ".*isinstance\\(treespec, LeafSpec\\).*",  # between torch 2.15 and Lightning 2.6
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def instantiate_part(config: Any, key: str, **arguments: Any) -> Any:
    """Hydra's `instantiate`, with the error that was meant.

    Raises:
        UserError: if the target refuses its arguments; names the key.
    """
    try:
        return instantiate(config, **arguments)
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(f"{key}: {error.__cause__ or error}") from error


def build_data(config: DictConfig) -> ImageData:
    """The data, prepared, loaded and split.

    Raises:
        DataUnavailable: if it is nowhere to be had.
        UserError: if it is damaged or does not suit the configuration.
    """
    if config.data.val_size == 0 and config.target_accuracy is not None:
        raise UserError(
            "data.val_size=0 leaves no images to see the target on: say target_accuracy=null too."
        )
    data: ImageData = instantiate_part(config.data, "data", seed=config.seed)
    data.prepare_data()
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
    check(budget, **config.budget)
    facts = {
        "classes": list(data.classes),
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
    }
    classifier = _classifier(config, network, facts)
    if config.init is not None:
        sample = data.train.images[data.train_index[:IMAGES_FOR_INITIALISATION]]
        instantiate_part(config.init, "init")(network, classifier.normalise(sample))
    return classifier, budget


def _classifier(config: DictConfig, network: nn.Module, facts: dict[str, Any]) -> Classifier:
    classifier = Classifier(
        network,
        classes=facts["classes"],
        mean=facts["mean"],
        std=facts["std"],
        optimizer=instantiate_part(config.optimizer, "optimizer"),
        scheduler=instantiate_part(config.scheduler, "scheduler"),
        augment=instantiate_part(config.augment, "augment"),
        label_smoothing=config.label_smoothing,
        seed=config.seed,
    )
    # What a checkpoint needs to rebuild itself, as primitives, so that it loads without pickle.
    primitives = OmegaConf.to_container(config, resolve=True)
    classifier.save_hyperparameters({"config": primitives, "data_facts": facts})
    if config.trainer.compile:
        network.compile()  # in place: the state dict keeps its keys
    return classifier


def rebuild(checkpoint: str | Path) -> tuple[Classifier, DictConfig]:
    """The classifier of a checkpoint, with its weights, and the configuration it was trained by.

    Raises:
        UserError: if the file is missing or is no checkpoint of this package.
    """
    content = read_checkpoint(checkpoint)
    config, facts = OmegaConf.create(content["config"]), content["data_facts"]
    network = build_network(config, len(facts["classes"]), facts["image_size"])
    classifier = _classifier(config, network, facts)
    classifier.load_state_dict(content["state_dict"])
    return classifier, config


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint's `config`, `data_facts`, `state_dict` and `global_step`; runs no code of it.

    Raises:
        UserError: if the file is missing or is no checkpoint of this package.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        hyper_parameters = content["hyper_parameters"]
        return {
            "config": hyper_parameters["config"],
            "data_facts": hyper_parameters["data_facts"],
            "state_dict": content["state_dict"],
            "global_step": content["global_step"],
        }
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file.") from error
    except Exception as error:  # torch.load raises whatever the bytes lead it into
        raise UserError(f"{path} is not a checkpoint of cifar-lightning: {error}") from error


def resumed(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration to resume by: the checkpoint's, with the command line's overrides on top.

    Args:
        config: as composed from the command line; its `resume` names the checkpoint.
        overrides: the command line's, such as `trainer.max_epochs=10` or `optimizer=sgd`.

    Raises:
        UserError: if the checkpoint is missing or is none, or an override is an experiment, which
            changes more than can be told apart.
    """
    result: DictConfig = OmegaConf.create(read_checkpoint(config.resume)["config"])
    keys = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides]
    if "experiment" in keys:
        raise UserError("resume takes its experiment from the checkpoint: leave experiment= out.")
    with open_dict(result):
        for key in [*keys, "run_dir", "resume"]:
            OmegaConf.update(result, key, OmegaConf.select(config, key), merge=False)
            if key in config.choices:
                result.choices[key] = config.choices[key]
    return result


def command_line_overrides() -> list[str]:
    """What was typed after the command; nothing where Hydra's main did not start this."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def with_option(config: DictConfig, group: str, option: str) -> DictConfig:
    """The configuration with another option in one of its groups."""
    result: DictConfig = copy.deepcopy(config)
    with open_dict(result):
        result[group] = OmegaConf.load(CONF / group / f"{option}.yaml")
        result.choices[group] = option
    return result


def build_callbacks(config: DictConfig, has_validation: bool) -> dict[str, Callback]:
    """The callbacks by their names in the configuration."""
    callbacks: dict[str, Callback] = {}
    for name, part in config.callbacks.items():
        callbacks[str(name)] = callback = instantiate_part(part, f"callbacks.{name}")
        if isinstance(callback, ModelCheckpoint) and not has_validation:
            # Nothing to choose by: the best checkpoint is the last.
            callback.monitor = None
    return callbacks


@contextmanager
def open_loggers(config: DictConfig) -> Iterator[list[Logger]]:
    """`metrics.csv`, the lines on the screen, and the configured boards, closed at the end."""
    csv_logger = CSVLogger(config.run_dir, name="", version="")
    if config.resume is not None:
        _keep_rows(csv_logger, read_checkpoint(config.resume)["global_step"])
    loggers: list[Logger] = [csv_logger, EpochLines(config.trainer.max_epochs)]
    for name, part in config.logger.items():
        logger = instantiate_part(part, f"logger.{name}")
        if logger is not None:  # a board that could not be opened, or is not wanted
            loggers.append(logger)
    boards = [logger for logger in loggers if isinstance(logger, BoardLogger)]
    try:
        yield loggers
    except BaseException:
        for board in boards:
            board.close(exit_code=1)
        raise
    for board in boards:
        board.close()


def build_trainer(
    config: DictConfig,
    callbacks: dict[str, Callback],
    loggers: list[Logger],
    has_validation: bool = True,
) -> pl.Trainer:
    """Lightning's Trainer on the devices and in the precision that the configuration asks for."""
    arguments = OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(arguments, dict)
    del arguments["compile"]
    accelerator, devices = choose_devices(arguments.pop("gpus"), torch.cuda.device_count())
    arguments.setdefault("accelerator", accelerator)
    arguments.setdefault("devices", devices)
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
        logger=loggers,
        enable_progress_bar=get_console().is_terminal,
    )
    return trainer


def fit(trainer: pl.Trainer, classifier: Classifier, data: ImageData, resume: str | None) -> bool:
    """Train; returns False after Ctrl-C."""
    return _unless_interrupted(
        trainer, lambda: trainer.fit(classifier, data, ckpt_path=resume, weights_only=True)
    )


def evaluate_best(
    trainer: pl.Trainer, classifier: Classifier, data: ImageData, checkpoint: Callback
) -> bool:
    """Read the test images once, with the best checkpoint; returns False after Ctrl-C."""
    assert isinstance(checkpoint, ModelCheckpoint)
    best = checkpoint.best_model_path
    return _unless_interrupted(
        trainer,
        lambda: trainer.test(classifier, data, ckpt_path=best, weights_only=True, verbose=False),
    )


def _unless_interrupted(trainer: pl.Trainer, work: Callable[[], Any]) -> bool:
    """Lightning turns Ctrl-C into an exit of the program; here it is an answer."""
    try:
        work()
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning left it ignored
        return False
    return True


def _keep_rows(logger: CSVLogger, up_to_step: int) -> None:
    """Put a resumed run's rows up to the checkpoint back: opening the logger deletes its file."""
    rows = [row for row in read_rows(logger.log_dir) if row["step"] <= up_to_step]
    logger.experiment.metrics = rows
    logger.save()


def read_rows(run_dir: str | Path) -> list[dict[str, float]]:
    """The rows of a run's `metrics.csv`, without the blank cells; none if there is no such file."""
    file = Path(run_dir) / "metrics.csv"
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(opened)]
