"""Writes files whole or not at all."""

import os
import re
from collections.abc import Iterator
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
    except RuntimeError as error:
        # torch.save ends in an error of its own where the file's was the reason.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what programs that were killed were about to write, in a folder and those in it.

    Only where no other program can be writing now.

    Args:
        folder: to look in.
        name: of the files that were to be replaced, as a pattern.

    Raises:
        OSError: if the folder does not let them be removed.
    """
    for file in folder.rglob(f"{name}.*.tmp"):
        if re.search(r"\.\d+\.tmp$", file.name):
            file.unlink(missing_ok=True)
