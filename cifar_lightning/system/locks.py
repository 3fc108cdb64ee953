"""Locks between processes, for run folders and GPUs."""

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

LOCK = ".lock"
# Files that a run replaces, by folder.
REPLACED = {
    ".": ("config.yaml", "metrics.csv", "metrics.json"),
    "checkpoints": ("*.ckpt",),
    "figures": ("*.png",),
}


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, and remove temporary files that a killed process left there.

    If the body raises an exception, the lock file is removed unless it existed before.

    Raises:
        UserError: if another process holds the lock.
    """
    was_there = (folder / LOCK).exists()
    try:
        lock = _acquire(folder)
    except Timeout:
        raise UserError(
            f"Another process is working on the run in {folder}. Wait for it or stop it, and start "
            "this one again."
        ) from None
    if lock is None:
        yield
        return
    with lock:
        for subfolder, names in REPLACED.items():
            remove_leftovers(folder / subfolder, names)
        try:
            yield
        except BaseException:
            if not was_there:
                (folder / LOCK).unlink(missing_ok=True)
            raise


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder."""
    if not (folder / LOCK).exists():
        return False
    try:
        with _acquire(folder) or contextlib.nullcontext():
            return False
    except Timeout:
        return True


def _acquire(folder: Path) -> contextlib.AbstractContextManager[Any] | None:
    """Acquire the lock of a run folder; returns None on a file system without locks.

    Raises:
        Timeout: if another process holds it.
    """
    try:
        # No soft lock: it is the existence of a file, and would outlive a killed process.
        return FileLock(folder / LOCK, fallback_to_soft=False).acquire(timeout=0)
    except Timeout:  # a subclass of OSError
        raise
    except OSError:
        return None


@contextlib.contextmanager
def reserve_gpu() -> Iterator[None]:
    """Wait for a GPU that no other process has reserved, and make it the only visible one.

    Does nothing if there is no GPU, or if SLURM has assigned one to this process.

    Raises:
        UserError: if the folder of the locks cannot be created.
    """
    import torch

    count = torch.cuda.device_count()
    slurm_job = os.environ.get("SLURM_JOB_ID")
    if not count or (slurm_job and count == 1):
        yield
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",")[:count] if visible else [str(index) for index in range(count)]
    locks = Path(tempfile.gettempdir(), f"cifar_lightning_{os.getuid()}")
    try:
        locks.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder for GPU locks cannot be created: {error}") from error
    waiting = False
    while True:
        for gpu in gpus:
            name = f"gpu_{slurm_job or ''}_{gpu.strip()}.lock"  # SLURM counts from 0 in each job
            try:
                held = FileLock(locks / name).acquire(timeout=0)
            except Timeout:
                continue
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            with held:
                yield
            return
        if not waiting:
            print(f"All GPUs ({', '.join(gpus)}) are in use by other jobs; this job waits.")
        waiting = True
        time.sleep(1.0)
