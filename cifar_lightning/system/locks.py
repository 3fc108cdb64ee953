"""Locks between processes: of a run folder, and of a GPU."""

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

# The files that a run replaces, by the folder they are in.
REPLACED = {
    ".": ("config.yaml", "metrics.csv", "metrics.json"),
    "checkpoints": ("*.ckpt",),
    "figures": ("*.png",),
}


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder.

    Temporary files that a killed process left there are removed.

    Raises:
        UserError: if another process holds it.
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
        for subfolder, names in REPLACED.items():
            remove_leftovers(folder / subfolder, names)
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder."""
    try:
        with _lock(folder) or contextlib.nullcontext():
            return False
    except Timeout:
        return True


def _lock(folder: Path) -> contextlib.AbstractContextManager[Any] | None:
    """The lock of a run folder, acquired; None on a file system without locks.

    Raises:
        Timeout: if another process holds it.
    """
    try:
        # A lock by the mere presence of a file would outlive a process killed on another machine.
        return FileLock(folder / ".lock", fallback_to_soft=False).acquire(timeout=0)
    except Timeout:  # which is an OSError too
        raise
    except OSError:
        return None


@contextlib.contextmanager
def reserve_gpu() -> Iterator[None]:
    """Wait for a GPU that no other process has reserved, and have CUDA show this process that one.

    Changes nothing where there is no GPU, or where SLURM has given this process its own.

    Raises:
        UserError: if the folder of the locks cannot be created.
    """
    import torch

    count = torch.cuda.device_count()
    slurm_job = os.environ.get("SLURM_JOB_ID")
    if not count or (slurm_job and count == 1):
        yield
        return
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = shown.split(",")[:count] if shown else [str(index) for index in range(count)]
    locks = Path(tempfile.gettempdir(), f"cifar_lightning_{os.getuid()}")
    try:
        locks.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"The locks that keep jobs on GPUs apart: {error}") from error
    waiting = False
    while True:
        for gpu in gpus:
            try:
                name = f"gpu_{slurm_job or ''}_{gpu.strip()}.lock"  # SLURM counts anew in each job
                held = FileLock(locks / name).acquire(timeout=0)
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
