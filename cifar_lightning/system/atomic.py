"""Writes files whole or not at all."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A file to write in, which takes the place of `path` when everything has reached the disk.

    It lies beside `path` until then: a rename is one step only within a file system, and `path`
    keeps its old content when the disk is full or the program dies.

    Raises:
        OSError: if the file cannot be written.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _flush(path.parent)
    except RuntimeError as error:
        # torch.save ends in an error of its own where the file's was the reason.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    """Have the renaming reach the disk too, where folders can be flushed."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what programs that were killed had begun to write.

    Only where no other program can be writing these files now.

    Args:
        folder: to look in, and not below.
        names: of the files that were to be replaced, as patterns.

    Raises:
        OSError: if the folder does not let them be removed.
    """
    for name in names:
        for file in folder.glob(f"{name}.*.tmp"):
            if re.search(r"\.\d+\.tmp$", file.name):
                file.unlink(missing_ok=True)
