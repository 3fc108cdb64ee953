"""Which devices and which precision a run gets, what they are called, and their memory."""

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
    """Lightning's accelerator and devices for `trainer.gpus`.

    Args:
        gpus: `auto` is as many as there are and can share a batch evenly, else the CPU; a count; or
            a list of indices.
        available: GPUs on this machine.
        batch_size: images a step, over all devices.
        one_device: why more than one is out of the question, if it is; `auto` is one then.
        num_nodes: machines, each with as many devices as this one gets.

    Raises:
        UserError: if two or more, or an index, are asked for that are not there or may not be.
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
    """bf16 where every chosen chip runs it fast, else 16-bit on a GPU, else 32-bit.

    Args:
        accelerator: Lightning's name.
        devices: a count, or the indices of GPUs.
    """
    if accelerator in ("gpu", "cuda"):
        indices = devices if isinstance(devices, list) else range(devices)
        oldest = min(torch.cuda.get_device_capability(index) for index in indices)
        return "bf16-mixed" if oldest >= (8, 0) else "16-mixed"
    flags = _cpu_info().get("flags", "").split()
    return "bf16-mixed" if {"avx512_bf16", "amx_bf16"} & set(flags) else "32-true"


def device_name(device: torch.device) -> str:
    """The hardware's own name, with the number of threads where it is a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = _cpu_info().get("model name") or platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"


def _cpu_info() -> dict[str, str]:
    """What Linux says of the first processor; nothing on other systems."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def keep_freed_memory() -> None:
    """Have this process keep the memory that it frees, for the next step to take.

    The C library gives blocks of more than 32 MB, which is what a layer's images come to in batches
    of 256 and more, back to the system when they are freed, and the next step waits for the system
    to hand them out again, filled with zeros, page by page. Does nothing where the C library is not
    glibc.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)  # from the heap, whatever the size
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # which does not shrink
