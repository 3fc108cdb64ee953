"""Reads and writes checkpoints."""

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from cifar_lightning._version import __version__
from cifar_lightning.errors import UserError
from cifar_lightning.system.atomic import atomic_write
from cifar_lightning.training.callbacks import Interruption

# Lightning's key for the callback's state: its class.
INTERRUPTED = Interruption.__qualname__

MAX_VALUES = 100_000  # in the description of a model, which has a few dozen

Finite = Annotated[float, Field(allow_inf_nan=False)]


@dataclass(frozen=True)
class ModelInfo:
    """The description of a trained model that inference needs; every checkpoint has one.

    Attributes:
        version: version of cifar-lightning that wrote it.
        model: its option in conf/model/.
        network: the network's `_target_` and arguments.
        data: its training data's option in conf/data/.
        classes: class names, in the order of the logits.
        image_size: height and width of the images, in pixels.
        mean, std: of the training images per channel, on the scale 0 to 1.
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
    """The part of a checkpoint's content that this package reads.

    Attributes:
        info: the model's description.
        state_dict: of the classifier.
        global_step: number of optimizer steps, over all optimizers.
        logged_steps: number of steps by which metrics.csv counts: that of the batches if the
            module steps its optimizers by hand.
        can_be_resumed: True if it was saved at the end of an epoch or by `Interruption`; False if
            it was saved after a validation within an epoch; None if its progress cannot be read.
        has_training_state: whether it has the state of the optimizer and the schedule.
        run_dir: the run's folder when it was saved; None if it is not recorded.
        validation: the metrics of its weights, by name; empty if they were not validated.
    """

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    info: ModelInfo
    state_dict: dict[str, Tensor]
    global_step: int
    logged_steps: int
    can_be_resumed: bool | None
    has_training_state: bool
    run_dir: Path | None
    validation: dict[str, float]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically.

    Lightning's own class writes to the system's temporary folder first; if that is on another disk,
    it then copies the file over the old checkpoint, and a full disk would leave neither.
    """

    def __init__(self) -> None:
        super().__init__()
        self._created: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; `storage_options` is ignored."""
        path = Path(path)
        if path.parent not in self._created:  # only once: not again if its disk has vanished
            path.parent.mkdir(parents=True, exist_ok=True)
            self._created.add(path.parent)
        with atomic_write(path) as file:
            torch.save(checkpoint, file)
            file.flush()
            if get_unsafe_globals_in_checkpoint(file.name):
                raise UserError(_why_unsafe(checkpoint))


def _why_unsafe(checkpoint: dict[str, Any]) -> str:
    """The message for a checkpoint with objects, which names the part that holds them."""
    callbacks = checkpoint.get("callbacks", {})
    parts = {f"the state of the callback {key}": state for key, state in callbacks.items()}
    parts |= {f"the key {key!r}": part for key, part in checkpoint.items() if key != "callbacks"}
    unsafe = []
    for name, part in parts.items():
        torch.save(part, file := io.BytesIO())
        file.seek(0)
        if found := get_unsafe_globals_in_checkpoint(file):
            unsafe.append(f"{name} holds {', '.join(sorted(found))}")
    return (
        f"This checkpoint could not be read again: {'; '.join(unsafe)}. Such objects could run "
        "code when they are read. Save numbers, strings, tensors, and lists and dictionaries of "
        "these: float(x) instead of a NumPy number, dict(x) instead of a defaultdict."
    )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint, which may hold only primitives and tensors.

    Raises:
        UserError: if the file is missing or is not a checkpoint of this package.
    """
    try:
        _check_uncompressed(Path(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such file.") from error
    except IsADirectoryError as error:
        raise UserError(
            f"{path} is a folder. Give a checkpoint, such as {path}/checkpoints/best.ckpt."
        ) from error
    except Exception as error:  # damaged files make torch.load raise errors of all kinds
        reason = str(error).strip().partition("\n")[0]
        if isinstance(error, pickle.UnpicklingError):  # torch's message is for programmers
            reason = "it is damaged, or holds objects, which could run code when they are read"
        raise UserError(f"{path} is not a checkpoint of cifar-lightning: {reason}") from error
    try:
        _check_length(content["hyper_parameters"])
        if "_target_" not in content["hyper_parameters"]["network"]:
            raise ValueError("the network has no target")
        if any(t.nbytes > t.untyped_storage().nbytes() for t in content["state_dict"].values()):
            raise ValueError("a tensor is larger than its storage")
        return TypeAdapter(Checkpoint).validate_python(
            {
                "info": content["hyper_parameters"],
                "state_dict": content["state_dict"],
                "global_step": content["global_step"],
                "logged_steps": _logged_steps(content),
                "can_be_resumed": _can_be_resumed(content),
                "has_training_state": "optimizer_states" in content,
                "run_dir": _run_dir(content),
                "validation": content.get("validation", {}),
            }
        )
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a checkpoint of cifar-lightning, or it is from a version that this one "
            f"({__version__}) cannot read."
        ) from error


def _logged_steps(content: dict[str, Any]) -> Any:
    """See `Checkpoint.logged_steps`; from private counts of Lightning 2.6."""
    try:
        loops = content["loops"]["fit_loop"]
        by_hand = loops["epoch_loop.manual_optimization.optim_step_progress"]["total"]["completed"]
        batches = loops["epoch_loop.batch_progress"]["total"]["processed"]
    except (LookupError, TypeError):  # such as in the copies on W&B
        return content["global_step"]
    return batches if by_hand else content["global_step"]


def _can_be_resumed(content: dict[str, Any]) -> bool | None:
    """See `Checkpoint.can_be_resumed`."""
    try:
        _check_counts(content["loops"])
        progress = content["loops"]["fit_loop"]
        at_epoch_end = progress["epoch_loop.batch_progress"]["is_last_batch"]
        return bool(at_epoch_end or INTERRUPTED in content.get("callbacks", {}))
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def _run_dir(content: dict[str, Any]) -> Path | None:
    """See `Checkpoint.run_dir`: the folder above that of the run's checkpoints."""
    try:
        folders = (Path(s["dirpath"]) for s in content["callbacks"].values() if "dirpath" in s)
        return next(folder.parent for folder in folders if folder.name == "checkpoints")
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration):
        return None


