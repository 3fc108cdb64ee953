"""Measures free memory, and checks whether something would fit."""

import os
from collections.abc import Iterator
from pathlib import Path

from cifar_lightning.errors import UserError


def check_memory(what: str, needed: int, advice: str) -> None:
    """Raise an error if something would not fit into memory; the system would kill the process.

    Args:
        what: subject of the message.
        needed: bytes.
        advice: end of the message: what the user can do.

    Raises:
        UserError: if fewer bytes are free.
    """
    free = free_memory()
    if needed > free:
        raise UserError(
            f"{what} would need {needed / 1e9:,.1f} GB of memory, but only {free / 1e9:,.1f} GB "
            f"is free. {advice}"
        )


def free_memory(root: Path = Path("/")) -> int:
    """The free memory in bytes, of the machine or of this process's container or batch job.

    Args:
        root: the folder that contains Linux's proc and sys.
    """
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    machine = _numbers(root / "proc/meminfo")
    if "MemAvailable:" in machine:
        free = 1024 * machine["MemAvailable:"]  # given in kB
    return min([free, *_free_in_control_groups(root)])


def _free_in_control_groups(root: Path) -> Iterator[int]:
    """The free memory within the limits of this process's control group and all groups above."""
    file = root / "proc/self/cgroup"
    for line in file.read_text().splitlines() if file.is_file() else ():
        _, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        if not controllers:
            limit, used, prefix = "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):  # version 1
            mount /= "memory"
            limit, used, prefix = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        group = mount / path.lstrip("/")
        while group.is_relative_to(mount):
            if (group / limit).is_file() and (most := (group / limit).read_text().strip()) != "max":
                # The page cache counts as free: Linux drops it when memory is needed.
                cached = _numbers(group / "memory.stat")
                cache = sum(
                    cached.get(f"{prefix}{kind}_file", 0) for kind in ("inactive", "active")
                )
                yield int(most) - int((group / used).read_text()) + cache
            group = group.parent


def _numbers(file: Path) -> dict[str, int]:
    """The first number of each line, by the word before it; empty if the file does not exist."""
    lines = file.read_text().splitlines() if file.is_file() else ()
    return {words[0]: int(words[1]) for words in map(str.split, lines)}
