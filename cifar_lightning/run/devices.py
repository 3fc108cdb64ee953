"""Chooses devices and precision, and names the hardware."""

import contextlib
import ctypes
import platform
from pathlib import Path

import torch

from cifar_lightning.errors import UserError
from cifar_lightning.tracking.console import banner

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def choose_devices(
    gpus: str | int | list[int],
    available: int,
    batch_size: int,
    one_device: str | None = None,
    num_nodes: int = 1,
) -> tuple[str, int | list[int]]:
    """Choose Lightning's accelerator and devices for `trainer.gpus`.

    Args:
        gpus: `auto` for all GPUs that can share a batch evenly, or the CPU; a count; or a list of
            indices.
        available: number of GPUs on this machine.
        batch_size: images per step, over all devices.
        one_device: the error message for more than one device, if that is not allowed; `auto` is
            then one.
        num_nodes: number of machines, each with as many devices.

    Returns:
        The accelerator, and a count of devices or a list of GPU indices.

    Raises:
        UserError: if there are fewer GPUs, or several devices are not allowed. A single GPU where
            there is none is the CPU, with a warning.
    """
    if gpus == "auto":
        counts = range(1, min(available, 1 if one_device else available) + 1)
        shares = [count for count in counts if batch_size % (count * num_nodes) == 0]
        return ("gpu", shares[-1]) if shares else ("cpu", 1)
    if isinstance(gpus, list):
        missing = [i for i in gpus if type(i) is not int or not 0 <= i < available]
        if missing or not gpus or len(set(gpus)) < len(gpus):
            raise UserError(
                f"trainer.gpus={gpus} names a GPU twice or one that does not exist: this machine "
                f"has {available}, counted from 0."
            )
        if one_device and len(gpus) > 1:
            raise UserError(one_device)
        return "gpu", gpus
    if not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 0:
        raise UserError(f"trainer.gpus={gpus} is not auto, a count from 0, or a list as in [0,2].")
    if gpus == 0:
        return "cpu", 1
    if gpus == 1 and available == 0:
        banner("trainer.gpus=1, but this machine has no GPU: the CPU is used.", "No GPU")
        return "cpu", 1
    if one_device and gpus > 1:
        raise UserError(one_device)
    if gpus > available:
        raise UserError(f"trainer.gpus={gpus}, but this machine has {available} GPUs.")
    return "gpu", gpus


def choose_precision(accelerator: str, devices: int | list[int] = 1) -> str:
    """Choose bf16 if every chosen chip runs it fast, else 16-bit on a GPU and 32-bit on a CPU.

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
    return f"{name}, {torch.get_num_threads()} threads"


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

    By default glibc returns freed blocks of more than 32 MB, the size of a layer's maps in batches
    of 256 and more, and the next step has to wait until the system has allocated and zeroed the
    pages again. Does nothing with another C library.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)  # allocate blocks of any size from the heap
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # and never shrink it
