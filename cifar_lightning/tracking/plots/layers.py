"""Plots of a network's layers: filters, feature maps and activation maps."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.float32]

CELL, GAP = 48, 4  # pixels
CHANNELS = 10  # of each layer, in the plot
LABEL = 1.6  # inches


def filters(weights: Array, title: str) -> Figure:
    """The filters of the first layer as colour images, each scaled by its largest weight.

    Args:
        weights: [filters, 3, H, W]; grey is 0.
        title: one line.
    """
    largest = np.abs(weights).max(axis=(1, 2, 3), keepdims=True)
    images = 0.5 + 0.5 * weights / np.maximum(largest, 1e-12)  # [F, 3, H, W]
    cells = [_cell(image.transpose(1, 2, 0)) for image in images]
    columns = 16
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    return _mosaic(rows, [], [], title)


def feature_maps(
    image: NDArray[np.uint8], layers: Sequence[tuple[str, Array]], title: str
) -> Figure:
    """An image, and for each layer a row of the feature maps with the most contrast.

    Args:
        image: uint8 [H, W, 3].
        layers: name and maps [channels, h, w] of each layer.
        title: one line.
    """
    rows, names = [[_cell(image / 255)]], ["the image"]
    for name, maps in layers:
        most = np.argsort(-maps.std(axis=(1, 2)), kind="stable")[:CHANNELS]
        rows.append([_cell(_coloured(maps[channel])) for channel in most])
        names.append(f"{name}\n{' x '.join(map(str, maps.shape))}")
    return _mosaic(rows, names, [], title)


def activation_maps(
    images: NDArray[np.uint8],
    captions: Sequence[str],
    layers: Sequence[tuple[str, Array]],
    title: str,
) -> Figure:
    """A row for each image: the image, and its activation map in each layer.

    Args:
        images: uint8 [N, H, W, 3].
        captions: N texts.
        layers: name and maps [N, H, W] from 0 to 1 of each layer.
        title: one line.
    """
    rows = []
    for number, image in enumerate(images):
        grey = (image / 255).mean(-1, keepdims=True) * np.ones(3)  # [H, W, 3]
        heat = [colormaps["inferno"](maps[number])[..., :3] for _, maps in layers]
        rows.append([_cell(image / 255), *(_cell(0.35 * grey + 0.65 * h) for h in heat)])
    columns = ["image", *(_heading(name) for name, _ in layers)]
    return _mosaic(rows, captions, columns, title)


def _heading(name: str) -> str:
    """`4 conv 3x3 dilation 2` in three lines."""
    number, kind, *rest = name.split(" ", 3)
    return "\n".join([f"{number} {kind}", *rest])


def _coloured(values: Array) -> NDArray[np.float64]:
    """A map [h, w] as colours [h, w, 3], scaled from its smallest to its largest value."""
    span = values.max() - values.min()
    colours: NDArray[np.float64] = colormaps["viridis"]((values - values.min()) / (span or 1))
    return colours[..., :3]


def _cell(image: NDArray[np.floating]) -> NDArray[np.floating]:
    """An image [h, w, 3] enlarged to a cell, with its pixels as squares."""
    rows = np.arange(CELL) * image.shape[0] // CELL
    columns = np.arange(CELL) * image.shape[1] // CELL
    cell: NDArray[np.floating] = image[rows][:, columns]
    return cell


def _mosaic(
    rows: Sequence[Sequence[NDArray[np.floating]]],
    labels: Sequence[str],
    columns: Sequence[str],
    title: str,
) -> Figure:
    """Cells in rows, with labels on the left and headings above.

    All cells are one image: an axes for each would take seconds.
    """
    step = CELL + GAP
    width = max(len(row) for row in rows) * step
    canvas = np.ones((len(rows) * step, width, 3))
    for y, row in enumerate(rows):
        for x, cell in enumerate(row):
            canvas[y * step : y * step + CELL, x * step : x * step + CELL] = cell

    scale = 64  # pixels of the canvas per inch
    left = LABEL if labels else 0.1
    above = 0.95 if columns else 0.4
    size = (left + width / scale, above + canvas.shape[0] / scale)
    figure = Figure(figsize=(max(size[0], 6.0), size[1]), dpi=144)
    figure_width = figure.get_figwidth()
    figure.suptitle(title, fontsize=11, x=0.1 / figure_width, y=1 - 0.1 / size[1], ha="left")
    axes = figure.add_axes(
        (left / figure_width, 0.0, width / scale / figure_width, 1 - above / size[1])
    )
    axes.imshow(canvas, aspect="auto", interpolation="nearest")
    axes.axis("off")
    for y, label in enumerate(labels):
        middle = y * step + CELL / 2
        axes.text(-8, middle, label, ha="right", va="center", fontsize=8, clip_on=False)
    for x, heading in enumerate(columns):
        middle = x * step + CELL / 2
        axes.text(middle, -6, heading, ha="center", va="bottom", fontsize=7, clip_on=False)
    return figure
