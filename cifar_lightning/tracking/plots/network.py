"""Where a network's costs are, and how much of an image its layers see."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from cifar_lightning.tracking.plots.evaluation import COLOURS

BLUE, _, _, _, ORANGE, LIGHT_BLUE = COLOURS


def costs(layers: Sequence[tuple[str, int, int]], title: str) -> Figure:
    """Each layer's share of all parameters and of all multiply-adds, the first layer on top.

    Args:
        layers: names, parameters, multiply-adds.
        title: one line.
    """
    names, *numbers = zip(*layers, strict=True)
    figure = Figure(figsize=(8, 1.2 + 0.36 * len(names)), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes = figure.subplots()
    places = np.arange(len(names))
    for offset, values, colour, label in (
        (-0.2, numbers[0], BLUE, "parameters"),
        (0.2, numbers[1], ORANGE, "multiply-adds"),
    ):
        shares = np.array(values) / max(sum(values), 1)
        bars = axes.barh(places + offset, shares, color=colour, height=0.38, label=label)
        axes.bar_label(bars, [f"{share:.1%}" for share in shares], padding=3, fontsize=7)
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_xlabel("share of the whole network")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.margins(x=0.1)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure


def fields(
    rows: Sequence[tuple[str, Sequence[tuple[NDArray[np.float32], tuple[int, int]]]]],
    columns: Sequence[str],
    title: str,
) -> Figure:
    """What moves a unit: by how much each pixel does, and the receptive field as a frame around it.

    Args:
        rows: a name, and for each column a map [H, W] from 0 to 1, with the first row of pixels in
            the field and the row after the last; columns of pixels likewise.
        columns: their names.
        title: one line.
    """
    size = (1.3 + 1.9 * len(columns), 0.7 + 1.9 * len(rows))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (name, maps) in zip(grid, rows, strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for axes, (values, (first, after)) in zip(line, maps, strict=True):
            axes.imshow(values, cmap="inferno", vmin=0, vmax=1)
            corner, side = (first - 0.5, first - 0.5), after - first
            axes.add_patch(
                Rectangle(corner, side, side, fill=False, edgecolor=LIGHT_BLUE, clip_on=False)
            )
            axes.set(xticks=[], yticks=[])
    for axes, heading in zip(grid[0], columns, strict=True):
        axes.set_title(heading, fontsize=9)
    return figure
