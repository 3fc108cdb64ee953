"""What a checkpoint is rebuilt to: its classifier, and the data to measure it on."""

import os
import re
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning._version import __version__
from cifar_lightning.checkpoints.io import ModelInfo, check_finite, read_checkpoint
from cifar_lightning.checkpoints.record import read_record
from cifar_lightning.checkpoints.trusted import check_interpolations, check_targets
from cifar_lightning.config.compose import CONF, key_of
from cifar_lightning.config.paths import DATA_PATHS
from cifar_lightning.data import ImageData
from cifar_lightning.errors import DataUnavailable, UserError
from cifar_lightning.run.build import build_data, instantiate_part, make_network
from cifar_lightning.tracking.run_folder import RunFolder
from cifar_lightning.training.module import Classifier, DistillationLoss

BATCH_SIZE = 256  # images at a time, where neither the command line nor a record says


def rebuild(checkpoint: str | Path) -> tuple[Classifier, ModelInfo]:
    """The classifier of a checkpoint, for inference, and what the checkpoint says of it.

    Nothing in the file is run, and of what it names only its network is called, which a file of
    conf/ must call as a model too.

    Raises:
        UserError: if the file is missing, is no checkpoint of this package, names a network that
            conf/ does not, or has weights that do not fit its network or are not finite.
    """
    checkpoint = Path(checkpoint)
    content = read_checkpoint(checkpoint)
    info = content.info
    check_targets(checkpoint, {"model": info.network})
    check_interpolations(checkpoint, info.network, resolved=True)
    versions = f"(written by cifar-lightning {info.version}; this is {__version__})"
    try:
        classifier = Classifier(
            make_network(info.network),
            classes=info.classes,
            image_size=info.image_size,
            mean=info.mean,
            std=info.std,
            optimizer=_not_for_training,
            scheduler=_not_for_training,
            augment=_not_for_training,
        )
    except (UserError, OmegaConfBaseException) as error:
        raise UserError(f"{checkpoint} cannot be rebuilt {versions}: {error}") from error
    try:
        classifier.load_state_dict(content.state_dict)
    except RuntimeError as error:  # a line for each tensor
        _, first, *more = (line.strip() for line in str(error).splitlines())
        others = f" And {len(more)} more." if more else ""
        raise UserError(
            f"{checkpoint}: its weights do not fit {info.network['_target_']} as it is here "
            f"{versions}. {first}{others}"
        ) from error
    check_finite(checkpoint, content.state_dict)
    return classifier.eval(), info


def _not_for_training(*_: Any) -> NoReturn:
    raise UserError("A classifier of a checkpoint is for inference; resume=PATH trains it further.")


def build_distillation(config: DictConfig, classifier: Classifier) -> DistillationLoss | None:
    """The distillation from the checkpoint that `teacher` names; None if it names none.

    Raises:
        UserError: if the checkpoint cannot be read, or has other classes or another image size than
            the classifier.
    """
    if config.get("teacher") is None:
        return None
    teacher, info = rebuild(config.teacher)
    facts = (list(classifier.classes), classifier.image_size)
    known = (list(teacher.classes), teacher.image_size)
    if facts != known:
        raise UserError(
            f"teacher={config.teacher} knows {_described(*known)}, but the data are "
            f"{_described(*facts)}."
        )
    distillation: DistillationLoss = instantiate_part(
        config.distillation, "distillation", teacher=teacher, name=info.model
    )
    return distillation


def rebuild_data(
    config: DictConfig, checkpoint: Path, info: ModelInfo
) -> tuple[ImageData, str, int]:
    """The data to measure a checkpoint on: what `data=` names, or those of its run.

    Args:
        config: of a command that takes `data=`, as `compose` gives it.
        checkpoint: its file.
        info: of its model.

    Returns:
        The data, the name of their option in conf/data/, and the size of batches to measure in.

    Raises:
        DataUnavailable: if the images are nowhere to be had.
        UserError: if the run's record cannot be read or calls what conf/ does not, or if the images
            are not of the classes and the size that the model knows.
    """
    folder = RunFolder.of(checkpoint)
    recorded: dict[str, Any] = {}
    option = info.data
    if folder.starts():
        record = read_record(folder)
        recorded = OmegaConf.to_container(record.data, resolve=True)  # type: ignore[assignment]
        option = str(record.choices.get("data"))
        check_targets(folder.config, {"data": recorded})
    if "data" in config:
        option, settings = config.choices.data, _typed_data(config, recorded)
    else:
        settings = _data_of_run(checkpoint, option, recorded)
    batch_size = settings.get("batch_size", BATCH_SIZE)
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"data.batch_size={batch_size} is not a count from 1.")
    if "batch_size" in settings:
        settings["batch_size"] = 1  # of a training, for which the images may be too few
    try:
        data = build_data(OmegaConf.create({"data": settings, "seed": 0}))
    except DataUnavailable as error:
        if "data" in config:
            raise
        raise DataUnavailable(
            f"{error}\nThat is the data of the training. data=OPTION names it anew, as "
            "data=folder data.path=DIR_OR_ARCHIVE."
        ) from error
    facts, known = (list(data.classes), data.image_size), (info.classes, info.image_size)
    if facts != known:
        raise UserError(
            f"data: images of {_described(*facts)}, but the checkpoint knows {_described(*known)}."
        )
    return data, option, batch_size


def _typed_data(config: DictConfig, recorded: dict[str, Any]) -> dict[str, Any]:
    """Data that `data=` names, with the settings of the run's that were not typed anew.

    They have no validation images, because they need not be enough for a training.
    """
    settings: Any = OmegaConf.to_container(config.data, resolve=True)
    typed = {key_of(override).removeprefix("data.") for override in config.overrides}
    kept = {*recorded} & {*settings} - {"_target_", "val_size", *DATA_PATHS} - typed
    settings |= {key: recorded[key] for key in kept}
    if "val_size" in settings and "val_size" not in typed:
        settings["val_size"] = 0
    return dict(settings)


def _data_of_run(checkpoint: Path, option: str, recorded: dict[str, Any]) -> dict[str, Any]:
    """The data of a checkpoint's run, where they are on this machine.

    Environment variables name them before the record does, but for what the run was typed with.

    Raises:
        DataUnavailable: if neither a record nor the environment names them.
    """
    file = CONF / "data" / f"{option}.yaml"
    settings: dict[str, Any] = recorded
    typed = RunFolder.of(checkpoint).read().settings
    if file in CONF.glob("data/*.yaml"):
        as_written = OmegaConf.load(file)
        here: Any = OmegaConf.to_container(as_written, resolve=True)
        raw: Any = OmegaConf.to_container(as_written)
        for key, value in raw.items():
            names = re.findall(r"oc\.env:(\w+)", repr(value))
            if f"data.{key}" not in typed and any(name in os.environ for name in names):
                settings = (settings or here) | {key: here[key]}
    if not settings:
        raise DataUnavailable(
            f"{checkpoint} is not in its run's folder, whose record would name its data. "
            "data=OPTION does it too, as data=folder data.path=DIR_OR_ARCHIVE."
        )
    return settings


def _described(classes: list[str], image_size: int) -> str:
    names = ", ".join(classes[:10]) + ", …" * (len(classes) > 10)
    return f"{len(classes)} classes ({names}) at {image_size} x {image_size} pixels"
