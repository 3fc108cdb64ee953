"""What every source of images gives, and whether memory holds it."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cifar_lightning.errors import UserError


@dataclass(frozen=True)
class Part:
    """Labelled images of one part of a data set.

    Attributes:
        images: uint8 [N, 3, H, W], RGB.
        labels: int64 [N], positions in the list of class names.
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Part":
        """The same on a device."""
        return Part(self.images.to(device), self.labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A whole batch by one indexing: images, labels, and `index` [N] itself."""
        return self.images[index], self.labels[index], index


@dataclass(frozen=True)
class Parts:
    """A data set: the official train and test parts and the class names."""

    train: Part
    test: Part
    classes: tuple[str, ...]


def check_memory(what: str, needed: int, way_out: str) -> None:
    """Refuse what memory cannot hold before any of it is there: the system would end the program.

    Args:
        what: takes the memory, as the message says it.
        needed: in bytes.
        way_out: what the user can do.

    Raises:
        UserError: if less than that is free.
    """
    free = free_memory()
    if needed > free:
        raise UserError(
            f"{what} would need {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are "
            f"free. {way_out}"
        )


def free_memory() -> int:
    """Bytes that a program can still have: of the machine, or of the container it is in."""
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo, container = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.is_file():  # on Linux, which says how much of it is in use
        lines = (line.split() for line in meminfo.read_text().splitlines())
        available = next((int(line[1]) for line in lines if line[0] == "MemAvailable:"), None)
        free = free if available is None else 1024 * available  # given in kB
    if container.is_file() and (limit := container.read_text().strip()).isdecimal():
        free = min(free, int(limit))
    return free
