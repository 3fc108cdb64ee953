"""One figure, one source: what the pages print is in a data file of benchmarks/results."""

import ast
import json
import re
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cifar_lightning.config.compose import CONF
from cifar_lightning.models import DilatedDW
from cifar_lightning.models.budget import train_tflop
from cifar_lightning.training.callbacks.target import validation_threshold

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
SCALES: dict[str, tuple[str, float]] = {
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
# Settings, which nobody measured: as a page prints them, a word of the sentences that may, and the
# number in the repository that they are (times a factor), by its file and what stands before it
# there.
SETTINGS = (
    (
        "80 %",
        "target|stops?|reach|stopping|trains to|to 80 %|near",
        100,
        "conf/train.yaml",
        "target_accuracy: ",
    ),
    ("60 %", "of the steps", 100, "conf/callbacks/progressive_resizing.yaml", "until: "),
    ("8 s", "connect", 1, "cifar_lightning/data/download.py", "CONNECT_SECONDS = "),
    ("15 s", "sends nothing", 1, "cifar_lightning/data/download.py", "SILENT_SECONDS = "),
    ("10 s", "heartbeat", 1, "conf/search.yaml", "heartbeat_interval: "),
    ("120 s", "heartbeat", 1, "conf/search.yaml", "grace_period: "),
    ("20 s", "server|waits", 1, "cifar_lightning/tracking/wandb/start.py", "INIT_TIMEOUT = "),
    ("60 s", "waits", 1, "conf/logger/default.yaml", "finish_timeout: "),
    (
        "95 %",
        "interval",
        100,
        "cifar_lightning/tracking/comparison.py",
        "half = stdtrit(degrees, (1 + ",
    ),
)
# What follows from settings: unit, value, and a word of the sentences that may print it.
COMPUTED = (
    # Where a run stops, by the target's confidence; and with the images of data=shapes.
    *(
        ("%", 100 * validation_threshold(0.8, confidence, 5000, 10_000), "stops")
        for confidence in (0.5, 0.8, 0.9, 0.95, 0.99)
    ),
    ("%", 100 * validation_threshold(0.8, 0.9, 500, 1000), "target"),
    ("points", 100 * (0.8 * 0.2 / 10_000) ** 0.5, "standard error"),  # of a test accuracy
    *(
        ("TFLOP", train_tflop(DilatedDW(), {32: images}), "epoch of 45,000 images")
        for images in (45_000, 50_000)
    ),
)
# What others say, or the page itself decides, with a word of the sentences that may print it.
GIVEN = {
    "10 seconds": "takes more than",  # CONTRIBUTING.md, of a test that is marked slow
    "11.5 %": "hardest",  # a fraction that benchmarks/results/speedrun-log.md tried
    "100 %": "train/acc",  # of debug=overfit, if there is no bug
    "94 %": "The original's",  # cifar10-airbench, of its network airbench94
    "2 s": "is killed",  # wandb, of its offline files
    "15 s": "load and memory",  # wandb, of its system metrics
}
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER = r"\d[\d,]*(?:\.\d+)?"
UNIT = r"%|ms|s|points|times as|seconds?|minutes?|hours?|TFLOP|images/s|faults"
PRINTED = re.compile(
    rf"(?<![\w.,/±-])(?:(?P<low>{NUMBER}) to )?(?P<number>{NUMBER})(?: ± (?P<std>{NUMBER}))? ?"
    rf"(?P<unit>{UNIT})(?![\w/])"
    r"(?= (?:on )?(?P<split>val|test)|)"
    r"(?=(?:[^.:;|()]{0,40}\([^()]{0,30}?(?P<seeds>\d+) seeds?\b)?)"
)
IN_WORDS = re.compile(
    rf"\b({'|'.join(WORDS)})( and a half)? (?=(?:times as|seconds?|minutes?|hours?)\b)"
)


def in_digits(words: re.Match[str]) -> str:
    return f"{1 + WORDS.index(words[1])}{'.5' if words[2] else ''} "


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


def _close(recorded: float, unit: str, printed: str, scale: float) -> bool:
    """Whether a page may print a recorded value like this, rounded to these digits."""
    digits = len(printed.partition(".")[2])
    value = float(printed.replace(",", ""))
    return abs(recorded * SCALES[unit][1] - value * scale) <= (0.5 * 10.0**-digits + 1e-9) * scale


def holds(figure: Figure, printed: re.Match[str]) -> bool:
    unit = {"times as": "times", "second": "s", "minute": "minutes", "hour": "hours"}
    base, scale = SCALES[unit.get(printed["unit"], printed["unit"])]
    if SCALES[figure.unit][0] != base:
        return False
    if printed["seeds"] and int(printed["seeds"]) != figure.seeds:
        return False
    if printed["split"] and printed["split"] not in figure.what:
        return False

    def close(recorded: float | None, text: str) -> bool:
        return recorded is not None and _close(recorded, figure.unit, text, scale)

    if printed["low"]:
        return close(figure.ends[0], printed["low"]) and close(figure.ends[1], printed["number"])
    if any(close(value, printed["number"]) for value in figure.typical):
        return not printed["std"] or close(figure.std, printed["std"])
    # Of several values a page may print one, with all its digits: rounded, too many would fit.
    digits = max(len(str(value).partition(".")[2]) for value in figure.recorded)
    return (
        not printed["std"]
        and len(printed["number"].partition(".")[2]) >= digits
        and any(close(value, printed["number"]) for value in figure.recorded)
    )


def is_given(printed: re.Match[str]) -> bool:
    """Whether nobody measured it: a setting, or what follows from settings."""
    if printed["low"] or printed["std"]:
        return False
    settings = [
        (unit, float(number), beside)
        for (number, unit), beside in ((text.split(), beside) for text, beside, *_ in SETTINGS)
    ]
    given = [beside for text, beside in GIVEN.items() if text == printed[0]]
    given += [
        beside
        for unit, value, beside in (*settings, *COMPUTED)
        if unit == printed["unit"] and _close(value, unit, printed["number"], SCALES[unit][1])
    ]
    return any(re.search(rf"\b(?:{beside})", printed.string) for beside in given)


@dataclass
class Block:
    """A paragraph, an item of a list or a row of a table, and where it begins."""

    line: int
    text: str


def blocks(text: str) -> list[Block]:
    """Of Markdown; code is left out."""
    found: list[Block] = []
    fenced, blank = False, True
    for number, line in enumerate(text.splitlines(), 1):
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        if fence or fenced or not line.strip() or (blank and line.startswith("    ")):
            blank = True
        elif blank or re.match(r"\s*(?:[-*+] |\d+\. |\||#)", line):
            found.append(Block(number, line.strip()))
            blank = False
        else:
            found[-1].text += " " + line.strip()
    return found


def linked(page: Path, text: str) -> list[Path]:
    """Pages and data files of benchmarks/results that a block names or links to."""
    named = [ROOT / name for name in re.findall(r"(?<!/)benchmarks/results/[\w/.-]+\w", text)]
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text)
    files = [*named, *((page.parent / link).resolve() for link in links if "://" not in link)]
    return [file for file in files if file.is_relative_to(RESULTS) and file.suffix != ".png"]


