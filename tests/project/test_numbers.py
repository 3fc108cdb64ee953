"""The data files of benchmarks/results hold the figures of their pages."""

import json
import re
import statistics
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cifar_lightning.config.compose import CONF
from cifar_lightning.models import DilatedDW
from cifar_lightning.models.budget import train_tflop

ROOT = CONF.parent
RESULTS = ROOT / "benchmarks" / "results"

# What a run's metrics.json records, if it is a data file: key, unit, factor.
METRICS = (
    ("val/acc", "%", 100),
    ("test/acc", "%", 100),
    ("test/acc_flip", "%", 100),
    ("train_seconds", "s", 1),
    ("train_tflop", "TFLOP", 1),
    ("images_per_s", "images/s", 1),
)
# Units, as a page prints them or a data file names them, in the units that both are compared in.
SCALES = {
    "%": ("%", 1.0),
    "points": ("points", 1.0),
    "times": ("%", 100.0),
    "ratio": ("%", 100.0),
    "ms": ("s", 0.001),
    "s": ("s", 1.0),
    "seconds": ("s", 1.0),
    "minutes": ("s", 60.0),
    "hours": ("s", 3600.0),
    "TFLOP": ("TFLOP", 1.0),
    "images/s": ("images/s", 1.0),
    "jobs/hour": ("jobs/hour", 1.0),
    "trials/hour": ("trials/hour", 1.0),
    "faults": ("faults", 1.0),
}
NUMBER = r"\d[\d,]*(?:\.\d+)?"


@dataclass(frozen=True)
class Figure:
    """A row of a data file.

    Attributes:
        what: was measured.
        unit: of SCALES.
        recorded: values as the file has them; a page prints such a value with all its digits.
        typical: what a page may round: the only value, or the mean and the median of several.
        std: standard deviation over seeds or rounds; None for a single value.
        ends: the least and the largest value; a page may round them in `4 to 6 minutes`.
        seeds: how many; None if seeds play no part.
    """

    what: str
    unit: str
    recorded: tuple[float, ...]
    typical: tuple[float, ...]
    std: float | None
    ends: tuple[float, float]
    seeds: int | None


def _values(row: dict[str, Any], rows: list[dict[str, Any]]) -> list[float]:
    """The values of a row, recorded or derived from those of other rows."""

    def of(what: str) -> list[float]:
        (other,) = [r for r in rows if r["what"] == what]
        return _values(other, rows)

    if "ratio" in row:
        above, below = map(of, row["ratio"])
        return [a / b for a, b in zip(above, below, strict=True)]
    if "difference" in row:
        (minuend,), (subtrahend,) = map(of, row["difference"])
        return [minuend - subtrahend]
    if "sum" in row:
        return [sum(value for what in row["sum"] for value in of(what))]
    if "images" in row:
        return [train_tflop(DilatedDW(), {32: row["images"]})]
    return list(row.get("values") or row.get("range") or [row["mean"]])


def _figure(row: dict[str, Any], rows: list[dict[str, Any]]) -> Figure:
    values = _values(row, rows)
    several = len(values) > 1
    typical: tuple[float, ...] = (statistics.mean(values),)
    if several and row["unit"] != "%":
        typical += (statistics.median(values),)
    return Figure(
        what=row["what"],
        unit=row["unit"],
        recorded=tuple(values),
        typical=() if "range" in row else typical,
        std=statistics.stdev(values) if several and "range" not in row else row.get("std"),
        ends=(min(values), max(values)),
        seeds=len(row["seeds"]) if "seeds" in row else None,
    )


def _rows(file: Path) -> list[dict[str, Any]]:
    """Of a data file, with what its head says of all of them; or of a run's metrics.json."""
    content = json.loads(file.read_text())
    if "figures" in content:
        runs = [row for name in content.pop("runs", []) for row in _rows(file.parent / name)]
        figures = content.pop("figures")
        return [*runs, *(content | row for row in figures)]
    return [
        {
            "what": f"{content['experiment']}: {key}",
            "unit": unit,
            "values": [content[key] * factor],
            "seeds": [content["seed"]],
        }
        for key, unit, factor in METRICS
    ]


@cache
def figures(file: Path) -> tuple[Figure, ...]:
    """Of a data file, recorded and derived ones."""
    rows = _rows(file)
    return tuple(_figure(row, rows) for row in rows)


DATA = [file for file in sorted(RESULTS.rglob("*.json")) if file.with_suffix(".md").exists()]


@pytest.mark.parametrize("data", DATA, ids=lambda data: str(data.relative_to(RESULTS)))
def test_every_number_of_a_data_file_is_on_its_page(data: Path) -> None:
    content = json.loads(data.read_text())
    text = data.with_suffix(".md").read_text()
    on_page = {float(number.replace(",", "")) for number in re.findall(NUMBER, text)}
    for row in content.pop("figures"):
        assert {"what", "unit", "data", "device", "command"} <= set(content | row), row
        assert row["unit"] in SCALES, row
        recorded = [*row.get("values", ()), *row.get("range", ())]
        recorded += [row[key] for key in ("mean", "std", "images") if key in row]
        assert set(recorded) <= on_page, (row, set(recorded) - on_page)
        assert recorded or {"ratio", "difference", "sum"} & set(row), row
    assert figures(data)
