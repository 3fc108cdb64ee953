"""Tables for the terminal and for reports, and formats of numbers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from rich import box, get_console
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the value that it is sorted by.

    Attributes:
        text: empty if there is no value.
        value: the number that the text shows; None if it shows none.
        link: relative to the page.
        group: number of a group of runs; a page shows the group's colour beside the text.
    """

    text: str
    value: float | None = None
    link: str = ""
    group: int | None = None


@dataclass(frozen=True)
class Table:
    """A table; columns of numbers are right-aligned.

    Attributes:
        headings: of the columns.
        rows: each with a cell per heading.
        best: indices of the rows to highlight.
        sorted_by: index of the column by which the rows are sorted, largest first.
        keys: an id for each row: that of the run's curve on a page.
    """

    headings: list[str]
    rows: list[list[Cell]]
    best: Sequence[int] = ()
    sorted_by: int | None = None
    keys: list[str] = field(default_factory=list)

    @cached_property
    def numeric(self) -> set[int]:
        """Indices of the columns that contain only numbers."""
        filled = [[cell for cell in column if cell.text] for column in zip(*self.rows, strict=True)]
        return {
            index
            for index, cells in enumerate(filled)
            if cells and all(cell.value is not None for cell in cells)
        }


def print_table(table: Table, short: Mapping[str, str] | None = None) -> None:
    """Print a table. Numbers are never cut: a narrow terminal wraps the lines instead.

    Args:
        table: to print.
        short: headings to print instead of the table's own.
    """
    printed = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(table.headings):
        is_number = number in table.numeric
        justify: Literal["left", "right"] = "right" if is_number else "left"
        printed.add_column((short or {}).get(heading, heading), justify=justify, no_wrap=is_number)
    for number, row in enumerate(table.rows):
        # As Text, so that a name in brackets is not taken for markup.
        cells = (Text(cell.text) for cell in row)
        printed.add_row(*cells, style="bold" if number in table.best else None)
    get_console().print(_Uncut(printed), crop=False)


@dataclass(frozen=True)
class _Uncut:
    """Gives a table at least the width of its numbers and longest words, in any terminal."""

    table: RichTable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = Measurement.get(console, options.update(width=10_000), self.table).minimum
        yield from console.render(self.table, options.update(width=max(options.max_width, needed)))


def percent(share: float) -> str:
    """0.8163 as `81.63%`."""
    return f"{share:.2%}"


def seconds(value: float) -> str:
    """189.8 as `189.8 s`."""
    return f"{value:,.1f} s"


def count(value: float) -> str:
    """257856 as `257,856`."""
    return f"{value:,.0f}"


def plain(value: float) -> str:
    """A number with up to four significant digits."""
    return f"{value:,.4g}"


def data_size(size: int) -> str:
    """2092207 bytes as `2.09 MB`, 540000 as `540 kB`, and 300 as `300 bytes`."""
    if size < 1000:
        return f"{size} bytes"
    return f"{size / 1e6:,.2f} MB" if size >= 1e6 else f"{size / 1e3:,.0f} kB"


def numbers(values: Sequence[Any]) -> list[float]:
    """The finite numbers among values of any kind."""
    found = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return [float(v) for v in found if math.isfinite(v)]


def number_cell(value: Any, formatter: Callable[[float], str]) -> Cell:
    """A cell with a formatted number; empty if the value is missing or not finite."""
    found = numbers([value])
    return Cell(formatter(found[0]), found[0]) if found else Cell("")


def facts(metrics: Mapping[str, Any], names: Mapping[str, tuple[str, Any]]) -> dict[str, str]:
    """Metrics as text, by label; missing ones are left out.

    Args:
        metrics: by key.
        names: by key: the label, and a function that formats the number, or `str` for text.
    """
    found = {}
    for key, (name, formatter) in names.items():
        value = metrics.get(key)
        text = str(value) if formatter is str and value else number_cell(value, formatter).text
        if text:
            found[name] = text
    return found
