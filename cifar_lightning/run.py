"""Builds a run from its configuration, and rebuilds one from a checkpoint.

The only place that instantiates configurations: everything else takes plain arguments.
"""

import copy
import csv
import platform
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger
from rich import get_console
from torch import nn

from cifar_lightning.board import BoardLogger
from cifar_lightning.budget import Budget, check, count
from cifar_lightning.classifier import Classifier
from cifar_lightning.cli import CONF
from cifar_lightning.console import EpochLines, banner
from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError

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
        watching.append(RichProgressBar(refresh_rate=5))
    trainer: pl.Trainer = instantiate_part(
        arguments,
        "trainer",
        callbacks=watching,
        logger=loggers,
        enable_progress_bar=get_console().is_terminal,
    )
    return trainer


def choose_devices(gpus: str | int | list[int], available: int) -> tuple[str, int | list[int]]:
    """Lightning's accelerator and devices for `trainer.gpus`.

    Args:
        gpus: `auto` is all there are, else the CPU; a count; or a list of indices.
        available: GPUs on this machine.

    Raises:
        UserError: if two or more, or an index, are asked for that are not there.
    """
    if gpus == "auto":
        return ("gpu", available) if available else ("cpu", 1)
    if isinstance(gpus, list):
        missing = [index for index in gpus if not 0 <= index < available]
        if missing or not gpus or len(set(gpus)) < len(gpus):
            raise UserError(
                f"trainer.gpus={gpus} names a GPU twice or one that does not exist: this machine "
                f"has {available}, counted from 0."
            )
        return "gpu", gpus
    if not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 0:
        raise UserError(f"trainer.gpus={gpus} is not auto, a count from 0, or a list as in [0,2].")
    if gpus == 0:
        return "cpu", 1
    if gpus == 1 and available == 0:
        banner("trainer.gpus=1, but this machine has no GPU: training on the CPU.", "No GPU")
        return "cpu", 1
    if gpus > available:
        raise UserError(f"trainer.gpus={gpus}, but this machine has {available} GPUs.")
    return "gpu", gpus


def fit(trainer: pl.Trainer, classifier: Classifier, data: ImageData, resume: str | None) -> bool:
    """Train; returns False after Ctrl-C, which Lightning turns into an exit of the program."""
    try:
        trainer.fit(classifier, data, ckpt_path=resume, weights_only=True)
    except SystemExit:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning left it ignored
        return False
    return True


def choose_precision(accelerator: str) -> str:
    """bf16 where the chip runs it fast, else 16-bit on a GPU, else 32-bit."""
    if accelerator == "gpu":
        return "bf16-mixed" if torch.cuda.get_device_capability() >= (8, 0) else "16-mixed"
    flags = _cpu_info().get("flags", "").split()
    return "bf16-mixed" if {"avx512_bf16", "amx_bf16"} & set(flags) else "32-true"


def cpu_name() -> str:
    """The processor's own name."""
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def _cpu_info() -> dict[str, str]:
    """What Linux says of the first processor; nothing on other systems."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


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