def check_finite(path: str | Path, state_dict: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not finite, with which every prediction would be NaN.

    Args:
        path: of the checkpoint, for the message.
        state_dict: its weights and statistics.

    Raises:
        UserError: names the first tensor with such a value.
    """
    for name, tensor in state_dict.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{path}: its weights {name} are NaN or infinite: the training diverged, or the "
                "file is damaged. Use an earlier checkpoint."
            )


def _check_length(content: Any) -> None:
    """Refuse containers of very many values, which shared references can hold in a few bytes."""
    count, waiting = 0, [content]
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES:,} values")
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def _check_counts(progress: Any) -> None:
    """Refuse negative counts of epochs and steps, with which a run could train for ever."""
    if isinstance(progress, int | float) and not progress >= 0:
        raise ValueError(f"{progress} is not a count")
    if isinstance(progress, list):
        progress = dict(enumerate(progress))
    if isinstance(progress, dict):
        if "completed" in progress and not all(isinstance(n, int) for n in progress.values()):
            raise ValueError(f"{progress} are not counts")
        for part in progress.values():
            _check_counts(part)


def _check_uncompressed(path: Path) -> None:
    """Refuse a compressed file, which could fill the memory; PyTorch reads but never writes one."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, more than its size")


def find_checkpoint(path: str | None) -> Path:
    """The path of the checkpoint that the user has given.

    Raises:
        UserError: if none was given, or if it does not exist.
    """
    if path is None:
        found = Path("runs").glob("train/**/checkpoints/best.ckpt")
        newest = max(found, default=None, key=os.path.getmtime)
        example = newest or "runs/train/…/checkpoints/best.ckpt"
        raise UserError(f"Which checkpoint? As in: checkpoint={example}")
    checkpoint = Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib's refuses ~mine.ckpt)
    if not checkpoint.exists():
        raise UserError(f"checkpoint={path}: there is no such file.")
    return checkpoint
