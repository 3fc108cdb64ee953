"""How checkpoints are written, what they tell, and how a run goes on from one."""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from pydantic import ConfigDict, Field, TypeAdapter
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from cifar_lightning import __version__
from cifar_lightning.atomic import atomic_write
from cifar_lightning.callbacks import Interruption
from cifar_lightning.errors import UserError
from cifar_lightning.places import PLACES
from cifar_lightning.trusted import trusted_config

# Under which Lightning keeps the state of a callback: its class.
INTERRUPTED = Interruption.__qualname__

Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class DataFacts:
    """What a network has to know of the data that it was trained on; see `ImageData`."""

    classes: Annotated[list[str], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=1)]
    mean: Annotated[list[Finite], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[Finite, Field(gt=0)]], Field(min_length=3, max_length=3)]


@dataclass(frozen=True)
class Checkpoint:
    """What is read of a checkpoint.

    Attributes:
        version: of the package that wrote it.
        config: of its training; see `trusted_config`.
        data_facts: of the data of its training.
        state_dict: of the classifier.
        global_step: optimizer steps so far.
        can_go_on: whether it is of the end of an epoch, or of a step at which the training was
            told to stop, and not of a validation within an epoch.
        has_training_state: whether it holds more than the network, as the optimizer's state.
    """

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    version: str
    config: dict[str, Any]
    data_facts: DataFacts
    state_dict: dict[str, Tensor]
    global_step: int
    can_go_on: bool
    has_training_state: bool


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint in one step.

    Lightning's own writes to the system's temporary folder first, and then copies over the old
    checkpoint where that folder is on another disk: a full disk would leave neither.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint to a path on this machine."""
        path = Path(path)
        if path.parent not in self._made:  # once: in the place of a vanished disk nothing is put
            path.parent.mkdir(parents=True, exist_ok=True)
            self._made.add(path.parent)
        with atomic_write(path) as file:
            torch.save(checkpoint, file)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint as data: only primitives and tensors are unpickled.

    Raises:
        UserError: if the file is missing or is no checkpoint of this package.
    """
    try:
        _refuse_to_inflate(Path(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file.") from error
    except IsADirectoryError as error:
        raise UserError(
            f"{path} is a folder. Name a checkpoint, such as {path}/checkpoints/best.ckpt."
        ) from error
    except Exception as error:  # torch.load raises whatever the bytes lead it into
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} is not a checkpoint of cifar-lightning: {reason}") from error
    try:
        hyper_parameters = content["hyper_parameters"]
        _check_counts(content["loops"])
        progress = content["loops"]["fit_loop"]
        epochs = progress["epoch_progress"]["current"]
        at_epoch_end = (
            progress["epoch_loop.batch_progress"]["is_last_batch"]
            or epochs["processed"] == epochs["started"]  # it was ended early, at the target
        )
        return TypeAdapter(Checkpoint).validate_python(
            {
                "version": hyper_parameters.get("version", "0.1.0"),  # which did not say
                "config": hyper_parameters["config"],
                "data_facts": hyper_parameters["data_facts"],
                "state_dict": content["state_dict"],
                "global_step": content["global_step"],
                "can_go_on": at_epoch_end or INTERRUPTED in content.get("callbacks", {}),
                "has_training_state": "optimizer_states" in content,
            }
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not a checkpoint of cifar-lightning, or of a version that this one "
            f"({__version__}) does not know."
        ) from error


def check_finite(path: str | Path, state_dict: Mapping[str, Tensor]) -> None:
    """Refuse weights that are no numbers: every answer would be NaN, and look like one.

    Args:
        path: of the checkpoint, for the message.
        state_dict: its weights and statistics.

    Raises:
        UserError: names the first tensor that is not all finite.
    """
    for name, tensor in state_dict.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{path}: {name} of its weights is not all finite numbers: the training "
                "diverged, or the file is damaged. Take an earlier checkpoint."
            )


def _check_counts(progress: Any) -> None:
    """Of epochs and steps: from far below zero, a training would go on for ever.

    Raises:
        ValueError: if one is negative, or no number.
    """
    if isinstance(progress, int | float) and not progress >= 0:
        raise ValueError(f"{progress} is no count")
    if isinstance(progress, list):
        progress = dict(enumerate(progress))
    if isinstance(progress, dict):
        if "completed" in progress and not all(isinstance(n, int) for n in progress.values()):
            raise ValueError(f"{progress} are no counts")
        for part in progress.values():
            _check_counts(part)


