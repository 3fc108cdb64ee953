"""Helpers that write small data sets: class folders, archives, and files like CIFAR-10's."""

import gzip
import io
import lzma
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10

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
            files[f"{above}{part}/{kind}/{i}.png"] = png((10 * i, 0, 200 * (kind == "dog")))
    return files


def write_folder(path: Path, files: Files) -> Path:
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path


def write_tar(path: Path, files: Files) -> Path:
    """Compressed as the ending of its name says."""
    compress: dict[str, Callable[[bytes], bytes]]
    compress = {".xz": lzma.compress, ".tgz": gzip.compress, ".tar": bytes}
    path.write_bytes(compress[path.suffix](tar_of(files)))
    return path


def write_zip(path: Path, files: Files) -> Path:
    path.write_bytes(zip_of(files))
    return path


SOURCES: dict[str, Callable[[Path, Files], Path]] = {
    "folder": lambda path, files: write_folder(path / "set", files),
    "tar.xz": lambda path, files: write_tar(path / "set.tar.xz", files),
    "tgz": lambda path, files: write_tar(path / "set.tgz", files),
    "tar": lambda path, files: write_tar(path / "set.tar", files),
    "zip": lambda path, files: write_zip(path / "set.zip", files),
}


def folder_data(path: Path, **arguments: int) -> FolderData:
    return FolderData(path, batch_size=2, val_size=2, cache_dir=path.parent / "cache", **arguments)


def ready(data: FolderData) -> FolderData:
    data.prepare_data()
    data.setup()
    return data


PNG = png((200, 10, 10), (8, 8))
CLASS_FOLDERS = [f"{split}/{kind}" for split in ("train", "test") for kind in ("cat", "dog")]


def data_set(per_class: int = 2) -> Files:
    return {f"{folder}/{i}.png": PNG for folder in CLASS_FOLDERS for i in range(per_class)}


Odd = Sequence[tuple[str, bytes, bytes]]
"""Members of an archive: name, content, and tar's type, as of a link."""


def tar_of(files: Files, odd: Odd = (), ended: bool = True) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content, kind in (*((n, c, tarfile.REGTYPE) for n, c in files.items()), *odd):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "../../../../etc/passwd"
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(content))
        open_end = file.getvalue()
    return file.getvalue() if ended else open_end


def zip_of(files: Files, odd: Odd = (), method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        for name, content, _ in odd:
            with warnings.catch_warnings(action="ignore"):  # of a name that is there already
                archive.writestr(name or "/", content)
    return file.getvalue()


def bomb(kind: str, times: int = 20) -> bytes:
    """A small archive that unpacks to many zeros, 64 MB so many times."""
    zeros = b"\0" * 2**26
    if kind == "zip":
        return zip_of({**data_set(), "train/cat/5.png": zeros * times}, (), zipfile.ZIP_DEFLATED)
    # The header of a file, or of a file's long name, that goes on and on.
    member = tarfile.TarInfo("notes.txt" if kind == "file" else "././@LongLink")
    member.type = tarfile.REGTYPE if kind == "file" else tarfile.GNUTYPE_LONGNAME
    member.size = times * len(zeros)
    start = gzip.compress(tar_of(data_set(), ended=False) + member.tobuf())
    return start + gzip.compress(zeros, 1) * times  # gzip goes on with what follows


OFFICIAL_PIXELS = np.random.default_rng(0).integers(0, 256, (150, 3072), dtype=np.uint8)
OFFICIAL_CLASSES = ["airplane", "automobile", "bird", "cat", "deer"]


def _official_files() -> Files:
    """Of 20 images a training batch, and 50 test images."""

    def batch(pixels: object, count: int) -> bytes:
        return pickle.dumps({"data": pixels, "labels": [i % 5 for i in range(count)]})

    files = {
        f"data_batch_{i + 1}": batch(OFFICIAL_PIXELS[20 * i : 20 * i + 20], 20)
        for i in range(len(CIFAR10.train_list))
    }
    files["test_batch"] = batch(OFFICIAL_PIXELS[100:], 50)
    files["batches.meta"] = pickle.dumps({"label_names": OFFICIAL_CLASSES})
    return files


OFFICIAL_FILES = _official_files()


def archive_of(files: Files) -> bytes:
    """The official archive, of these files."""
    return gzip.compress(tar_of({f"cifar-10-batches-py/{n}": c for n, c in files.items()}))
