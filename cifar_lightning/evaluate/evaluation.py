"""Evaluates a classifier on the test images; writes, plots and prints the results."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich import get_console
from rich.progress import Progress
from torch import Tensor

from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError
from cifar_lightning.evaluate.corruptions import CORRUPTIONS
from cifar_lightning.run.devices import device_name
from cifar_lightning.run.inference import Inference
from cifar_lightning.system.atomic import atomic_write
from cifar_lightning.tracking import console, evaluation_tables, plots
from cifar_lightning.tracking.tables import count, percent, print_table
from cifar_lightning.training.metrics import (
    calibration,
    class_accuracies,
    confident_mistakes,
    confusion_matrix,
    scores,
)

RESULTS = "evaluation.json"
PICTURES = ("confusion_matrix", "reliability", "mistakes", "robustness")
MISTAKES = 36  # in the plot
CORRUPTED_AT_A_TIME = 1000  # images


def default_folder(checkpoint: Path) -> Path:
    """`evaluation/` in the run folder for the best checkpoint, a folder in it for others."""
    folder = checkpoint.absolute().parent
    folder = (folder.parent if folder.name == "checkpoints" else folder) / "evaluation"
    return folder if checkpoint.stem == "best" else folder / checkpoint.stem


def check_output(folder: Path) -> None:
    """Check that an evaluation would only overwrite files of an earlier evaluation.

    Raises:
        UserError: if it would overwrite another file; names it.
    """
    results = folder / RESULTS
    with contextlib.suppress(OSError, ValueError):
        if "test/acc" in json.loads(results.read_text()):
            return
    for file in (results, *(folder / f"{name}.png" for name in PICTURES)):
        if file.exists():
            raise UserError(
                f"output={folder} would overwrite {file}, which evaluate did not write. "
                "Name another folder."
            )


def measure(
    inference: Inference, data: ImageData, batch_size: int, robustness: bool
) -> tuple[dict[str, Any], Tensor]:
    """Evaluate a classifier on the test images.

    Args:
        inference: runs the classifier.
        data: with the test images.
        batch_size: images per forward pass.
        robustness: whether to measure accuracy under corruptions too.

    Returns:
        The results for `evaluation.json`, and the logits [N, classes] without augmentation.
    """
    images, labels = data.test.images, data.test.labels
    corrupted = sum(len(c.strengths) for c in CORRUPTIONS.values()) if robustness else 0
    with Progress(console=get_console(), transient=True) as progress:
        task = progress.add_task("Evaluating", total=(3 + corrupted) * len(images))

        def advance(count: int) -> None:
            progress.advance(task, count)

        inference.logits(images[:batch_size], batch_size)  # warm-up
        start = time.perf_counter()
        logits = inference.logits(images, batch_size, advance=advance)
        seconds = time.perf_counter() - start
        flipped = inference.logits(images, batch_size, flip=True, advance=lambda n: advance(2 * n))
        curves = _robustness(inference, images, labels, batch_size, advance) if robustness else None
    matrix = confusion_matrix(logits.argmax(1), labels, len(data.classes))
    by_class = zip(data.classes, class_accuracies(matrix), strict=True)
    results = {
        "images": len(images),
        **{f"test/{name}": value for name, value in scores(logits, labels).items()},
        **{f"test/{name}_flip": v for name, v in scores(flipped, labels).items()},
        "test/acc_by_class": dict(by_class),
        "robustness": curves,
        "confusion_matrix": matrix.tolist(),  # labels in rows, predictions in columns
        "calibration": calibration(logits, labels),
        "images_per_s": round(len(images) / seconds, 1),
        "batch_size": batch_size,
        "precision": inference.precision,
        "device": device_name(inference.device),
        "torch": torch.__version__,
    }
    return results, logits


def _robustness(
    inference: Inference,
    images: Tensor,
    labels: Tensor,
    batch_size: int,
    advance: Callable[[int], None],
) -> dict[str, Any]:
    """The strengths and accuracies of each corruption, and `mean_acc`, the mean of all."""
    found: dict[str, Any] = {}
    for name, corruption in CORRUPTIONS.items():
        accuracies = []
        for strength in corruption.strengths:
            hits = 0
            for some in torch.arange(len(images)).split(CORRUPTED_AT_A_TIME):
                corrupted = corruption.apply(images[some], strength)
                logits = inference.logits(corrupted, batch_size, advance=advance)
                hits += int((logits.argmax(1) == labels[some]).sum())
            accuracies.append(round(hits / len(images), 6))
        found[name] = {
            "unit": corruption.unit,
            "strengths": list(corruption.strengths),
            "acc": accuracies,
        }
    everything = [accuracy for curve in found.values() for accuracy in curve["acc"]]
    return {"mean_acc": round(sum(everything) / len(everything), 6), **found}


def save(folder: Path, results: dict[str, Any], logits: Tensor, data: ImageData) -> None:
    """Write the plots of an evaluation, then `evaluation.json`.

    Args:
        folder: created if it does not exist.
        results: the content of `evaluation.json`.
        logits: float [N, classes] of the test images.
        data: with the test images and class names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    title = f"{results['model']} on {results['data']}"
    accuracy = f"{title}: {results['test/acc']:.2%}"
    figures: dict[str, Figure | None] = {
        "confusion_matrix": plots.confusion_matrix(
            torch.tensor(results["confusion_matrix"]).numpy(), data.classes, accuracy
        ),
        "reliability": plots.reliability(results["calibration"], results["test/ece"], title),
        "mistakes": draw_mistakes(logits, data, title),
    }
    if results["robustness"] is not None:
        curves = {n: c["acc"] for n, c in results["robustness"].items() if n != "mean_acc"}
        figures["robustness"] = plots.robustness(curves, results["test/acc"], title)
    for name in PICTURES:
        picture = folder / f"{name}.png"
        if (figure := figures.get(name)) is None:
            picture.unlink(missing_ok=True)  # of an earlier evaluation
            continue
        plots.save_png(figure, picture)
    with atomic_write(folder / RESULTS) as file:
        file.write(f"{json.dumps(results, indent=2)}\n".encode())


