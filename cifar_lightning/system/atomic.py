"""Writes files atomically, and checks whether a folder is writable."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` once its content is on the disk.

    If the disk is full or the process dies, `path` keeps its old content. The temporary file is in
    the same folder, because renaming is atomic only within a file system.

    Args:
        path: of the file; its folder must exist.

    Yields:
        The temporary file.

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
        # torch.save raises its own error if writing to the file failed.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    """Flush a folder to the disk, so that a renaming is permanent, if the system supports that."""
    with contextlib.suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def is_writable(folder: Path) -> bool:
    """Whether a folder is writable, found by creating something: /proc refuses even root."""
    try:
        with tempfile.TemporaryDirectory(dir=folder):
            return True
    except OSError:
        return False


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove temporary files that killed processes left behind.

    No other process may be writing these files.

    Args:
        folder: of the files; subfolders are not searched.
        names: patterns for the names of the files that were to be replaced.

    Raises:
        OSError: if a file cannot be removed.
    """
    for name in names:
        for file in folder.glob(f"{name}.*.tmp"):
            if re.search(r"\.\d+\.tmp$", file.name):
                file.unlink(missing_ok=True)
