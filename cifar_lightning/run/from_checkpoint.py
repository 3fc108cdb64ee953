"""Rebuilds a classifier and its data from a checkpoint."""

import os
import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning._version import __version__
from cifar_lightning.checkpoints.io import ModelInfo, check_finite, read_checkpoint
from cifar_lightning.checkpoints.record import read_data
from cifar_lightning.checkpoints.trusted import check_interpolations, check_targets
from cifar_lightning.config.compose import CONF, key_of
from cifar_lightning.config.paths import DATA_PATHS
from cifar_lightning.data import ImageData
from cifar_lightning.errors import DataUnavailable, UserError
from cifar_lightning.run.build import build_data, instantiate_part, make_network
from cifar_lightning.tracking.console import note
from cifar_lightning.tracking.run_folder import RunFolder
from cifar_lightning.training.module import Classifier, classifier_of

BATCH_SIZE = 256  # the default, if neither the command line nor a record has one


def rebuild(checkpoint: str | Path) -> tuple[Classifier, ModelInfo]:
    """Rebuild the classifier of a checkpoint, for inference.

    No code in the file is run. The file names one class, the network's, which a file in conf/ has
    to name as a model too.

    Args:
        checkpoint: path of the file.

    Returns:
        The classifier, in evaluation mode, and the checkpoint's description of it.

    Raises:
        UserError: if the file is missing, is not a checkpoint of this package, names a network that
            conf/ does not, or has weights that do not fit the network or are not finite.
    """
    checkpoint = Path(checkpoint)
    content = read_checkpoint(checkpoint)
    info = content.info
    check_targets(checkpoint, {"model": info.network})
    check_interpolations(checkpoint, info.network, resolved=True)
    versions = f"(written by cifar-lightning {info.version}; this is {__version__})"
    try:
        network = make_network(info.network)
    except (UserError, OmegaConfBaseException) as error:
        raise UserError(f"{checkpoint} cannot be rebuilt {versions}: {error}") from error
    # Another module than ours may have weights beside the network's.
    weights = {
        name.removeprefix("network."): tensor
        for name, tensor in content.state_dict.items()
        if name.startswith("network.")
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:  # its message has one line per tensor
        _, first, *more = (line.strip() for line in str(error).splitlines())
        others = f" And {len(more)} more." if more else ""
        raise UserError(
            f"{checkpoint}: its weights do not fit the installed {info.network['_target_']} "
            f"{versions}. {first}{others}"
        ) from error
    check_finite(checkpoint, content.state_dict)
    classifier = classifier_of(network, info.classes, info.image_size, info.mean, info.std)
    return classifier.eval(), info


def add_distillation(config: DictConfig, module: pl.LightningModule) -> None:
    """Add the outputs of the network of the checkpoint `teacher` to the loss.

    Args:
        config: `teacher` and `distillation` are read.
        module: the student.

    Raises:
        UserError: if the module is no Classifier, the checkpoint cannot be read, or its classes or
            image size differ from the student's.
    """
    if not isinstance(module, Classifier):
        name = type(module).__name__
        raise UserError(f"teacher={config.teacher} needs a subclass of Classifier, but not {name}.")
    teacher, info = rebuild(config.teacher)
    of_student = (list(module.classes), module.image_size)
    of_teacher = (list(teacher.classes), teacher.image_size)
    if of_student != of_teacher:
        raise UserError(
            f"teacher={config.teacher} was trained on {_describe(*of_teacher)}, but the data has "
            f"{_describe(*of_student)}."
        )
    module.distillation = instantiate_part(
        config.distillation, "distillation", teacher=teacher, name=info.model
    )


def rebuild_data(
    config: DictConfig, checkpoint: Path, info: ModelInfo
) -> tuple[ImageData, str, int]:
    """Build the data to evaluate a checkpoint on: that of `data=`, or else that of its run.

    Args:
        config: from `compose`, with `data` if the command line has it.
        checkpoint: path of the file.
        info: the model's description in it.

    Returns:
        The data, its option in conf/data/, and the batch size for evaluation.

    Raises:
        DataUnavailable: if the images are not on this machine and cannot be downloaded, or if the
            run's data calls what conf/ does not.
        UserError: if the run's record cannot be read, or if the classes or the size of the images
            differ from the model's.
    """
    folder = RunFolder.of(checkpoint)
    recorded, option = read_data(folder)
    if "data" in config:
        option, settings = config.choices.data, _data_of_command(config, folder.config, recorded)
    else:
        option = option or info.data
        settings = _data_of_run(folder, checkpoint, option, recorded)
    batch_size = settings.get("batch_size", BATCH_SIZE)
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"data.batch_size={batch_size} must be a whole number of at least 1.")
    if "batch_size" in settings:
        settings["batch_size"] = 1  # there may be too few training images for a larger one
    try:
        data = build_data(OmegaConf.create({"data": settings, "seed": 0}))
    except UserError as error:
        if "data" in config:
            raise
        raise type(error)(
            f"{error}\nThis is the data that the run was trained on. data=OPTION gives other data, "
            "as in data=folder data.path=DIR_OR_ARCHIVE."
        ) from (error.__cause__ or error)
    of_data, of_model = (list(data.classes), data.image_size), (info.classes, info.image_size)
    if of_data != of_model:
        raise UserError(
            f"The data has {_describe(*of_data)}, but the checkpoint was trained on "
            f"{_describe(*of_model)}."
        )
    return data, option, batch_size


