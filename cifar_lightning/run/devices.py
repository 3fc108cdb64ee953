"""Chooses devices and precision, and names the hardware."""

import contextlib
import ctypes
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from cifar_lightning.errors import UserError
from cifar_lightning.system.counted import counted
from cifar_lightning.system.jobs import in_job_process
from cifar_lightning.system.processes import launch
from cifar_lightning.tracking.console import banner

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


NO_DDP_IN_SWEEPS = (
    "A job of a sweep (-m) trains on one device, because processes for other devices would start "
    "the whole sweep again. What works: a job per GPU (trainer.gpus=1 hydra/launcher=joblib "
    "hydra.launcher.n_jobs=GPUS); several GPUs per job if SLURM starts the processes "
    "(hydra/launcher=submitit_slurm hydra.launcher.gpus_per_node=2 hydra.launcher.tasks_per_node=2 "
    "trainer=ddp trainer.gpus=2); or no -m."
)


def resolve_devices(
    arguments: dict[str, Any], batch_size: int, callbacks: Iterable[object]
) -> None:
    """Replace `gpus` by Lightning's `accelerator` and `devices`, and `precision=auto` by a value.

    Args:
        arguments: of the Trainer; changed in place.
        batch_size: images per step, over all devices.
        callbacks: callbacks or their classes; some work on one device only.

    Raises:
        UserError: if the devices do not exist, do not match the processes that were started, or
            cannot share a batch evenly.
    """
    one_device = _why_one_device(callbacks)
    gpus, num_nodes = arguments.pop("gpus"), arguments.get("num_nodes", 1)
    accelerator, devices = arguments.get("accelerator", "auto"), arguments.get("devices", "auto")
    if one_device and num_nodes != 1:
        raise UserError(one_device)
    if accelerator == "auto":
        if devices != "auto":
            raise UserError(
                f"trainer.devices={devices} needs a trainer.accelerator. For GPUs: trainer.gpus="
                f"{devices}. For processes on the CPU: trainer.accelerator=cpu trainer.devices="
                f"{devices}."
            )
        accelerator, devices = choose_devices(
            gpus, torch.cuda.device_count(), batch_size, one_device, num_nodes
        )
    elif accelerator in ("gpu", "cuda"):
        raise UserError(f"trainer.accelerator={accelerator}: use trainer.gpus=1, 2, … or [0,2].")
    elif gpus not in ("auto", 0):
        raise UserError(
            f"trainer.gpus={gpus} does not fit trainer.accelerator={accelerator}: leave one out."
        )
    elif devices == "auto":
        devices = 1
    count = len(devices) if isinstance(devices, list) else devices
    if not isinstance(count, int) or count < 1:
        raise UserError(f"trainer.devices={devices} must be a whole number of at least 1.")
    if one_device and count > 1:
        raise UserError(one_device)
    _check_processes(num_nodes, count)
    if batch_size % (num_nodes * count):
        raise UserError(
            f"{num_nodes * count} devices cannot share data.batch_size={batch_size} evenly."
        )
    if arguments.get("sync_batchnorm") and accelerator == "cpu":
        raise UserError("trainer.sync_batchnorm=true is for GPUs, and this run has none.")
    arguments |= {"accelerator": accelerator, "devices": devices}
    if arguments["precision"] == "auto":
        arguments["precision"] = choose_precision(accelerator, devices)


def _why_one_device(callbacks: Iterable[object]) -> str | None:
    """The error message for more than one device; None if several are allowed."""
    started = launch()
    if in_job_process() and (started is None or started.total == 1):
        return NO_DDP_IN_SWEEPS
    reasons = (getattr(callback, "ONE_DEVICE", None) for callback in callbacks)
    return next((reason for reason in reasons if reason), None)


