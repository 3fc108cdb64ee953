"""Writes predictions as a table and a contact sheet, and prints them."""

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
from cifar_lightning.system.counted import counted
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
        rows: one per image, in order, with the keys `COLUMNS`: its path and the three most likely
            classes; None if there are fewer classes.
        broken: why images could not be read, by path.
        sheet: a sample of the images, evenly spaced, by index in `rows`: uint8 [H, W, 3], as the
            network gets them.
        seconds: time to read and classify all images.
    """

    rows: list[Row] = field(default_factory=list)
    broken: dict[Path, str] = field(default_factory=dict)
    sheet: dict[int, NDArray[np.uint8]] = field(default_factory=dict)
    seconds: float = 0.0


def nothing_found(images: str, left_out: Counter[str]) -> str:
    """The error message for a folder or a pattern without images."""
    if left_out:
        return f"images={images}: this folder has no image, only {_counted(left_out)}."
    if Path(images).is_dir():
        return f"images={images}: this folder is empty."
    return f"images={images}: there is no such file or folder, and no file matches this pattern."


def check_output(typed: str, images: Sequence[Path]) -> Path:
    """Check before any work that the output would not overwrite a file of the user.

    Args:
        typed: the value of `output`.
        images: the images that will be read.

    Raises:
        UserError: if the suffix is not one of `TABLES`, if nothing can be written there, or if the
            table or its contact sheet would overwrite an input image or a file that `predict` did
            not write.
    """
    output = Path(typed)
    if output.suffix not in TABLES:
        raise UserError(f"output={typed} must end in .csv (a table) or .jsonl (JSON lines).")
    sheet = output.with_suffix(".png")
    inputs = {_identity(image) for image in images}
    for file in (output, sheet):
        if file.is_dir():
            raise UserError(f"output={typed}: {file} is a folder.")
        if file.exists() and _identity(file) in inputs:
            raise UserError(
                f"output={typed} would overwrite {file}, which is one of the images. Name another "
                "output. The contact sheet gets the same name, with the ending .png."
            )
    if output.exists() and output.stat().st_size and not _is_table(output):
        raise UserError(
            f"output={typed} would overwrite {output}, which is not a table of predictions. "
            "Name another output, or move that file away."
        )
    if sheet.exists() and not any(_is_table(output.with_suffix(table)) for table in TABLES):
        raise UserError(
            f"output={typed} would overwrite {sheet} with its contact sheet. Name another output, "
            "or move that file away."
        )
    check_folder(f"output={typed}", output.parent)
    return output


def _is_table(file: Path) -> bool:
    """Whether a file begins like a table that `save` wrote."""
    if not file.is_file():
        return False
    with file.open(
        encoding="utf-8-sig", errors="replace"
    ) as opened:  # Excel adds a byte order mark
        first = opened.readline(10_000)
    is_row = first.startswith('{"image": "') and '"class3": ' in first
    return is_row or first.startswith(",".join(COLUMNS))


def _identity(file: Path) -> tuple[int, int] | None:
    """Device and inode, which all names of a file share; None if it does not exist."""
    with contextlib.suppress(OSError):
        status = file.stat()
        return status.st_dev, status.st_ino
    return None


def save(predictions: Predictions, output: Path) -> Path:
    """Write the table in the format of its suffix, and the contact sheet beside it.

    Returns:
        The path of the contact sheet.
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
        # File names are bytes; Python represents invalid UTF-8 by surrogates.
        file.write(text.getvalue().encode(errors="surrogateescape"))
    sheet = output.with_suffix(".png")
    count, total = len(predictions.sheet), len(predictions.rows)
    title = f"{count:,} of {counted(total, 'image')}" + ", evenly spaced" * (count < total)
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
    note(
        "classified",
        f"{len(rows):,} of {counted(len(rows) + len(broken), 'image')}, {rate:,.0f} images/s",
    )
    for line in reasons(broken):
        note("unreadable", line)
    if left_out:
        note("ignored", _counted(left_out))
    note("table", str(output.absolute()))
    note("sheet", str(sheet.absolute()))


def reasons(broken: Mapping[Path, str]) -> list[str]:
    """Why images could not be read: a line for each of the first few, and the number of others."""
    lines = [f"{_printable(str(path))}: {reason}" for path, reason in broken.items()]
    more = len(lines) - NAMED
    return lines[:NAMED] + [f"{more:,} more"] * (more > 0)


def _counted(left_out: Counter[str]) -> str:
    kinds = [f"{count:,} {_printable(kind)}" for kind, count in left_out.most_common()]
    kinds[5:] = ["…"] * (len(kinds) > 5)
    total = left_out.total()
    return f"{counted(total, 'other file')}: {', '.join(kinds)}"


def _pick(row: Row, number: str) -> str:
    name = row[f"class{number}"]
    return "" if name is None else f"{name} {row[f'probability{number}']:.1%}"


def _shortened(name: str, width: int) -> str:
    """A file name, or its end if it is too long."""
    name = _printable(name)
    return name if len(name) <= width else f"…{name[1 - width :]}"


def _printable(name: str) -> str:
    """Replace the line ends, control characters and invalid UTF-8 that a file name may have."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
