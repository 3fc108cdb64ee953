"""The predictions for images: as a table, as a contact sheet, and on the terminal."""

import contextlib
import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import get_console

from cifar_lightning.config.validate import check_folder
from cifar_lightning.errors import UserError
from cifar_lightning.system.atomic import atomic_write
from cifar_lightning.tracking.console import note
from cifar_lightning.tracking.plots import captioned_grid, save_png
from cifar_lightning.tracking.tables import Cell, Table, print_table

COLUMNS = ("image", "class", "probability", "class2", "probability2", "class3", "probability3")
TABLES = (".csv", ".jsonl")
ON_SCREEN = 20  # rows
NAMED = 10  # broken images

Row = dict[str, str | float | None]


@dataclass
class Predictions:
    """Predictions for images, and the images that could not be read.

    Attributes:
        rows: one per image, in order, by `COLUMNS`: its name and the three most likely classes;
            None where there are fewer.
        broken: the images that could not be read, and why.
        sheet: some of the images, spread over all that could be read, by index in `rows`: uint8
            [H, W, 3], as the network gets them.
        seconds: for reading and classifying all images.
    """

    rows: list[Row] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    sheet: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    seconds: float = 0.0


def nothing_found(images: str, left_out: Counter[str]) -> str:
    """The error message for a folder or a pattern without images."""
    if left_out:
        return f"images={images}: no image is in this folder, but {_counted(left_out)}."
    if Path(images).is_dir():
        return f"images={images}: this folder is empty."
    return f"images={images}: there is no such file or folder, and no file of such a pattern."


def check_output(typed: str, images: Sequence[Path]) -> Path:
    """Check the output path before any work, so that no file of the user's is overwritten.

    Args:
        typed: the value of `output`.
        images: the images that will be read.

    Raises:
        UserError: if the ending is not one of `TABLES`, nothing can be written there, or the table
            or its contact sheet would overwrite an image, or a file that `predict` did not write.
    """
    output = Path(typed)
    if output.suffix not in TABLES:
        raise UserError(f"output={typed} ends neither in .csv (a table) nor .jsonl (JSON lines).")
    sheet = output.with_suffix(".png")
    inputs = {_identity(image) for image in images}
    for file in (output, sheet):
        if file.is_dir():
            raise UserError(f"output={typed}: {file} is a folder.")
        if file.exists() and _identity(file) in inputs:
            raise UserError(
                f"output={typed} would overwrite {file}, which is one of the images. Name another "
                "output; its contact sheet lies beside it, with the ending .png."
            )
    if output.exists() and output.stat().st_size and not _is_table(output):
        raise UserError(
            f"output={typed} would overwrite {output}, which is not a table of predictions. "
            "Name another output, or move that file away."
        )
    if sheet.exists() and not any(_is_table(output.with_suffix(table)) for table in TABLES):
        raise UserError(
            f"output={typed} would overwrite {sheet} with its contact sheet. Name another output, "
            "or move that picture away."
        )
    check_folder(f"output={typed}", output.parent)
    return output


def _is_table(file: Path) -> bool:
    """Whether a file begins as a table that `save` wrote."""
    if not file.is_file():
        return False
    with file.open(encoding="utf-8-sig", errors="replace") as opened:  # Excel adds a mark
        first = opened.readline(10_000)
    is_row = first.startswith('{"image": "') and '"class3": ' in first
    return is_row or first.startswith(",".join(COLUMNS))


def _identity(file: Path) -> tuple[int, int] | None:
    """Device and inode, equal for all names of a file; None if it does not exist."""
    with contextlib.suppress(OSError):
        status = file.stat()
        return status.st_dev, status.st_ino
    return None


def save(predictions: Predictions, output: Path) -> Path:
    """Write the table, in the format of its ending, and the contact sheet beside it.

    Returns:
        The contact sheet.
    """
    text = io.StringIO(newline="")
    if output.suffix == ".csv":
        writer = csv.DictWriter(text, COLUMNS)
        writer.writeheader()
        writer.writerows(predictions.rows)
    else:
        text.writelines(f"{json.dumps(row)}\n" for row in predictions.rows)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as file:
        # File names are bytes; Python keeps those that are not UTF-8 as surrogates.
        file.write(text.getvalue().encode(errors="surrogateescape"))
    sheet = output.with_suffix(".png")
    count, total = len(predictions.sheet), len(predictions.rows)
    title = f"{count:,} of {total:,} images" + ", spread over all of them" * (count < total)
    rows = [predictions.rows[position] for position in predictions.sheet]
    captions = [f"{_pick(row, '')}\n{_shortened(Path(str(row['image'])).name, 20)}" for row in rows]
    grid = captioned_grid(np.stack(list(predictions.sheet.values())), captions, title, columns=8)
    save_png(grid, sheet)
    return sheet


def show(predictions: Predictions, left_out: Counter[str], output: Path, sheet: Path) -> None:
    """Print the first rows, the skipped files, and the paths of the output."""
    rows, broken, console = predictions.rows, predictions.broken, get_console()
    picks = [[_pick(row, n) for n in ("", "2", "3")] for row in rows[:ON_SCREEN]]
    widths = [max(map(len, column)) for column in zip(*picks, strict=True)]
    room = max(console.width - sum(widths) - 12, 20)  # for file names; 12 are between columns
    printed = [
        [Cell(_shortened(str(row["image"]), room)), *map(Cell, cells)]
        for row, cells in zip(rows, picks, strict=False)
    ]
    print_table(Table(["image", "class", "second", "third"], printed))
    if len(rows) > ON_SCREEN:
        console.print(f"… and {len(rows) - ON_SCREEN:,} more\n", highlight=False)
    rate = len(rows) / predictions.seconds
    note("images", f"{len(rows):,} of {len(rows) + len(broken):,}, {rate:,.0f} images/s")
    for line in reasons(broken):
        note("skipped", line)
    if left_out:
        note("left out", _counted(left_out))
    note("table", str(output.absolute()))
    note("sheet", str(sheet.absolute()))


def reasons(broken: Mapping[Path, str]) -> list[str]:
    """Why images could not be read: a line for each of the first, and the count of the others."""
    lines = [f"{_printable(str(path))}: {reason}" for path, reason in broken.items()]
    more = len(lines) - NAMED
    return lines[:NAMED] + [f"{more:,} more"] * (more > 0)


def _counted(left_out: Counter[str]) -> str:
    kinds = [f"{count:,} {_printable(kind)}" for kind, count in left_out.most_common()]
    kinds[5:] = ["…"] * (len(kinds) > 5)
    total = left_out.total()
    return f"{total:,} other file{'s' * (total > 1)}: {', '.join(kinds)}"


def _pick(row: Row, number: str) -> str:
    name = row[f"class{number}"]
    return "" if name is None else f"{name} {row[f'probability{number}']:.1%}"


def _shortened(name: str, width: int) -> str:
    """The end of a file name, if it is too long."""
    name = _printable(name)
    return name if len(name) <= width else f"…{name[1 - width :]}"


def _printable(name: str) -> str:
    """Replace line ends, control characters and invalid UTF-8, which file names may hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