def draw_mistakes(logits: Tensor, data: ImageData, title: str) -> Figure | None:
    """Plot the most confident mistakes in a grid; None if there is no mistake."""
    confidences, predictions = logits.softmax(1).max(1)  # [N], [N]
    wrong = confident_mistakes(predictions, confidences, data.test.labels, MISTAKES)
    if not len(wrong.index):
        return None
    captions = [
        f"{data.classes[label]}\n{data.classes[prediction]} {confidence:.0%}"
        for label, prediction, confidence in zip(
            data.test.labels[wrong.index].tolist(),
            wrong.predictions.tolist(),
            wrong.confidences.tolist(),
            strict=True,
        )
    ]
    images = data.test.images[wrong.index].permute(0, 2, 3, 1).numpy()  # [M, H, W, 3]
    return plots.captioned_grid(
        images, captions, f"{title}: most confident mistakes (label above, prediction below)"
    )


def show(results: dict[str, Any], folder: Path) -> None:
    """Print the scores, the accuracy by class and under corruptions, and the folder.

    Args:
        results: the content of `evaluation.json`.
        folder: of `evaluation.json`.
    """
    print_table(evaluation_tables.scores(results))
    print_table(evaluation_tables.by_class(results))
    if results["robustness"] is not None:
        print_table(evaluation_tables.robustness(results))
        mean = percent(results["robustness"]["mean_acc"])
        console.note("corrupted", f"mean accuracy {mean} over all corruptions and strengths")
    console.note("images", f"{count(results['images'])} test images of data={results['data']}")
    console.note("speed", f"{count(results['images_per_s'])} images/s, {results['precision']}")
    console.note("folder", str(folder))
