"""Class folders of images, in a directory or an archive, decoded once and cached."""

import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from rich.progress import Progress

from cifar_lightning.atomic import atomic_write, remove_leftovers
from cifar_lightning.data.archives import Read, open_source
from cifar_lightning.data.image import decode_image, map_images, natural
from cifar_lightning.data.module import ImageData
from cifar_lightning.data.parts import Part, Parts, check_memory
from cifar_lightning.errors import DataUnavailable, UserError

CACHE_FORMAT = 3  # another number and nobody reads an older version's cache
LAYOUT = "train/<class>/* and test/<class>/*"
# What is in memory at once of files yet to be decoded, beside a single one that is larger.
CHUNK, CHUNK_BYTES = 1024, 100_000_000
NAMED = 10  # of many names in a message


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

    def load(self) -> Parts:
        assert self.path is not None  # fetch has refused that
        content = _read_cache(self._cache_file(), fingerprint_of(self.path))
        if content is None:
            raise UserError(f"{self.path} changed while it was being read. Start again.")
        return Parts(
            Part(content["train_images"], content["train_labels"]),
            Part(content["test_images"], content["test_labels"]),
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


def decode(path: Path, resize_to: int | None = None) -> dict[str, Any]:
    """Read all images of a directory or archive of class folders.

    Args:
        path: see `FolderData`.
        resize_to: side in pixels, or None to keep the images' own size.

    Returns:
        `train_images`, `test_images` (uint8 [N, 3, H, W]), `train_labels`, `test_labels`
        (int64 [N]) and `classes` (names, sorted).

    Raises:
        UserError: names what is wrong with the source and where.
    """
    with open_source(path) as (names, read):
        places = _find_images(path, names)
        arrays = _decode_all(path, list(places), read, resize_to)
    classes = sorted({class_name for _, class_name, _ in places.values()})
    content: dict[str, Any] = {"classes": classes}
    for part in ("train", "test"):
        # By file name first: the official order, where the names are official indices.
        order = sorted((n for n in places if places[n][0] == part), key=lambda n: _order(places[n]))
        images = torch.from_numpy(np.stack([arrays[name] for name in order]))  # [N, H, W, 3]
        content[f"{part}_images"] = images.permute(0, 3, 1, 2).contiguous()
        content[f"{part}_labels"] = torch.tensor([classes.index(places[n][1]) for n in order])
    return content


def _order(place: tuple[str, str, str]) -> tuple[list[tuple[int, str]], str]:
    """By file name, its numbers by value (2.png before 10.png), then by class."""
    _, class_name, file = place
    return natural(file), class_name


def _find_images(path: Path, names: list[str]) -> dict[str, tuple[str, str, str]]:
    """Map each image's name in the source to its part, class and file name."""
    places, roots, folders = {}, set(), set()
    for name in names:
        pieces = PurePosixPath(name).parts
        if name.startswith("/") or ".." in pieces:
            raise UserError(f"{path} holds {name!r}, which points out of it. It was not read.")
        if any(piece.startswith((".", "__MACOSX")) for piece in pieces):
            continue
        if name.endswith("/") and pieces[-2:-1] in (("train",), ("test",)):
            folders.add(pieces[-2:])
        if name.endswith("/") or len(pieces) < 3:
            continue
        *above, part, class_name, file = pieces
        if part in ("train", "test"):
            places[name] = (part, class_name, file)
            roots.add("/".join(above))
    classes = {part: {c for p, c, _ in places.values() if p == part} for part in ("train", "test")}
    if not classes["train"] or not classes["test"]:
        missing = " and ".join(part for part in classes if not classes[part])
        raise UserError(f"{path} holds no images for {missing}. Wanted: {LAYOUT}.")
    if len(classes["train"] | classes["test"]) < 2:
        raise UserError(
            f"{path} holds one class, {_some(classes['train'])}: there is nothing to tell it from. "
            f"Wanted: {LAYOUT}, of two classes or more."
        )
    if len(roots) > 1:
        raise UserError(f"{path} holds more than one data set: {_some(roots)}.")
    if empty := folders - {(part, class_name) for part, class_name, _ in places.values()}:
        named = _some("/".join(folder) for folder in empty)
        raise UserError(
            f"{path}: no images in the class folders {named}. Wanted: {LAYOUT}. Links to folders "
            "are not followed."
        )
    if different := classes["train"] ^ classes["test"]:
        raise UserError(f"{path}: train and test differ in the classes {_some(different)}.")
    return places


def _some(names: Iterable[str]) -> str:
    """The first names of perhaps thousands."""
    found = sorted(names)
    return ", ".join(found[:NAMED]) + f" and {len(found) - NAMED:,} more" * (len(found) > NAMED)


def _decode_all(
    path: Path, names: list[str], read: Read, resize_to: int | None
) -> dict[str, NDArray[np.uint8]]:
    def decode_one(item: tuple[str, bytes]) -> NDArray[np.uint8]:
        name, content = item
        try:
            return decode_image(io.BytesIO(content), resize_to)
        except ValueError as error:
            raise UserError(f"{path}: {name} is not an image that can be read: {error}") from error

    def check_room(height: int, width: int) -> None:
        check_memory(
            f"{path}: {len(names):,} images of {width:,} x {height:,} pixels",
            3 * len(names) * 3 * height * width,  # as decoded, stacked, and in the cache's order
            "data.image_size=32 makes them smaller.",
        )

    if resize_to is not None:
        check_room(resize_to, resize_to)
    arrays: dict[str, NDArray[np.uint8]] = {}
    size: tuple[int, ...] = ()
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        Progress(transient=True) as progress,
        warnings.catch_warnings(action="ignore"),  # Pillow's, of odd files that it reads
    ):
        task = progress.add_task(f"Decoding {len(names):,} images", total=len(names))
        # One thread reads, in the archive's order.
        for contents in _chunks(names, read):
            size_of_files = sum(len(content) for _, content in contents)
            decoded = map_images(decode_one, contents, size_of_files, threads)
            for (name, _), array in zip(contents, decoded, strict=True):
                if not size:
                    size = array.shape
                    check_room(*size[:2])
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
    """The files by their names, some at a time, so that memory holds any number of them."""
    chunk: list[tuple[str, bytes]] = []
    size = 0
    for name in names:
        content = read(name)
        chunk.append((name, content))
        size += len(content)
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _pixels(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"
