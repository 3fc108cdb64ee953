"""Tables as pages show them, and how their figures are written."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it is sorted by.

    Attributes:
        text: empty if there is nothing.
        value: a number, or a text; None is sorted to the end.
        link: an address relative to the page.
        style: of a group's curves, as `pictures.curves.group_style` gives it.
    """

    text: str
    value: float | str | None = None
    link: str = ""
    style: dict[str, Any] | None = None


@dataclass(frozen=True)
class Table:
    """Headings and rows; numbers stand on the right.

    Attributes:
        headings: of the columns.
        rows: of as many cells each.
        numeric: positions of the columns that hold numbers.
        best: position of the row to stress.
        sorted_by: position of the column whose values fall from row to row.
        keys: an id a row, which it shares with the curve of its run.
    """

    headings: list[str]
    rows: list[list[Cell]]
    numeric: set[int] = field(default_factory=set)
    best: int | None = None
    sorted_by: int | None = None
    keys: list[str] = field(default_factory=list)


def percent(share: float) -> str:
    """0.8163 as `81.63 %`."""
    return f"{100 * share:.2f} %"


def seconds(value: float) -> str:
    """189.8 as `189.8 s`."""
    return f"{value:,.1f} s"


def count(value: float) -> str:
    """257856 as `257,856`."""
    return f"{value:,.0f}"


def plain(value: float) -> str:
    """With up to four digits."""
    return f"{value:,.4g}"


# Of the figures of a run that tables have: the heading, the unit's factor, digits, the unit.
FIGURES: dict[str, tuple[str, float, int, str]] = {
    "val/acc": ("val accuracy", 100, 2, " %"),
    "test/acc": ("test accuracy", 100, 2, " %"),
    "test/loss": ("test loss", 1, 3, ""),
    "epochs": ("epochs", 1, 2, ""),
    "seconds_to_target": ("seconds to target", 1, 1, ""),
    "train_seconds": ("training seconds", 1, 1, ""),
    "images_per_s": ("images/s", 1, 0, ""),
    "train_tflop": ("TFLOP", 1, 2, ""),
}


def numbers(values: Sequence[Any]) -> list[float]:
    """Those of the values that are numbers."""
    found = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return [float(v) for v in found if math.isfinite(v)]


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and sample standard deviation (n - 1), which one value does not have."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def figure(key: str, values: Sequence[Any]) -> Cell:
    """Mean ± standard deviation of one of `FIGURES` over runs; empty where no run has it."""
    found = numbers(values)
    if not found:
        return Cell("")
    mean, sd = mean_and_sd(found)
    _, factor, digits, unit = FIGURES[key]
    if key == "epochs" and sd in (None, 0) and mean == int(mean):
        digits = 0  # 4 epochs, but 4.25 where a run is between two
    if sd is None:
        return Cell(f"{factor * mean:,.{digits}f}{unit}", mean)
    return Cell(f"{factor * mean:,.{digits}f} ± {factor * sd:,.{digits}f}{unit}", mean)


def optional(value: Any, write: Callable[[float], str]) -> Cell:
    """A cell of a number that may be missing."""
    found = numbers([value])
    return Cell(write(found[0]), found[0]) if found else Cell("")


def facts(metrics: Mapping[str, Any], names: Mapping[str, tuple[str, Any]]) -> dict[str, str]:
    """The figures of `metrics` that are there: what each is called, and how it is written.

    Args:
        metrics: by key.
        names: by key, a name, and a function that writes a number, or `str` for a text.
    """
    found = {}
    for key, (name, write) in names.items():
        value = metrics.get(key)
        text = str(value) if write is str and value else optional(value, write).text
        if text:
            found[name] = text
    return found
