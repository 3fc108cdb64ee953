"""Class folders of images, in a directory or an archive: their data, decoded once and cached."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from cifar_lightning.data.datamodule import ImageData
from cifar_lightning.data.image_folder import decode
from cifar_lightning.data.splits import ImageSplit, Splits
from cifar_lightning.errors import DataUnavailable, UserError
from cifar_lightning.system.atomic import atomic_write, remove_leftovers

CACHE_FORMAT = 3  # another number and nobody reads an older version's cache


class FolderData(ImageData):
    """Images in class folders: train/<class>/*, test/<class>/*, in folders above these or not.

    Within a part images are ordered by file name, so that a copy of CIFAR-10 whose files are named
    by official index has the official order, and the official splits.

    A directory is the user's own: a link to a file is read, wherever it leads. A link to a folder
    is not gone into, so none leads in a circle. An archive may be a stranger's: its links are not
    followed and its pipes and devices not opened, a name that points out of it is refused, and so
    are a file above 100 MB and an archive that unpacks to above 1 GB and 100 times its size.

    Args:
        path: a directory, or a .tar, .tar.*, .tgz or .zip archive. Archives are read, never
            unpacked.
        cache_dir: where the decoded images are kept; a changed source is decoded again.
        image_size: images are cut to a square in their middle and resized to this many pixels; with
            None they must have one size already.
        batch_size, val_size, split_seed, seed: see `ImageData`.

    Raises:
        ValueError: if `image_size` is below 1.
        DataUnavailable: from `prepare_data`, if `path` is None or does not exist.
        UserError: from `prepare_data`, naming what is wrong with the source and where.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        cache_dir: str | Path = "data/cache",
        image_size: int | None = None,
        batch_size: int = 256,
        val_size: int | float = 5000,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, val_size, split_seed, seed)
        if image_size is not None and image_size < 1:
            raise ValueError(f"image_size must be at least 1, not {image_size}")
        self.path = None if path is None else Path(path).expanduser().absolute()
        self.cache_dir = Path(cache_dir).expanduser()
        self.resize_to = image_size

    def fetch(self) -> None:
        """Decode the images into the cache unless it holds them already."""
        if self.path is None:
            raise DataUnavailable(
                "data=folder needs a directory or an archive: data.path=DIR_OR_ARCHIVE, or the "
                "environment variable CIFAR10_FOLDER."
            )
        if not self.path.exists():
            raise DataUnavailable(f"data.path={self.path}: there is no such file or directory.")
        if not self.path.is_file() and not self.path.is_dir():  # a pipe would be waited for
            raise UserError(f"data.path={self.path} is neither a file nor a directory.")
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        cache, fingerprint = self._cache_file(), fingerprint_of(self.path)
        # One of several runs that start together decodes; the others find its cache.
        with FileLock(f"{cache}.lock"):
            remove_leftovers(self.cache_dir, [cache.name])
            if _read_cache(cache, fingerprint) is None:
                content = decode(self.path, self.resize_to) | {"fingerprint": fingerprint}
                with atomic_write(cache) as file:
                    torch.save(content, file)

    def load(self) -> Splits:
        assert self.path is not None  # fetch has refused that
        content = _read_cache(self._cache_file(), fingerprint_of(self.path))
        if content is None:
            raise UserError(f"{self.path} changed while it was being read. Start again.")
        return Splits(
            ImageSplit(content["train_images"], content["train_labels"]),
            ImageSplit(content["test_images"], content["test_labels"]),
            tuple(content["classes"]),
        )

    def _cache_file(self) -> Path:
        key = os.fsencode(f"{CACHE_FORMAT} {self.path} {self.resize_to}")
        return self.cache_dir / f"{hashlib.sha256(key).hexdigest()[:16]}.pt"


def fingerprint_of(path: Path) -> str:
    """Changes when a directory or file does: by names, sizes and times, without reading it."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(os.fsencode(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()


def _read_cache(file: Path, fingerprint: str) -> dict[str, Any] | None:
    """The cache's content, or None if there is none, it is damaged, or the source has changed."""
    try:
        content = torch.load(file, weights_only=True, mmap=True)
    except Exception:  # torch.load raises whatever the bytes lead it into
        return None
    fits = _is_content(content) and content.get("fingerprint") == fingerprint
    return content if fits else None


def _is_content(content: Any) -> bool:
    """Whether it is what `decode` returns: the cache is a file, which anybody may have altered."""
    classes = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return False
    for part in ("train", "test"):
        images, labels = content.get(f"{part}_images"), content.get(f"{part}_labels")
        if not isinstance(images, torch.Tensor) or not isinstance(labels, torch.Tensor):
            return False
        if images.dtype is not torch.uint8 or images.ndim != 4 or not images.is_contiguous():
            return False
        if images.shape[1] != 3 or not images.numel():
            return False
        if labels.dtype is not torch.int64 or labels.shape != images.shape[:1]:
            return False
        if labels.min() < 0 or labels.max() >= len(classes):
            return False
    return True
