"""What a checkpoint is rebuilt to: its classifier, and the data of its training."""

import copy
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cifar_lightning._version import __version__
from cifar_lightning.checkpoints.io import check_finite, read_checkpoint
from cifar_lightning.checkpoints.trusted import trusted_config
from cifar_lightning.config.paths import PLACES
from cifar_lightning.data import ImageData
from cifar_lightning.errors import DataUnavailable, UserError
from cifar_lightning.run.build import build_data, build_network, make_classifier, named
from cifar_lightning.training.distillation import Teacher
from cifar_lightning.training.module import Classifier


def rebuild(checkpoint: str | Path) -> tuple[Classifier, DictConfig]:
    """The classifier of a checkpoint, ready to evaluate, and the configuration of its training.

    Nothing in the file is run: see `read_checkpoint` and `trusted_config`.

    Raises:
        UserError: if the file is missing, is no checkpoint of this package, wants to call what
            conf/ does not, or has weights that do not fit its network or are no finite numbers.
    """
    content = read_checkpoint(checkpoint)
    facts = content.data_facts
    # Nothing is made of these, so whatever they call does not matter.
    unused = ("callbacks", "logger", "trainer.profiler")
    config = trusted_config(checkpoint, content.config, left_out=unused)
    OmegaConf.resolve(config)  # nothing is left to be evaluated, here or in another configuration
    versions = f"(written by cifar-lightning {content.version}; this is {__version__})"
    try:
        network = build_network(config, len(facts.classes), facts.image_size)
        classifier = make_classifier(config, network, facts)
    except (UserError, OmegaConfBaseException) as error:
        raise UserError(f"{checkpoint} cannot be rebuilt {versions}: {error}") from error
    try:
        classifier.load_state_dict(content.state_dict)
    except RuntimeError as error:  # a line for each tensor
        _, first, *more = (line.strip() for line in str(error).splitlines())
        others = f" And {len(more)} more." if more else ""
        raise UserError(
            f"{checkpoint}: its weights do not fit {config.model._target_} as it is here "
            f"{versions}. {first}{others}"
        ) from error
    check_finite(checkpoint, content.state_dict)
    return classifier.eval(), config


def build_teacher(config: DictConfig, classifier: Classifier) -> Teacher:
    """The teacher that `teacher` names, for a classifier.

    Raises:
        UserError: if it is no checkpoint, or if its images or classes are others.
    """
    teacher, trained = rebuild(config.teacher)
    facts = (list(classifier.classes), classifier.image_size)
    known = (list(teacher.classes), teacher.image_size)
    if facts != known:
        raise UserError(
            f"teacher={config.teacher} knows {_described(*known)}, but the data are "
            f"{_described(*facts)}."
        )
    with named("teacher"):
        return Teacher(
            teacher, trained.choices.model, config.teacher_weight, config.teacher_temperature
        )


def rebuild_data(config: DictConfig, trained: DictConfig, classifier: Classifier) -> ImageData:
    """The data of a checkpoint's training, or what `data=` names instead.

    Another source has no validation part, and needs not have enough images for a training; it keeps
    the training's batch size and the like. What was typed goes before.

    Args:
        config: of a command that takes `data=`, as `cli.compose` gives it.
        trained: the configuration of the training.
        classifier: the checkpoint's.

    Raises:
        DataUnavailable: if the images are nowhere to be had.
        UserError: if they are not of the classes and the size that the classifier knows.
    """
    config = copy.deepcopy(config)
    typed = {override.lstrip("+").partition("=")[0] for override in config.overrides}
    batch_size = None
    with open_dict(config):
        if "data" in config:
            for key, value in trained.data.items():
                of_another_machine = key in PLACES or key == "_target_"
                if key in config.data and not of_another_machine and f"data.{key}" not in typed:
                    config.data[key] = value
            if "val_size" in config.data and "data.val_size" not in typed:
                config.data.val_size = 0
            if "batch_size" in config.data and "data.batch_size" not in typed:
                config.data.batch_size, batch_size = 1, trained.data.get("batch_size", 256)
                if type(batch_size) is not int or batch_size < 1:
                    raise UserError(f"The checkpoint has no batch size from 1, but {batch_size!r}.")
        else:
            config.data = trained.data
        config.seed = trained.seed
    try:
        data = build_data(config)
    except DataUnavailable as error:
        if "data" in typed:
            raise
        raise DataUnavailable(
            f"{error}\nThat is the data of the training. data=OPTION names it anew, as "
            "data=folder data.path=DIR_OR_ARCHIVE."
        ) from error
    if batch_size is not None:
        data.batch_size = batch_size
    facts = (list(data.classes), data.image_size)
    known = (list(classifier.classes), classifier.image_size)
    if facts != known:
        raise UserError(
            f"data: images of {_described(*facts)}, but the checkpoint knows {_described(*known)}."
        )
    return data


def _described(classes: list[str], image_size: int) -> str:
    names = ", ".join(classes[:10]) + ", …" * (len(classes) > 10)
    return f"{len(classes)} classes ({names}) at {image_size} x {image_size} pixels"
