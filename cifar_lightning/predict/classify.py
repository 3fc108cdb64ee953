"""Decodes and classifies image files in chunks."""

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from cifar_lightning.data.decode import decode_image, map_images
from cifar_lightning.predict.predictions import COLUMNS, Predictions, Row
from cifar_lightning.run.inference import Inference
from cifar_lightning.system.counted import counted
from cifar_lightning.system.memory import check_memory

CHUNK = 1024  # decoded images in memory at once
ON_SHEET = 48  # images

Image = NDArray[np.uint8]
"""[H, W, 3]."""


def classify(paths: Sequence[Path], inference: Inference, batch_size: int) -> Predictions:
    """Decode and classify any number of image files, a chunk in memory at a time.

    Args:
        paths: of the image files, at least one.
        inference: runs the classifier.
        batch_size: images per forward pass; the last digits of probabilities depend on it.

    Raises:
        UserError: if a chunk of decoded images does not fit into memory.
    """
    size, classes = inference.classifier.image_size, inference.classifier.classes
    found = Predictions()
    # Whole batches, so that the last digits are the same as in a test by the Trainer.
    chunk_size = batch_size * max(1, CHUNK // batch_size)
    chunk = min(chunk_size, len(paths))
    check_memory(
        f"{counted(chunk, 'image')} of {size:,} x {size:,} pixels, the checkpoint's size,",
        3 * chunk * size**2,
        "If batch_size is above 1,024, reduce it.",
    )
    started = time.perf_counter()
    with (
        Progress(transient=True) as progress,
        warnings.catch_warnings(action="ignore"),  # Pillow's, for unusual files that it can read
    ):
        task = progress.add_task(f"Classifying {counted(len(paths), 'image')}", total=len(paths))
        for start in range(0, len(paths), chunk_size):
            images: dict[Path, Image] = {}
            for path, image in _decoded(paths[start : start + chunk_size], size):
                if isinstance(image, str):
                    found.broken[path] = image
                else:
                    images[path] = image
                progress.advance(task)
            if images:
                stacked = torch.from_numpy(np.stack(list(images.values())))  # [N, H, W, 3]
                logits = inference.logits(stacked.permute(0, 3, 1, 2), batch_size)
                found.rows += _rows(list(images), logits.softmax(1), classes)
        found.seconds = time.perf_counter() - started
        if found.rows:
            shown = sorted({i * len(found.rows) // ON_SHEET for i in range(ON_SHEET)})
            files = [Path(str(found.rows[position]["image"])) for position in shown]
            decoded = zip(shown, _decoded(files, size), strict=True)
            found.sheet = {at: image for at, (_, image) in decoded if not isinstance(image, str)}
    return found


def _decoded(paths: Sequence[Path], size: int) -> Iterator[tuple[Path, Image | str]]:
    """Decode images to [size, size, 3]; if one fails, yield the reason instead."""

    def decode(path: Path) -> Image | str:
        try:
            return decode_image(path, size)
        except ValueError as error:
            return str(error)

    return zip(paths, map_images(decode, paths, sum(map(_bytes_of, paths))), strict=True)


def _bytes_of(file: Path) -> int:
    with contextlib.suppress(OSError):
        return file.stat().st_size
    return 0


def _rows(paths: Sequence[Path], probabilities: Tensor, classes: Sequence[str]) -> Iterator[Row]:
    """A row of the table for each of N images, from probabilities [N, classes]."""
    # Stable: equal probabilities, which bf16 gives, are ranked by index, as argmax does.
    ranked = probabilities.sort(dim=1, descending=True, stable=True)
    values, indices = ranked.values[:, :3].tolist(), ranked.indices[:, :3].tolist()
    for path, row, picks in zip(paths, values, indices, strict=True):
        cells: list[str | float | None] = [str(path)]
        for probability, pick in zip(row, picks, strict=True):
            cells += [classes[pick], round(probability, 6)]
        cells += [None] * (len(COLUMNS) - len(cells))
        yield dict(zip(COLUMNS, cells, strict=True))
