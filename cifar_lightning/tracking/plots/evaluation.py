"""Plots of an evaluation: confusion matrix, classes, calibration, robustness, mistakes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cifar_lightning.tracking.plots.common import (
    BLUE,
    GREY,
    INK,
    PALETTE,
    RED,
    add_grid,
    label_in_percent,
    new_figure,
)

CELL_INCHES = 1.25  # width of a grid cell: 150 pixels
IMAGE = 128 / 150  # share of the width for the image: 4 pixels for each of 32
CAPTION = 0.3  # height of the caption, two lines, as a share of the width
MAX_WITH_NUMBERS = 20  # classes; with more, numbers in the cells are not readable


def confusion_matrix(matrix: NDArray[np.int64], classes: Sequence[str], title: str) -> Figure:
    """A confusion matrix of counts; each cell is shaded by its share of the row.

    Args:
        matrix: [classes, classes], labels in rows, predictions in columns.
        classes: names.
        title: one line.
    """
    count = len(classes)
    side = min(3.0 + 0.5 * count, 12)
    figure = new_figure(side, side * 0.92, title)
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)  # [classes, classes]
    # The diagonal is large: without the square root, all mistakes would look white.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1.1)
    axes.set_xticks(range(count), classes, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), classes)
    axes.set(xlabel="predicted", ylabel="label")
    axes.tick_params(length=0, labelsize=_fitting(count, side))
    axes.spines[:].set_visible(False)
    if count <= MAX_WITH_NUMBERS:
        for row, column in np.ndindex(matrix.shape):
            if matrix[row, column]:
                axes.text(
                    column,
                    row,
                    f"{matrix[row, column]}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if shares[row, column] > 0.4 else INK,
                )
    return figure


def class_accuracies(accuracies: Mapping[str, float | None], title: str) -> Figure:
    """The accuracy of each class as a bar, with the best class on top.

    Args:
        accuracies: by class, from 0 to 1; None if a class has no images.
        title: one line.
    """
    known = {name: acc for name, acc in accuracies.items() if acc is not None}
    names = sorted(known, key=lambda name: known[name])
    height = min(1.2 + 0.28 * len(names), 12)
    figure = new_figure(6, height, title)
    axes = figure.subplots()
    bars = axes.barh(range(len(names)), [known[name] for name in names], color=BLUE, height=0.7)
    if len(names) <= MAX_WITH_NUMBERS:
        axes.bar_label(bars, [f"{known[name]:.1%}" for name in names], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="accuracy", xlim=(0, 1.1), ylim=(-0.6, len(names) - 0.4))
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    label_in_percent(axes.xaxis)
    axes.tick_params(axis="y", length=0, labelsize=_fitting(len(names), height))
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _fitting(count: int, inches: float) -> float:
    """The font size in points at which `count` labels fit below one another."""
    return min(10, 40 * inches / count)


def reliability(bins: Sequence[Mapping[str, float]], ece: float, title: str) -> Figure:
    """A reliability diagram: accuracy against confidence, and the share of images below it.

    Args:
        bins: each with `confidence`, `acc` and the share of `images`, from 0 to 1.
        ece: expected calibration error, from 0 to 1.
        title: one line.
    """
    figure = new_figure(5.5, 6, title)
    accuracy, images = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    confidences = [b["confidence"] for b in bins]
    accuracy.plot((0, 1), (0, 1), color=GREY, linestyle="--", linewidth=1)
    accuracy.text(0.62, 0.5, "perfectly calibrated", color=GREY, fontsize=9)
    accuracy.vlines(confidences, confidences, [b["acc"] for b in bins], color=RED, alpha=0.5)
    accuracy.plot(confidences, [b["acc"] for b in bins], color=BLUE, marker="o", markersize=5)
    accuracy.set(ylabel="accuracy", ylim=(-0.03, 1.03))
    accuracy.text(0.03, 0.93, f"expected calibration error {ece:.2%}", fontsize=10)
    images.bar(confidences, [b["images"] for b in bins], width=0.05, color=BLUE)
    images.set(xlabel="confidence", ylabel="images", xlim=(0, 1.03))
    for axes in (accuracy, images):
        add_grid(axes)
        label_in_percent(axes.yaxis)
    label_in_percent(images.xaxis)
    return figure


def robustness(curves: Mapping[str, Sequence[float]], clean: float, title: str) -> Figure:
    """Accuracy against the strength of each corruption.

    Args:
        curves: accuracies from 0 to 1 by corruption, weakest first.
        clean: accuracy without corruption.
        title: one line.
    """
    figure = new_figure(7, 4.5, title)
    axes = figure.subplots()
    for number, (name, values) in enumerate(curves.items()):
        colour = PALETTE[number % len(PALETTE)]
        axes.plot([clean, *values], color=colour, marker="o", markersize=4, label=name)
    axes.set_xticks(range(6), ["none", "1", "2", "3", "4", "5"])
    axes.set(xlabel="strength", ylabel="accuracy")
    axes.set_ylim(0, 1)
    label_in_percent(axes.yaxis)
    add_grid(axes)
    axes.legend(loc="lower left", frameon=False)
    return figure


def captioned_grid(
    images: NDArray[np.uint8], captions: Sequence[str], title: str, columns: int = 9
) -> Figure:
    """Images in a grid, each with its caption below.

    Args:
        images: uint8 [N, H, W, 3], square, at least one.
        captions: N texts of up to two lines of about 18 characters.
        title: one line.
        columns: of the grid; fewer if there are fewer images.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    title_height = 0.35 / CELL_INCHES
    # In cells; wide enough for a title.
    width, height = max(columns, 4), rows * (1 + CAPTION) + title_height
    figure = Figure(figsize=(width * CELL_INCHES, height * CELL_INCHES), dpi=120)
    left = (1 - IMAGE) / 2
    figure.suptitle(
        title, fontsize=11, x=left / width, y=1 - 0.1 / CELL_INCHES / height, ha="left", va="top"
    )
    # A single axes for all images: one for each would take seconds.
    axes = figure.add_axes((0.0, 0.0, 1.0, 1 - title_height / height))
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(number, columns)
        above = row * (1 + CAPTION)
        extent: Any = (column + left, column + left + IMAGE, above + IMAGE, above)
        axes.imshow(image, extent=extent, aspect="auto", interpolation="auto")
        axes.text(column + 0.5, above + IMAGE + 0.03, caption, ha="center", va="top", fontsize=7)
    axes.set(xlim=(0, width), ylim=(rows * (1 + CAPTION), 0))
    axes.axis("off")
    return figure