def _data_of_command(config: DictConfig, record: Path, recorded: dict[str, Any]) -> dict[str, Any]:
    """The settings of `data=`, with the run's values for keys that are not overridden.

    There are no validation images, because there may be too few images to draw them from.
    """
    settings: Any = OmegaConf.to_container(config.data, resolve=True)
    overridden = {key_of(override).removeprefix("data.") for override in config.overrides}
    names = {*recorded} & {*settings} - {"_target_", "val_size", *DATA_PATHS} - overridden
    kept = {key: recorded[key] for key in names}
    check_targets(record, {"data": kept})
    settings |= kept
    if "val_size" in settings and "val_size" not in overridden:
        settings["val_size"] = 0
    return dict(settings)


def _data_of_run(
    folder: RunFolder, checkpoint: Path, option: str, recorded: dict[str, Any]
) -> dict[str, Any]:
    """The settings of the data of a checkpoint's run.

    Environment variables override the record, but not the overrides of the run.
    """
    file = CONF / "data" / f"{option}.yaml"
    try:
        check_targets(folder.config, {"data": recorded})
    except UserError as error:
        raise DataUnavailable(str(error)) from error
    settings: dict[str, Any] = recorded
    overridden = folder.read().settings
    if file in CONF.glob("data/*.yaml"):
        as_written = OmegaConf.load(file)
        here: Any = OmegaConf.to_container(as_written, resolve=True)
        raw: Any = OmegaConf.to_container(as_written)
        for key, value in raw.items():
            names = [n for n in re.findall(r"oc\.env:(\w+)", repr(value)) if n in os.environ]
            if names and f"data.{key}" not in overridden:
                settings = (settings or here) | {key: here[key]}
                if here[key] != recorded.get(key, here[key]):  # perhaps other images
                    note(
                        "data",
                        f"{here[key]}, from the environment variable {names[0]}; the run was "
                        f"trained on {recorded[key]}",
                    )
    if not settings:
        raise DataUnavailable(
            f"{checkpoint} is not in its run's folder, so its data is unknown. Give the data with "
            "data=OPTION, as in data=folder data.path=DIR_OR_ARCHIVE."
        )
    return settings


def _describe(classes: list[str], image_size: int) -> str:
    names = ", ".join(classes[:10]) + ", …" * (len(classes) > 10)
    return f"{len(classes)} classes ({names}) at {image_size} x {image_size} pixels"
