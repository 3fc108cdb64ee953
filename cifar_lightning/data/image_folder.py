"""All images of a directory or an archive of class folders, found and decoded."""

import io
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from cifar_lightning.data.archives import Read, open_source
from cifar_lightning.data.decode import decode_image, map_images
from cifar_lightning.errors import UserError
from cifar_lightning.system.memory import check_memory
from cifar_lightning.system.natural import natural_key

LAYOUT = "train/<class>/* and test/<class>/*"
# What is in memory at once of files yet to be decoded, beside a single one that is larger.
CHUNK, CHUNK_BYTES = 1024, 100_000_000
NAMED = 10  # of many names in a message


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
    return natural_key(file), class_name


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
