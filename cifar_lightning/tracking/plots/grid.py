"""Images in rows and columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

INCHES = 1.25  # a cell's width: 150 pixels
IMAGE = 128 / 150  # of it: 4 pixels for each of an image of 32
CAPTION = 0.3  # of it, below the image, for two lines


def captioned_grid(
    images: NDArray[np.uint8], captions: Sequence[str], title: str, columns: int = 9
) -> Figure:
    """Images in rows, each with its caption below.

    Args:
        images: [N, H, W, 3], square, N from 1.
        captions: N of them, of up to two lines of about 18 characters.
        title: one line.
        columns: of the grid, fewer if there are fewer images.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    title_height = 0.35 / INCHES
    # In cells; at least so wide that a title finds room.
    width, height = max(columns, 4), rows * (1 + CAPTION) + title_height
    figure = Figure(figsize=(width * INCHES, height * INCHES), dpi=120)
    left = (1 - IMAGE) / 2
    figure.suptitle(
        title, fontsize=11, x=left / width, y=1 - 0.1 / INCHES / height, ha="left", va="top"
    )
    # One axes for all: an axes for each image would take seconds.
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
