"""Reads files from a directory or an archive, with limits against malicious archives."""

import bz2
import gzip
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cifar_lightning.errors import UserError

COMPRESSED: dict[bytes, Callable[..., Any]] = {  # by the first bytes of a file
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\x00\x00": lzma.open,  # .tar.lzma
}
# Far above the size of an image: 33 million pixels, uncompressed.
LARGEST_FILE = 100_000_000  # bytes
# Images hardly compress. An archive that unpacks to more than this many times its size was made to
# fill the memory, unless it unpacks to little.
LARGEST_EXPANSION = 100
SMALL_ARCHIVE = 1_000_000_000  # bytes, unpacked

Read = Callable[[str], bytes]


@contextmanager
def open_source(path: Path) -> Iterator[tuple[list[str], Read]]:
    """Open a directory or an archive for reading, without unpacking it to disk.

    Args:
        path: of the directory or the archive.

    Yields:
        The names of all files and folders (a folder's ends in a slash), and a function that reads a
        file, given its name.

    Raises:
        UserError: on opening, or on reading a file: if the archive is damaged, is not an archive or
            unpacks to more than `LARGEST_EXPANSION` times its size, or if a file has more than
            `LARGEST_FILE` bytes.
    """
    if path.is_dir():
        found = [f for f in path.rglob("*") if f.is_file() or f.is_dir()]
        names = [f.relative_to(path).as_posix() + "/" * f.is_dir() for f in found]

        def read_file(name: str) -> bytes:
            _check_size(path, name, (path / name).stat().st_size)
            return (path / name).read_bytes()

        yield names, read_file
    elif zipfile.is_zipfile(path):
        with _archive_errors(path):
            archive = zipfile.ZipFile(path)
        with archive:
            _check_expansion(path, sum(info.file_size for info in archive.infolist()))

            def read_zipped(name: str) -> bytes:
                _check_size(path, name, archive.getinfo(name).file_size)
                with _archive_errors(path):
                    return archive.read(name)

            yield archive.namelist(), read_zipped
    else:
        with path.open("rb") as file:
            start = file.read(6)
        opened = next((o for magic, o in COMPRESSED.items() if start.startswith(magic)), open)
        with opened(path, "rb") as unpacked:
            with _archive_errors(path):
                tar = tarfile.TarFile(fileobj=_Bounded(path, unpacked))  # type: ignore[arg-type]
                members = {m.name + "/" * m.isdir(): m for m in tar if m.isfile() or m.isdir()}

            def read_member(name: str) -> bytes:
                _check_size(path, name, members[name].size)
                with _archive_errors(path):
                    member = tar.extractfile(members[name])
                    assert member is not None  # regular files have content
                    return bytes(member.read())

            yield list(members), read_member


@contextmanager
def _archive_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading an archive into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged and encrypted archives raise errors of all kinds
        raise UserError(
            f"{path} is damaged or not an archive (.tar.*, .tgz, .zip): {error}"
        ) from error


class _Bounded:
    """A file for `tarfile` that limits how much of it is unpacked."""

    def __init__(self, path: Path, unpacked: BinaryIO) -> None:
        self.path = path
        self.unpacked = unpacked
        self.tell = unpacked.tell

    def read(self, size: int) -> bytes:
        _check_expansion(self.path, self.tell() + size)
        return self.unpacked.read(size)

    def seek(self, position: int) -> int:
        _check_expansion(self.path, position)
        return self.unpacked.seek(position)


def _check_expansion(path: Path, unpacked: int) -> None:
    largest = max(SMALL_ARCHIVE, LARGEST_EXPANSION * path.stat().st_size)
    if unpacked > largest:
        raise UserError(
            f"{path} was not read, because it unpacks to more than {LARGEST_EXPANSION} times its "
            f"size, which images do not: to {unpacked:,} bytes, and the limit is {largest:,}. If "
            "you trust it, unpack it and give the directory."
        )


def _check_size(path: Path, name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise UserError(
            f"{path}: {name} was not read, because it has {size:,} bytes, and the limit for an "
            f"image is {LARGEST_FILE:,}. Remove it, or save a smaller version."
        )
