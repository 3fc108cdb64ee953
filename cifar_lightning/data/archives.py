"""Directories and archives as names and bytes; of archives no more than an honest one holds."""

import bz2
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cifar_lightning.errors import UserError

# What the archive readers raise on a file that is truncated, altered, encrypted or no archive at
# all: among them ValueError, as of names that are no UTF-8, and RuntimeError, of passwords.
DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, ValueError, RuntimeError, LookupError, OverflowError),
)
COMPRESSED: dict[bytes, Callable[..., Any]] = {  # how a file begins that one of these reads
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x5d\x00\x00": lzma.open,  # .tar.lzma
}
# Far more than an image has: without any compression, this is one of 33 million pixels.
LARGEST_FILE = 100_000_000  # bytes
# Archives of images hardly shrink. One that unpacks to more than this many times its size is made
# to fill a memory or to take for ever; a small one may, for it does neither.
LARGEST_EXPANSION = 100
SMALL_ARCHIVE = 1_000_000_000  # bytes, unpacked

Read = Callable[[str], bytes]


@contextmanager
def open_source(path: Path) -> Iterator[tuple[list[str], Read]]:
    """The names of all files and folders, these with a slash at the end, and what reads a file.

    Args:
        path: a directory, or an archive, of which nothing is ever unpacked to a disk.

    Raises:
        UserError: here or from the reading, if the archive is damaged or none, or unpacks to more
            than `LARGEST_EXPANSION` times its size, or a file is above `LARGEST_FILE`.
    """
    if path.is_dir():
        found = [f for f in path.rglob("*") if f.is_file() or f.is_dir()]
        names = [f.relative_to(path).as_posix() + "/" * f.is_dir() for f in found]

        def read_file(name: str) -> bytes:
            _check_size(path, name, (path / name).stat().st_size)
            return (path / name).read_bytes()

        yield names, read_file
    elif zipfile.is_zipfile(path):
        with _named_damage(path):
            archive = zipfile.ZipFile(path)
        with archive:
            _check_expansion(path, sum(info.file_size for info in archive.infolist()))

            def read_zipped(name: str) -> bytes:
                _check_size(path, name, archive.getinfo(name).file_size)
                with _named_damage(path):
                    return archive.read(name)

            yield archive.namelist(), read_zipped
    else:
        with path.open("rb") as file:
            start = file.read(6)
        opened = next((o for magic, o in COMPRESSED.items() if start.startswith(magic)), open)
        with opened(path, "rb") as unpacked:
            with _named_damage(path):
                tar = tarfile.TarFile(fileobj=_Bounded(path, unpacked))  # type: ignore[arg-type]
                members = {m.name + "/" * m.isdir(): m for m in tar if m.isfile() or m.isdir()}

            def read_member(name: str) -> bytes:
                _check_size(path, name, members[name].size)
                with _named_damage(path):
                    member = tar.extractfile(members[name])
                    assert member is not None  # regular files have content
                    return bytes(member.read())

            yield list(members), read_member


@contextmanager
def _named_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise UserError(
            f"{path} is damaged or not an archive (.tar.*, .tgz, .zip): {error}"
        ) from error


class _Bounded:
    """An archive as `tarfile` reads it, which ends in a message where it unpacks without an end."""

    def __init__(self, path: Path, unpacked: BinaryIO) -> None:
        self.path = path
        self.unpacked = unpacked
        self.tell = unpacked.tell

    def read(self, size: int) -> bytes:
        _check_expansion(self.path, self.tell() + size)
        return self.unpacked.read(size)

    def seek(self, place: int) -> int:
        _check_expansion(self.path, place)
        return self.unpacked.seek(place)


def _check_expansion(path: Path, unpacked: int) -> None:
    largest = max(SMALL_ARCHIVE, LARGEST_EXPANSION * path.stat().st_size)
    if unpacked > largest:
        raise UserError(
            f"{path} unpacks to more than {LARGEST_EXPANSION} times its size, as no archive of "
            f"images does: {unpacked:,} bytes, where {largest:,} are the limit. It was not read. "
            "If you trust it, unpack it and name the directory."
        )


def _check_size(path: Path, name: str, size: int) -> None:
    if size > LARGEST_FILE:
        raise UserError(
            f"{path}: {name} has {size:,} bytes, and {LARGEST_FILE:,} are the limit for an image. "
            "It was not read. Take it out, or save it smaller."
        )
