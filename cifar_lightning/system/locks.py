"""Keeps processes apart: one works on a run, and one on a GPU."""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cifar_lightning.errors import UserError
from cifar_lightning.system.atomic import remove_leftovers

# What a training replaces in its folder.
WRITTEN = {".": ("metrics.csv", "metrics.json"), "checkpoints": ("*.ckpt",), "figures": ("*.png",)}


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder, as long as they ask by this too.

    What an earlier one was writing there when it was killed is removed.

    Raises:
        UserError: if another one is in it.
    """
    try:
        held = _lock(folder)
    except Timeout:
        raise UserError(
            f"Another process works on this run, in {folder}. It was left to that one: wait for "
            "it, or end it, and start this again."
        ) from None
    if held is None:
        yield
        return
    with held:
        for place, names in WRITTEN.items():
            remove_leftovers(folder / place, names)
        yield


def is_taken(folder: Path) -> bool:
    """Whether a process is in a run's folder by `alone_in`."""
    try:
        with _lock(folder) or contextlib.nullcontext():
            return False
    except Timeout:
        return True


def _lock(folder: Path) -> contextlib.AbstractContextManager[Any] | None:
    """The lock of a run's folder, held; None on a disk without locks.

    Raises:
        Timeout: if another process has it.
    """
    try:
        # A lock of the file's mere presence would outlive a killed process, on another machine.
        return FileLock(folder / ".lock", fallback_to_soft=False).acquire(timeout=0)
    except Timeout:  # which is an OSError too
        raise
    except OSError:
        return None


@contextlib.contextmanager
def alone_on_a_gpu() -> Iterator[None]:
    """Have CUDA show this process one GPU that no other has by this, waiting for one to be free.

    Changes nothing where there is none, or where SLURM has given it its own.

    Raises:
        UserError: if the folder of the locks cannot be made.
    """
    import torch

    count = torch.cuda.device_count()
    slurm_job = os.environ.get("SLURM_JOB_ID")
    if not count or (slurm_job and count == 1):
        yield
        return
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = shown.split(",")[:count] if shown else [str(index) for index in range(count)]
    place = Path(tempfile.gettempdir(), f"cifar_lightning_{os.getuid()}")
    try:
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"The locks that keep jobs on GPUs apart: {error}") from error
    waiting = False
    while True:
        for gpu in gpus:
            try:
                name = f"gpu_{slurm_job or ''}_{gpu.strip()}.lock"  # SLURM counts anew in each job
                held = FileLock(place / name).acquire(timeout=0)
            except Timeout:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            with held:
                yield
            return
        if not waiting:
            print(f"All GPUs ({', '.join(gpus)}) have a job; this one waits for one to end.")
        waiting = True
        time.sleep(1.0)
