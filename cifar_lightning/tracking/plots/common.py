"""Colours, titles, axes and saving, for all plots."""

import warnings
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import PercentFormatter

from cifar_lightning.system.atomic import atomic_write

INK, BLUE, GREY, RED = "#24292f", "#1f6feb", "#8a8f98", "#d1242f"
# Readable on white and black; based on Okabe and Ito's palette for colour-blind readers.
PALETTE = (
    *("#1f77d0", "#e0701a", "#12a37a", "#cc62a3", "#b8900c"),
    *("#47a9e0", "#c8323c", "#8a63d2", "#7a8088", "#7f9f1a"),
)


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of a size in inches, with its title at the left."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    return figure


def add_grid(axes: Axes) -> None:
    """Draw a light grid, without a frame at the top and the right."""
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def label_in_percent(axis: Axis) -> None:
    """Label the ticks of an axis from 0 to 1 in percent."""
    axis.set_major_formatter(PercentFormatter(1, decimals=0))


def draw(figure: Figure, stream: Any, **options: Any) -> None:
    """Call matplotlib's `savefig`, without its markup for formulas.

    With markup, a name between dollar signs would be a formula or an error. There is no warning if
    the font lacks a letter.

    Args:
        figure: to draw.
        stream: file to write to.
        options: of `savefig`.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        figure.savefig(stream, **options)


def save_png(figure: Figure, picture: Path) -> None:
    """Write a figure to a PNG file, atomically.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic_write(picture) as file:
        draw(figure, file, format="png")