def _refuse_to_inflate(path: Path) -> None:
    """PyTorch reads, but never writes, files whose content takes more memory than they have bytes.

    Raises:
        ValueError: for one that does.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, more than it has")


def resumed(config: DictConfig) -> DictConfig:
    """The configuration to resume by: the checkpoint's, with the command line's overrides on top.

    Args:
        config: as composed from the command line; its `resume` names the checkpoint.

    Raises:
        UserError: if the checkpoint is missing, is none, is of the middle of an epoch, or has
            weights that are no numbers, or if an override changes what a checkpoint decides.
    """
    path = Path(config.resume).expanduser()
    checkpoint = read_checkpoint(path)
    if not checkpoint.has_training_state:
        raise UserError(
            f"resume={path} holds the network alone, as the copies on W&B do. Take last.ckpt of "
            "the run's folder."
        )
    if not checkpoint.can_go_on:
        raise UserError(
            f"resume={path} was saved in the middle of an epoch, whose remaining images "
            "nobody knows. Take last.ckpt."
        )
    check_finite(path, checkpoint.state_dict)
    result = trusted_config(path, checkpoint.config, own=config)
    unknown = {"sweep": None, "teacher": None, "cutmix": 0.0}  # to runs of earlier versions
    unknown |= {key: config[key] for key in ("teacher_weight", "teacher_temperature")}
    with open_dict(result):
        for key, value in unknown.items():
            result.setdefault(key, value)
    if missing := [str(key) for key in config if key not in result]:
        raise UserError(
            f"resume={path} was written by an earlier version of cifar-lightning, with which it "
            f"can be resumed: its configuration has no {', '.join(missing)}. evaluate, predict and "
            "export take it."
        )
    keys = [override.lstrip("+").partition("=")[0] for override in config.overrides]
    for key in keys:
        if _is_decided(key) and not _is_the_same(key, config, result):
            raise UserError(f"resume takes this from the checkpoint: leave {key}= out.")
    keys = [key for key in keys if not _is_decided(key)]
    with open_dict(result):
        for key in [*keys, "run_dir"]:
            OmegaConf.update(result, key, OmegaConf.select(config, key), merge=False)
            if key in config.choices:
                result.choices[key] = config.choices[key]
        result.resume = str(path)
    callbacks = result.callbacks if OmegaConf.is_dict(result.callbacks) else {}
    for name, part in callbacks.items():
        if not OmegaConf.is_dict(part) or "dirpath" not in part:
            continue
        # Lightning deletes what an earlier best checkpoint was, by a path of the checkpoint's own.
        place, run_dir = part.dirpath, Path(result.run_dir).resolve()
        inside = isinstance(place, str) and Path(place).resolve().is_relative_to(run_dir)
        if not inside and f"callbacks.{name}.dirpath" not in keys:
            raise UserError(
                f"resume={path} wants callbacks.{name} to write to {place}, outside of the run's "
                f"folder. If you want that too, type callbacks.{name}.dirpath={place} again."
            )
    return result


def _is_decided(key: str) -> bool:
    """Whether a resume may not change a key.

    A network, an optimizer or another seed would not fit what is saved, and another split would
    validate on images that were trained on. `trainer=ddp` would bring that option's number of
    epochs along; its keys can be set one by one.
    """
    group, _, rest = key.partition(".")
    if group == "data":
        return rest not in PLACES
    decided = ("experiment", "init", "model", "optimizer", "seed")
    return group in decided or key == "trainer" or key.startswith("~")


def _is_the_same(key: str, typed: DictConfig, saved: DictConfig) -> bool:
    """Whether a configuration has in a key what another one has, places on a machine aside."""
    if key == "experiment":
        return bool(typed.choices.get(key) == saved.choices.get(key))
    one, other = (_plain(config, key.lstrip("~")) for config in (typed, saved))
    return bool(one == other)


def _plain(config: DictConfig, key: str) -> Any:
    value = OmegaConf.select(config, key)
    if not OmegaConf.is_config(value):
        return value
    content: Any = OmegaConf.to_container(value, resolve=True)
    if key == "data":
        return {name: part for name, part in content.items() if name not in PLACES}
    return content


def find_checkpoint(path: str | None) -> Path:
    """The checkpoint that was typed.

    Raises:
        UserError: if none was, or it is not there.
    """
    if path is None:
        newest = max(Path("runs").glob("train/**/checkpoints/best.ckpt"), default=None, key=_age)
        example = newest or "runs/train/…/checkpoints/best.ckpt"
        raise UserError(f"Which checkpoint? As in: checkpoint={example}")
    found = Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's refuses a file ~mine.ckpt)
    if not found.exists():
        raise UserError(f"checkpoint={path}: there is no such file.")
    return found


def _age(file: Path) -> float:
    return file.stat().st_mtime
