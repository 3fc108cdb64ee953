"""Checks an exported file against PyTorch, and compares their latency."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich import get_console
from torch import Tensor

from cifar_lightning._version import __version__
from cifar_lightning.checkpoints.io import ModelInfo
from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError
from cifar_lightning.export.formats import Runner
from cifar_lightning.system.counted import counted
from cifar_lightning.tracking.console import note
from cifar_lightning.tracking.tables import Cell, Table, count, data_size, print_table
from cifar_lightning.training.module import Classifier

IMAGES = 512
# Batch sizes that are checked, with the number of batches at most; and those that are timed.
CHECKED = {1: 8, 7: 8, 256: 2}
TIMED = (1, 256)
TURNS = 7  # timings of each, after a warm-up
# Seconds after which threads of an earlier call no longer use the cores.
SETTLED = 0.1

HOW_TO_USE = {
    "onnx": """\
import onnxruntime
session = onnxruntime.InferenceSession({file!r})
(logits,) = session.run(None, {{"images": images}})  # uint8 RGB [N, 3, {size}, {size}]""",
    "pt2": """\
import torch
network = torch.export.load({file!r}).module()
logits = network(images)  # uint8 RGB [N, 3, {size}, {size}]""",
    "safetensors": """\
from safetensors.torch import load_file
network.load_state_dict(load_file({file!r}))  # the weights alone: {target}
logits = network((images / 255 - mean) / std)  # mean and std are in the file's metadata""",
}


@contextmanager
def export_errors(what: str) -> Iterator[None]:
    """Turn any exception of an exporter or a runtime into a UserError.

    Args:
        what: the beginning of the message.

    Raises:
        UserError: with the first line of the reason.
    """
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:  # exporters and runtimes raise any kind
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{what}: {lines[0]}") from error


def describe(info: ModelInfo) -> dict[str, Any]:
    """The metadata of an exported file, as primitives."""
    return {
        "classes": info.classes,
        "image_size": info.image_size,
        "mean": info.mean,
        "std": info.std,
        "data": info.data,
        "model": info.model,
        "network": info.network,
        "cifar_lightning": __version__,
    }


def real_images(data: ImageData) -> tuple[Tensor, str]:
    """Images for the check, uint8 [N, 3, H, W], and their split: `validation` or `train`.

    Test images are not used: they are for the final test. N is at most `IMAGES`.
    """
    if data.val is not None:
        return data.val.images[:IMAGES], "validation"
    return data.train.images[data.train_index[:IMAGES]], "train"


def noise(image_size: int) -> Tensor:
    """Images of random pixels, the same at each call; uint8 [IMAGES, 3, H, W]."""
    shape = (IMAGES, 3, image_size, image_size)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@torch.inference_mode()
def largest_difference(run: Runner, classifier: Classifier, images: Tensor) -> float:
    """The largest difference between the logits of a file and of PyTorch, at three batch sizes.

    Args:
        run: runs the file.
        classifier: float32, on the CPU.
        images: uint8 [N, 3, H, W]; fewer than 256 are repeated.

    Returns:
        The absolute difference; NaN if a logit of the file is NaN.

    Raises:
        UserError: if PyTorch's logits are not finite, or if the file's have another shape.
    """
    images = _repeated(images, max(IMAGES, len(images)))
    largest = torch.zeros(())
    for size, batches in CHECKED.items():
        for batch in images.split(size)[:batches]:
            expected = classifier(batch)  # [N, classes]
            if not expected.isfinite().all():
                raise UserError(
                    "The checkpoint's logits are NaN or infinite, so it is not exported. Use an "
                    "earlier checkpoint."
                )
            logits = run(batch)
            if logits.shape != expected.shape:
                raise UserError(
                    f"The file gives logits of shape {list(logits.shape)} for {len(batch)} images, "
                    f"PyTorch {list(expected.shape)}."
                )
            # torch.maximum keeps NaN; Python's max may lose it.
            largest = torch.maximum(largest, (logits - expected).abs().max())
    return largest.item()


def _repeated(images: Tensor, count: int) -> Tensor:
    return images[torch.arange(count) % len(images)]


@torch.inference_mode()
def latencies(runs: dict[str, Runner], images: Tensor) -> dict[str, float]:
    """Median milliseconds per batch, as `NAME_ms_1` and `NAME_ms_256`.

    Args:
        runs: functions by name; they take turns, so that other load affects all equally.
        images: uint8 [N, 3, H, W]; fewer than 256 are repeated.
    """
    medians = {}
    for size in TIMED:
        batch = _repeated(images, size)
        calls = 10 if size == 1 else 1
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(TURNS + 1):
            for name, run in runs.items():
                # After a call, onnxruntime's threads spin for a while and would slow the next call.
                time.sleep(SETTLED)
                run(batch)
                taken = [_seconds(run, batch) for _ in range(calls)]
                if turn:  # the first is the warm-up
                    seconds[name] += taken
        for name in runs:
            medians[f"{name}_ms_{size}"] = round(statistics.median(seconds[name]) * 1000, 3)
    return medians


def _seconds(run: Callable[[Tensor], object], batch: Tensor) -> float:
    start = time.perf_counter()
    run(batch)
    return time.perf_counter() - start


def show(result: dict[str, Any], classifier: Classifier) -> None:
    """Print a comparison of the file with the checkpoint, and how to use the file.

    Args:
        result: what `export` returns.
        classifier: the checkpoint's.
    """
    headings, timed = ["", "size"], "threads" in result
    if timed:
        headings += [*(f"batch of {size}" for size in TIMED), "images/s"]
    runtime = {"onnx": ", onnxruntime", "pt2": ", torch.export", "safetensors": ""}
    rows = []
    for name, file, key, label in (
        ("eager", result["checkpoint"], "checkpoint_bytes", ", PyTorch float32"),
        ("file", result["output"], "bytes", runtime[result["format"]]),
    ):
        cells = [Cell(Path(file).name + label * timed), Cell(data_size(result[key]), result[key])]
        if timed:
            milliseconds = [result[f"{name}_ms_{size}"] for size in TIMED]
            rate = TIMED[-1] / milliseconds[-1] * 1000
            cells += [Cell(f"{value:,.2f} ms", value) for value in milliseconds]
            cells.append(Cell(count(rate), rate))
        rows.append(cells)
    print_table(Table(headings, rows))
    difference = result["largest_difference"]
    note(
        "difference",
        f"at most {difference:.1e} between the file's logits and PyTorch's"
        if difference
        else "none between the file's logits and PyTorch's",
    )
    images = {
        "validation": "validation images",
        "train": "training images",
        "noise": "images of random pixels, because the run's data cannot be used here",
    }[result["images_of"]]
    note("checked on", f"{result['images']:,} {images}, in batches of 1, 7 and 256")
    if timed:
        note("timed on", counted(result["threads"], "CPU thread"))
    note("file", result["output"])
    how_to_use = HOW_TO_USE[result["format"]].format(
        file=result["output"],
        size=classifier.image_size,
        target=type(classifier.network).__name__,
    )
    get_console().print(f"\n{how_to_use}", markup=False, highlight=False, soft_wrap=True)
