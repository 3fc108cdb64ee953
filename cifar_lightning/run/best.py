"""Finds the best checkpoints of a resumed run."""

import math
import re
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from cifar_lightning.checkpoints.io import read_checkpoint
from cifar_lightning.errors import UserError
from cifar_lightning.training.callbacks import BestCheckpoint
from cifar_lightning.training.callbacks.checkpoints import BEST


def restore_best(trainer: pl.Trainer, checkpoint: dict[str, Any]) -> bool:
    """Update the states of ModelCheckpoint in a checkpoint to the files that exist and are valid.

    Files that are missing are dropped. So are files later than the checkpoint, saved between it and
    a crash: on a GPU the repeated steps differ in their last bits, so such a file would not have
    the recorded accuracy. Paths are changed to the run's folder, which may have been moved.

    For a BestCheckpoint, files that the state does not list are found too: the run may have
    validated after the checkpoint was saved, and the resume may have another monitor.

    Args:
        trainer: of the resumed run.
        checkpoint: to resume from; its `callbacks` are changed.

    Returns:
        Whether the best checkpoint is lost: recorded, but no longer in its folder.
    """
    lost = False
    states = checkpoint["callbacks"]
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or not callback.dirpath:
            continue
        own = states.get(callback.state_key)
        if not own and not isinstance(callback, BestCheckpoint):
            continue
        own = callback.state_dict() | (own or {})
        earlier = [own]
        if isinstance(callback, BestCheckpoint):  # also of another monitor
            prefix = BestCheckpoint.__qualname__
            earlier += [state for key, state in states.items() if key.startswith(prefix)]
        folder = Path(callback.dirpath)
        recorded: dict[Path, Tensor | None] = {}
        for state in earlier:
            best = state["best_model_path"]
            values = state["best_k_models"] or ({best: None} if best else {})
            recorded |= {folder / Path(path).name: value for path, value in values.items()}
        found: dict[str, float] = {}
        if trainer.is_global_zero:  # other machines may not have the files
            found = _found(callback, recorded, checkpoint["global_step"])
        found = trainer.strategy.broadcast(found)
        if callback is trainer.checkpoint_callback and callback.monitor is not None:
            lost = bool(own["best_model_path"] and not found)
        last = own["last_model_path"]
        states[callback.state_key] = own | {
            "dirpath": callback.dirpath,
            "last_model_path": last and str(folder / Path(last).name),
            **_ranked(callback, found),
        }
    return lost


def _found(
    callback: ModelCheckpoint, recorded: dict[Path, Tensor | None], last_step: int
) -> dict[str, float]:
    """The monitored metric of each checkpoint up to a step, by path, in the order of steps.

    Args:
        callback: the callback that has saved them.
        recorded: the values in its state, by path; None without a metric.
        last_step: step of the checkpoint to resume from.
    """
    paths, best = list(recorded), None
    if isinstance(callback, BestCheckpoint):
        best = Path(callback.dirpath or "", BEST)
        paths = [*({*recorded, *_numbered(callback)} - {best}), best]
    found: list[tuple[int, float, str]] = []
    for path in paths:
        try:
            checkpoint = read_checkpoint(path)
        except UserError:  # it is missing or damaged
            continue
        step, value = checkpoint.global_step, checkpoint.validation.get(callback.monitor or "")
        if callback.monitor is None:
            value = 0.0
        elif value is None and best is None:
            number = recorded.get(path)
            value = None if number is None else number.item()
        # Other files of earlier steps were not among the best, or are from an abandoned attempt.
        is_known = path in recorded or path == best or step == last_step
        if value is None or step > last_step or not is_known:
            continue
        if math.isnan(value):  # as Lightning ranks it
            value = math.inf if callback.mode == "min" else -math.inf
        if path != best or all((step, value) != other[:2] for other in found):
            found.append((step, value, str(path)))
    return {path: value for _, value, path in sorted(found)}


def _numbered(callback: BestCheckpoint) -> set[Path]:
    """The files whose names match the callback's `filename`, with numbers in place of braces."""
    parts = re.split(r"\{.*?\}", f"{callback.filename}.ckpt")
    name = re.compile(r"[-+.\dainfe]+".join(map(re.escape, parts)))
    files = Path(callback.dirpath or "").glob("*.ckpt")
    return {path for path in files if name.fullmatch(path.name)}


def _ranked(callback: ModelCheckpoint, found: dict[str, float]) -> dict[str, Any]:
    """ModelCheckpoint's state after saving checkpoints with these values, in this order.

    If values are equal, the first is the best, and also the first to be removed, as in training.
    """
    best, worst = (min, max) if callback.mode == "min" else (max, min)
    while 0 < callback.save_top_k < len(found):
        del found[worst(found, key=found.__getitem__)]
    values = {path: torch.tensor(value) for path, value in found.items()}
    best_path = best(found, key=found.__getitem__, default="")
    worst_path = worst(found, key=found.__getitem__, default="")
    return {
        "best_k_models": {} if callback.monitor is None else values,
        "best_model_path": best_path,
        "best_model_score": values.get(best_path),
        "kth_best_model_path": worst_path,
        "kth_value": values.get(worst_path, callback.kth_value),
    }
