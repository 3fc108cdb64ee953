"""How checkpoints are written and read, and what they hold."""

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from cifar_lightning._version import __version__
from cifar_lightning.errors import UserError
from cifar_lightning.system.atomic import atomic_write
from cifar_lightning.training.callbacks import Interruption

# Under which Lightning keeps the state of a callback: its class.
INTERRUPTED = Interruption.__qualname__

MOST_VALUES = 100_000  # in what a checkpoint says of its model; ours have some dozens

Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class ModelInfo:
    """What inference needs to know of a trained model, as primitives; every checkpoint holds it.

    Attributes:
        version: of the package that wrote it.
        model: name of its option in conf/model/.
        network: the network's `_target_` and arguments.
        data: name of the option in conf/data/ that it was trained on.
        classes: their names, in the order of the logits.
        image_size: height and width of the images, in pixels.
        mean, std: of the training images by channel, on the scale 0 to 1.
        precision: `trainer.precision` of the training.
        deterministic: `trainer.deterministic` of the training.
    """

    version: str
    model: str
    network: dict[str, Any]
    data: str
    classes: Annotated[list[str], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=1)]
    mean: Annotated[list[Finite], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[Finite, Field(gt=0)]], Field(min_length=3, max_length=3)]
    precision: str | int | None
    deterministic: bool | Literal["warn"] | None


@dataclass(frozen=True)
class Checkpoint:
    """What is read of a checkpoint.

    Attributes:
        info: of its model.
        state_dict: of the classifier.
        global_step: optimizer steps so far.
        can_be_resumed: whether it is of the end of an epoch, or of a step at which the run was
            interrupted, and not of a validation within an epoch.
        has_training_state: whether it holds more than the network, as the optimizer's state.
    """

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    info: ModelInfo
    state_dict: dict[str, Tensor]
    global_step: int
    can_be_resumed: bool
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
        _check_length(content["hyper_parameters"])
        _check_counts(content["loops"])
        if any(t.nbytes > t.untyped_storage().nbytes() for t in content["state_dict"].values()):
            raise ValueError("a tensor is larger than what is stored of it")
        progress = content["loops"]["fit_loop"]
        epochs = progress["epoch_progress"]["current"]
        at_epoch_end = (
            progress["epoch_loop.batch_progress"]["is_last_batch"]
            or epochs["processed"] == epochs["started"]  # it was ended early, at the target
        )
        return TypeAdapter(Checkpoint).validate_python(
            {
                "info": content["hyper_parameters"],
                "state_dict": content["state_dict"],
                "global_step": content["global_step"],
                "can_be_resumed": at_epoch_end or INTERRUPTED in content.get("callbacks", {}),
                "has_training_state": "optimizer_states" in content,
            }
        )
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a checkpoint of cifar-lightning, or of a version that this one "
            f"({__version__}) does not know."
        ) from error


def check_finite(path: str | Path, state_dict: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not finite: every prediction would be made of NaN.

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


def _check_length(content: Any) -> None:
    """Few bytes can hold a list of ten times one list of ten times one list, and so on.

    Raises:
        ValueError: if walking through all of it could take for ever.
    """
    count, waiting = 0, [content]
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES:,} values")
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def _check_counts(progress: Any) -> None:
    """Of epochs and steps: from far below zero, a run would train for ever.

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
