"""Writes the report of a run or sweep into its folder, and of several into a new one."""

import csv
import io
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cifar_lightning._version import __version__
from cifar_lightning.errors import UserError
from cifar_lightning.report import many_runs, one_run
from cifar_lightning.report.charts import data_uri
from cifar_lightning.system.atomic import atomic_write
from cifar_lightning.system.counted import counted
from cifar_lightning.tracking import seeds
from cifar_lightning.tracking.plots import save_png
from cifar_lightning.tracking.plots.curves import group_style
from cifar_lightning.tracking.run_folder import Run, RunFolder, find_folder, run_folders

TEMPLATES = Path(__file__).parent / "templates"
COMPARISONS = Path("runs/compare")
CURVES = "report_curves.png"


def markdown_text(value: object) -> str:
    """Text on one line, escaped for Markdown and HTML."""
    text = " ".join(str(value).split())
    for special in "\\`*_[]<>|#~":
        text = text.replace(special, f"\\{special}")
    return text


HTML = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
HTML.globals["asset"] = lambda file: Markup((TEMPLATES / file).read_text("utf-8"))
HTML.globals["group_style"] = group_style
HTML.filters["data_uri"] = data_uri
MARKDOWN = HTML.overlay(autoescape=False)
MARKDOWN.filters["text"] = markdown_text


def find_folders(run: str | Sequence[str] | None) -> list[Path]:
    """The folders of runs or sweeps that a user names.

    Args:
        run: one folder, or several, as a list or between commas, with or without brackets; None for
            the newest in runs/train/.

    Raises:
        UserError: if a folder does not exist, or has no run in it.
    """
    names: Sequence[str | None] = [run] if run is None or isinstance(run, str) else [*run]
    if isinstance(run, str) and not Path(run).expanduser().is_dir():
        inner = run[1:-1] if run.startswith("[") and run.endswith("]") else run
        parts = (part.strip(" '\"") for part in inner.split(","))
        names = [part for part in parts if part] or [run]
    return [find_folder(name) for name in names]


def write_report(folder: Path) -> Path:
    """Write report.html, report.md and report.csv, and report_curves.png for several runs.

    Args:
        folder: of a run, or a folder that contains runs.

    Returns:
        The path of report.html.

    Raises:
        UserError: if it would overwrite a file that is not an earlier report.
    """
    _check_output(folder)
    if RunFolder(folder).is_run():
        run = RunFolder(folder).read()
        _write(folder / "report.csv", _csv([run], list(run.settings)))
        return _render(folder, "run", one_run.content_of(run))
    runs = [f.read(name=str(f.path.relative_to(folder))) for f in run_folders(folder)]
    return _write_runs(folder, runs, folder.absolute().name)


def write_comparison(folders: Sequence[Path]) -> Path:
    """Write the same files on all runs in several folders, to a new folder in runs/compare/.

    Args:
        folders: each of a run, or a folder that contains runs.

    Returns:
        The path of report.html.
    """
    runs = (
        f for p in folders for f in ([RunFolder(p)] if RunFolder(p).is_run() else run_folders(p))
    )
    paths = list(dict.fromkeys(run.path.resolve() for run in runs))
    above = os.path.commonpath([path.parent for path in paths])
    folder = COMPARISONS / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    folder.mkdir(parents=True)
    found = [RunFolder(path).read(name=str(path.relative_to(above))) for path in paths]
    return _write_runs(folder, found, f"Comparison of {counted(len(found), 'run')}")


def _write_runs(folder: Path, runs: Sequence[Run], title: str) -> Path:
    _write(folder / "report.csv", _csv(runs, seeds.differing(runs)))
    save_png(many_runs.chart(runs, seeds.groups_of(runs), legend=True), folder / CURVES)
    content = many_runs.content_of(folder, runs) | {"curves": CURVES, "title": title}
    return _render(folder, "runs", content)


def _check_output(folder: Path) -> None:
    for name, mark in (
        ("report.html", "Written by cifar-lightning"),
        ("report.md", "Written by cifar-lightning"),
        ("report.csv", "run,status"),
    ):
        file = folder / name
        if file.exists() and not (file.is_file() and mark in file.read_text("utf-8", "replace")):
            raise UserError(
                f"{file} is not an earlier report, and would be overwritten: move it away."
            )
    if (folder / CURVES).exists() and not (folder / "report.csv").exists():
        raise UserError(
            f"{folder / CURVES} would be overwritten, but it is not of an earlier report: move it "
            "away."
        )


def _render(folder: Path, name: str, content: dict[str, Any]) -> Path:
    content = content | {"version": __version__}
    for environment, ending in ((MARKDOWN, "md"), (HTML, "html")):
        page = folder / f"report.{ending}"
        _write(page, environment.get_template(f"{name}.{ending}.j2").render(content))
    return page


def _csv(runs: Sequence[Run], keys: Sequence[str]) -> str:
    """CSV with a row for each run: its status, its overrides of these keys, and its metrics."""
    metrics = dict.fromkeys(key for run in runs for key in run.metrics)
    settings = [key for key in keys if key not in metrics]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(["run", "status", *settings, *metrics])
    for run in runs:
        overrides = [run.settings.get(key, "") for key in settings]
        values = ["" if (v := run.metrics.get(key)) is None else v for key in metrics]
        writer.writerow([run.name, run.status, *overrides, *values])
    return stream.getvalue()


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
