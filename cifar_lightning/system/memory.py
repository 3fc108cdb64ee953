"""How much memory is free, and the refusal of what would not fit into it."""

import os
from collections.abc import Iterator
from pathlib import Path

from cifar_lightning.errors import UserError


def check_memory(what: str, needed: int, way_out: str) -> None:
    """Refuse what memory cannot hold before any of it is there: the system would kill the process.

    Args:
        what: needs the memory, as the message says it.
        needed: bytes.
        way_out: what the user can do.

    Raises:
        UserError: if fewer bytes are free.
    """
    free = free_memory()
    if needed > free:
        raise UserError(
            f"{what} would need {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are "
            f"free. {way_out}"
        )


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still get: of the machine, or of its container or batch job.

    Args:
        root: of the file system in which Linux tells it.
    """
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    machine = _numbers(root / "proc/meminfo")
    if "MemAvailable:" in machine:
        free = 1024 * machine["MemAvailable:"]  # given in kB
    return min([free, *_left_of_control_groups(root)])


def _left_of_control_groups(root: Path) -> Iterator[int]:
    """What is left of each limit on this process: of its control group and of those around it."""
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
                # Linux gives the page cache back before it refuses memory.
                cached = _numbers(group / "memory.stat")
                cache = sum(
                    cached.get(f"{prefix}{kind}_file", 0) for kind in ("inactive", "active")
                )
                yield int(most) - int((group / used).read_text()) + cache
            group = group.parent


def _numbers(file: Path) -> dict[str, int]:
    """The first number of each line, by the word before it; nothing of a file that is not there."""
    lines = file.read_text().splitlines() if file.is_file() else ()
    return {words[0]: int(words[1]) for words in map(str.split, lines)}