def _check_processes(num_nodes: int, devices: int) -> None:
    """Refuse processes that do not match the configuration: they would wait for ever."""
    started = launch()
    if started is None and num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes={num_nodes}, but this process was started alone. Have torchrun or "
            "srun start one process per device on every machine, or set trainer.num_nodes=1."
        )
    wanted = (num_nodes * devices, devices)
    if started is None or (started.total, started.per_node) == wanted:
        return
    raise UserError(
        f"{started.by} started {started.total // started.per_node} x {started.per_node} processes "
        f"(machines x processes on each), but the configuration asks for {num_nodes} x {devices}. "
        "trainer.num_nodes is the number of machines, trainer.gpus (with trainer=ddp_sim: "
        "trainer.devices) the number of processes on each."
    )


def choose_devices(
    gpus: str | int | list[int],
    available: int,
    batch_size: int,
    one_device: str | None = None,
    num_nodes: int = 1,
) -> tuple[str, int | list[int]]:
    """Choose Lightning's accelerator and devices for `trainer.gpus`.

    Args:
        gpus: a count, a list of indices, or `auto` for all GPUs that can share a batch evenly (the
            CPU if there is none).
        available: number of GPUs on this machine.
        batch_size: images per step, over all devices.
        one_device: the error message for several devices, if only one is allowed; `auto` then
            chooses one.
        num_nodes: number of machines, each with as many devices.

    Returns:
        The accelerator, and a count of devices or a list of GPU indices.

    Raises:
        UserError: if there are fewer GPUs, or if several devices are not allowed. For one GPU on a
            machine without any, the CPU is chosen, with a warning.
    """
    if gpus == "auto":
        counts = range(1, min(available, 1 if one_device else available) + 1)
        shares = [count for count in counts if batch_size % (count * num_nodes) == 0]
        return ("gpu", shares[-1]) if shares else ("cpu", 1)
    if isinstance(gpus, list):
        missing = [i for i in gpus if type(i) is not int or not 0 <= i < available]
        if missing or not gpus or len(set(gpus)) < len(gpus):
            raise UserError(
                f"trainer.gpus={gpus} must name existing GPUs, each once. This machine has "
                + (f"{counted(available, 'GPU')}, counted from 0." if available else "none.")
            )
        if one_device and len(gpus) > 1:
            raise UserError(one_device)
        return "gpu", gpus
    if not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 0:
        raise UserError(f"trainer.gpus={gpus} must be auto, a count, or a list such as [0,2].")
    if gpus == 0:
        return "cpu", 1
    if gpus == 1 and available == 0:
        banner("trainer.gpus=1, but this machine has no GPU: training runs on the CPU.", "No GPU")
        return "cpu", 1
    if one_device and gpus > 1:
        raise UserError(one_device)
    if gpus > available:
        raise UserError(f"trainer.gpus={gpus}, but this machine has {counted(available, 'GPU')}.")
    return "gpu", gpus


def choose_precision(accelerator: str, devices: int | list[int] = 1) -> str:
    """Choose bf16 if every chosen chip is fast at it, else 16-bit on GPUs and 32-bit on a CPU.

    Args:
        accelerator: Lightning's name.
        devices: a count, or a list of GPU indices.

    Returns:
        Lightning's name of the precision.
    """
    if accelerator in ("gpu", "cuda"):
        indices = devices if isinstance(devices, list) else range(devices)
        oldest = min(torch.cuda.get_device_capability(index) for index in indices)
        return "bf16-mixed" if oldest >= (8, 0) else "16-mixed"
    flags = _cpu_info().get("flags", "").split()
    return "bf16-mixed" if {"avx512_bf16", "amx_bf16"} & set(flags) else "32-true"


def device_name(device: torch.device) -> str:
    """The name of a GPU, or of the CPU with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = _cpu_info().get("model name") or platform.processor() or platform.machine()
    return f"{name}, {counted(torch.get_num_threads(), 'thread')}"


def _cpu_info() -> dict[str, str]:
    """Linux's description of the first processor; empty on other systems."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def keep_freed_memory() -> None:
    """Make this process reuse the memory that it frees, instead of returning it to the system.

    By default glibc returns freed blocks of more than 32 MB, as large as a layer's maps for batches
    of 256 and more. The next step then has to wait until the system has allocated and zeroed the
    pages again. With another C library than glibc, this does nothing.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)  # allocate blocks of any size from the heap
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # and never shrink it
