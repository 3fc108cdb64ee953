"""Small data sets of class folders, in a directory or an archive."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from cifar_lightning.data import FolderData

Files = dict[str, bytes]


def png(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(file, "png")
    return file.getvalue()


def small_data_set(above: str = "") -> Files:
    """Two classes; the file names interleave them, as official indices do."""
    files = {f"{above}labels.txt": b"cat\ndog\n", f"{above}train/cat/.hidden": b""}
    for part, count in (("train", 12), ("test", 4)):
        for i in range(count):
            kind = ("cat", "dog")[i % 2]
            files[f"{above}{part}/{kind}/{i:05d}.png"] = png(
                (10 * i, 0, 200 if kind == "dog" else 0)
            )
    return files


def write_folder(path: Path, files: Files) -> Path:
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path


def write_tar(path: Path, files: Files, mode: str = "w:xz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_zip(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


SOURCES: dict[str, Callable[[Path, Files], Path]] = {
    "folder": lambda path, files: write_folder(path / "set", files),
    "tar.xz": lambda path, files: write_tar(path / "set.tar.xz", files),
    "tgz": lambda path, files: write_tar(path / "set.tgz", files, "w:gz"),
    "tar": lambda path, files: write_tar(path / "set.tar", files, "w"),
    "zip": lambda path, files: write_zip(path / "set.zip", files),
}


def folder_data(path: Path, **arguments: int) -> FolderData:
    return FolderData(path, batch_size=2, val_size=2, cache_dir=path.parent / "cache", **arguments)


def ready(data: FolderData) -> FolderData:
    data.prepare_data()
    data.setup()
    return data