def sourced(page: Path) -> Iterator[tuple[Block, list[Path]]]:
    """Each block of a page with the files of benchmarks/results that its figures may come from.

    A row of a table without a link has those of the paragraphs before and after the table.
    """
    content = page.read_text()
    if page.suffix == ".py":  # the module's docstring, which may name its source at its end
        docstring = ast.get_docstring(ast.parse(content)) or ""
        yield Block(1, docstring), linked(page, docstring)
        return
    if page.suffix == ".yaml":  # likewise the comment at the top
        comment = "\n".join(re.findall(r"\A(?:#.*\n)*", content)).replace("\n# ", " ")
        yield Block(1, comment), linked(page, comment)
        return
    found = blocks(content)
    for index, block in enumerate(found):
        files = linked(page, block.text)
        if block.text.startswith("|") and not files:
            before = [b for b in found[:index] if not b.text.startswith("|")][-1:]
            after = [b for b in found[index:] if not b.text.startswith("|")][:1]
            files = [file for b in (*before, *after) for file in linked(page, b.text)]
        yield block, files


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "conf" / "experiment").glob("*.yaml")),
    *sorted((ROOT / "cifar_lightning").rglob("*.md")),
    *sorted((ROOT / "cifar_lightning").rglob("*.py")),
]
DATA = [file for file in sorted(RESULTS.rglob("*.json")) if file.with_suffix(".md").exists()]


def wrong(page: Path) -> Iterator[str]:
    """A line for each figure of a page that has no source, or another value there."""
    for block, files in sourced(page):
        data = list(dict.fromkeys(file.with_suffix(".json") for file in files))
        # Code is no claim, and a link to elsewhere says who measured it.
        text = re.sub(r"`[^`]*`|\[[^\]]*\]\(https:[^)]*\)", "`", block.text)
        text = IN_WORDS.sub(in_digits, " ".join(text.split()))
        for printed in PRINTED.finditer(text):
            if is_given(printed):
                continue
            if any(holds(f, printed) for file in data if file.exists() for f in figures(file)):
                continue
            where = f"{page.relative_to(ROOT)}:{block.line}: {printed[0]!r}"
            others = [
                str(file.relative_to(ROOT))
                for file in DATA
                if any(holds(figure, printed) for figure in figures(file))
            ]
            hint = f"; it is in {' and '.join(others[:3])}: link its page there" if others else ""
            if data:
                names = ", ".join(str(file.relative_to(ROOT)) for file in data)
                yield f"{where} is not in {names}{hint}"
            else:
                yield f"{where} has no link to a page of benchmarks/results beside it{hint}"


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_figure_is_in_the_data_file_of_a_page_that_is_linked_beside_it(page: Path) -> None:
    found = list(wrong(page))
    assert not found, (
        "\n".join(found)
        + "\nCorrect the figure, or link the page in benchmarks/results whose data "
        "file holds it in the same paragraph, list item or row (or beside the table). What nobody "
        "measured goes into SETTINGS, COMPUTED or GIVEN of this test, with where it comes from."
    )


@pytest.mark.parametrize(("printed", "beside", "factor", "name", "before"), SETTINGS)
def test_a_setting_is_what_the_pages_print(
    printed: str, beside: str, factor: float, name: str, before: str
) -> None:
    (number,) = re.findall(
        rf"^.*{re.escape(before)}([\d._]+)", (ROOT / name).read_text(), flags=re.MULTILINE
    )
    assert f"{float(number) * factor:g}" == printed.partition(" ")[0]
