"""Figures as files."""

import warnings
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text

from cifar_lightning.system.atomic import atomic_write


def draw(figure: Figure, stream: Any, **options: Any) -> None:
    """Matplotlib's `savefig`, with all texts as they are.

    A name between dollar signs would be set as a formula, or refused as a wrong one; and the font
    may lack letters of another alphabet, of which it need not warn.

    Args:
        figure: to draw.
        stream: to write to.
        options: of `savefig`.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        figure.savefig(stream, **options)


def save_png(figure: Figure, picture: Path) -> None:
    """Write a figure to a PNG file, whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic_write(picture) as file:
        draw(figure, file, format="png")
