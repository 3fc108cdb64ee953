"""Images in class folders of a directory or an archive, decoded once and cached."""

import hashlib
import io
import os
import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from cifar_lightning.data.archives import Read, open_source
from cifar_lightning.data.datamodule import ImageData
from cifar_lightning.data.decode import decode_image, map_images
from cifar_lightning.data.splits import ImageSplit, Splits
from cifar_lightning.errors import DataUnavailable, UserError
from cifar_lightning.system.atomic import atomic_write, remove_leftovers
from cifar_lightning.system.memory import check_memory
from cifar_lightning.system.natural import natural_key

CACHE_FORMAT = 3  # part of the cache's file name: raise it when the content changes
SPLITS = ("train", "test")
LAYOUT = "train/<class>/* and test/<class>/*"
# Encoded files in memory at once: at most this many, and this many bytes (or one larger file).
CHUNK_FILES, CHUNK_BYTES = 1024, 100_000_000
NAMES_SHOWN = 10  # in a message, at most


class FolderData(ImageData):
    """Images in class folders, train/<class>/* and test/<class>/*, at any depth.

    Within a split, images are ordered by file name. So a copy of CIFAR-10 whose files are named by
    their official index has the official order, and the same validation split.

    In a directory, links to files are followed, links to folders are not. Archives are not trusted:
    links, pipes and devices in them are ignored; names that point outside are refused, and so are
    files above 100 MB, and archives that unpack to more than 1 GB and 100 times their size.

    Args:
        path: a directory, or a .tar, .tar.*, .tgz or .zip archive, which is not unpacked.
        cache_dir: folder of the decoded images; a changed directory or archive is decoded again.
        image_size: images are cropped to the square in their middle and resized to this height and
            width in pixels; with None they must all have the same size.
        batch_size, val_size, split_seed, seed: see `ImageData`.

    Raises:
        ValueError: if `image_size` is below 1.
        DataUnavailable: from `prepare_data`, if `path` is None or does not exist.
        UserError: from `prepare_data`, if the images cannot be used; says which and why.
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
        if not self.path.is_file() and not self.path.is_dir():  # reading a pipe would never end
            raise UserError(f"data.path={self.path} is neither a file nor a directory.")
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        cache, fingerprint = self._cache_file(), _fingerprint(self.path)
        # If several runs start together, one decodes; the others wait and read its cache.
        with FileLock(f"{cache}.lock"):
            remove_leftovers(self.cache_dir, [cache.name])
            if _read_cache(cache, fingerprint) is None:
                content = _decode_all(self.path, self.resize_to) | {"fingerprint": fingerprint}
                with atomic_write(cache) as file:
                    torch.save(content, file)

    def load(self) -> Splits:
        assert self.path is not None  # checked by fetch
        content = _read_cache(self._cache_file(), _fingerprint(self.path))
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


def _fingerprint(path: Path) -> str:
    """Hash the names, sizes and times of a directory's files, or of an archive."""
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(os.fsencode(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0"))
    return digest.hexdigest()


def _read_cache(file: Path, fingerprint: str) -> dict[str, Any] | None:
    """Read the cache; None if there is none, it is damaged, or the source has changed."""
    try:
        content: dict[str, Any] = torch.load(file, weights_only=True, mmap=True)
        intact = (
            content["fingerprint"] == fingerprint
            and all(isinstance(name, str) for name in content["classes"])
            and all(
                _is_split(content[f"{split}_images"], content[f"{split}_labels"])
                and int(content[f"{split}_labels"].max()) < len(content["classes"])
                for split in SPLITS
            )
        )
    except Exception:  # damaged or altered files raise errors of all kinds
        return None
    return content if intact else None


def _is_split(images: Tensor, labels: Tensor) -> bool:
    """Whether these are uint8 [N, 3, H, W] and int64 [N], as `_decode_all` returns them."""
    return (
        images.dtype is torch.uint8
        and images.shape[1:2] == (3,)
        and images.ndim == 4
        and images.numel() > 0
        and images.is_contiguous()
        and labels.dtype is torch.int64
        and labels.shape == images.shape[:1]
        and int(labels.min()) >= 0
    )


class _ImageName(NamedTuple):
    """The parts of an image's name in a source: `<root>/<split>/<class_name>/<file>`."""

    root: str
    split: str
    class_name: str
    file: str


def _decode_all(path: Path, resize_to: int | None) -> dict[str, Any]:
    """Decode all images of a directory or an archive of class folders.

    Returns:
        `train_images`, `test_images` (uint8 [N, 3, H, W]), `train_labels`, `test_labels`
        (int64 [N]) and `classes` (names, sorted).
    """
    with open_source(path) as (names, read):
        found = _find_images(path, names)
        arrays = _decode_images(path, list(found), read, resize_to)
    classes = sorted({image.class_name for image in found.values()})
    content: dict[str, Any] = {"classes": classes}
    for split in SPLITS:
        # By file name, numbers by value: the official order, if names are official indices.
        order = sorted(
            (name for name, image in found.items() if image.split == split),
            key=lambda name: (natural_key(found[name].file), found[name].class_name),
        )
        images = torch.from_numpy(np.stack([arrays[name] for name in order]))  # [N, H, W, 3]
        content[f"{split}_images"] = images.permute(0, 3, 1, 2).contiguous()
        labels = [classes.index(found[name].class_name) for name in order]
        content[f"{split}_labels"] = torch.tensor(labels)
    return content


def _find_images(path: Path, names: list[str]) -> dict[str, _ImageName]:
    """Find the images that are not hidden among a source's names; a folder's ends in a slash."""
    images: dict[str, _ImageName] = {}
    class_folders: set[tuple[str, ...]] = set()
    for name in names:
        pieces = PurePosixPath(name).parts
        if name.startswith("/") or ".." in pieces:
            raise UserError(f"{path} was not read, because {name!r} in it points outside of it.")
        if any(piece.startswith((".", "__MACOSX")) for piece in pieces):
            continue
        if name.endswith("/"):
            if len(pieces) >= 2 and pieces[-2] in SPLITS:
                class_folders.add(pieces[-2:])
        elif len(pieces) >= 3 and pieces[-3] in SPLITS:
            images[name] = _ImageName("/".join(pieces[:-3]), *pieces[-3:])
    _check_layout(path, images.values(), class_folders)
    return images


def _check_layout(
    path: Path, images: Collection[_ImageName], class_folders: set[tuple[str, ...]]
) -> None:
    """Refuse a source that is not one data set with the same classes in train and test."""
    classes = {split: {i.class_name for i in images if i.split == split} for split in SPLITS}
    if missing := " and ".join(split for split in SPLITS if not classes[split]):
        raise UserError(f"{path} holds no images for {missing}. Expected: {LAYOUT}.")
    if len(classes["train"] | classes["test"]) < 2:
        raise UserError(
            f"{path} holds only one class, {_first_names(classes['train'])}. "
            f"Expected: {LAYOUT}, with two classes or more."
        )
    if len(roots := {image.root for image in images}) > 1:
        raise UserError(f"{path} holds more than one data set: {_first_names(roots)}.")
    if empty := class_folders - {(image.split, image.class_name) for image in images}:
        raise UserError(
            f"{path}: no images in the class folders {_first_names(map('/'.join, empty))}. "
            f"Expected: {LAYOUT}. Links to folders are not followed."
        )
    if different := classes["train"] ^ classes["test"]:
        raise UserError(f"{path}: train and test differ in the classes {_first_names(different)}.")


def _first_names(names: Iterable[str]) -> str:
    """The first of the names, sorted, and how many more there are."""
    found = sorted(names)
    more = len(found) - NAMES_SHOWN
    return ", ".join(found[:NAMES_SHOWN]) + f" and {more:,} more" * (more > 0)


def _decode_images(
    path: Path, names: list[str], read: Read, resize_to: int | None
) -> dict[str, NDArray[np.uint8]]:
    """Decode the images, by name: uint8 [H, W, 3] each, all of one size."""

    def decode_one(item: tuple[str, bytes]) -> NDArray[np.uint8]:
        name, content = item
        try:
            return decode_image(io.BytesIO(content), resize_to)
        except ValueError as error:
            raise UserError(f"{path}: {name} cannot be read as an image: {error}") from error

    def check_fits(height: int, width: int) -> None:
        check_memory(
            f"{path}: {len(names):,} images of {width:,} x {height:,} pixels",
            3 * len(names) * 3 * height * width,  # three copies: decoded, stacked, permuted
            "data.image_size=32 makes them smaller.",
        )

    if resize_to is not None:
        check_fits(resize_to, resize_to)
    arrays: dict[str, NDArray[np.uint8]] = {}
    size: tuple[int, ...] = ()
    with (
        Progress(transient=True) as progress,
        warnings.catch_warnings(action="ignore"),  # Pillow's, about odd files that it can read
    ):
        task = progress.add_task(f"Decoding {len(names):,} images", total=len(names))
        # Files are read by this thread alone, in the archive's order.
        for contents in _chunks(names, read):
            size_of_files = sum(len(content) for _, content in contents)
            decoded = map_images(decode_one, contents, size_of_files)
            for (name, _), array in zip(contents, decoded, strict=True):
                if not size:
                    size = array.shape
                    check_fits(*size[:2])
                if array.shape != size:
                    raise UserError(
                        f"{path} holds images of mixed sizes: {names[0]} has {_pixels(size)}, "
                        f"{name} has {_pixels(array.shape)}. data.image_size={size[0]} makes all "
                        f"of them {size[0]} x {size[0]}."
                    )
                arrays[name] = array
            progress.advance(task, len(contents))
    return arrays


def _chunks(names: list[str], read: Read) -> Iterator[list[tuple[str, bytes]]]:
    """Read files in chunks of limited size: their names and contents."""
    chunk: list[tuple[str, bytes]] = []
    size = 0
    for name in names:
        content = read(name)
        chunk.append((name, content))
        size += len(content)
        if len(chunk) == CHUNK_FILES or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"
