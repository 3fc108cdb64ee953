"""A sweep (`-m`): which of its jobs are to be run, and what became of them.

A job is a list of overrides; its folder is a run's. `GridSweeper` in `hydra_plugins` calls this.
"""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rich import box, get_console
from rich.table import Table as RichTable
from rich.text import Text

from cifar_lightning.config.messages import explain
from cifar_lightning.errors import UserError
from cifar_lightning.report.commands import resume_sweep_command
from cifar_lightning.report.groups import best_run, describe, differing, groups_of, verdict
from cifar_lightning.report.many_runs import by_configuration, by_run
from cifar_lightning.report.tables import Table
from cifar_lightning.report.write import write_report
from cifar_lightning.tracking.run_folder import run_folders

Job = list[str]

# Of the columns of a report those that fit on a terminal, and their short headings there.
SHOWN = ("val/acc", "test/acc", "epochs", "train_seconds")
SHORT = {"val accuracy": "val acc", "test accuracy": "test acc", "training seconds": "seconds"}
LONGEST_TABLE = 100  # rows; of more runs the report has all


def missing_jobs(folder: Path, jobs: Sequence[Job], resume: bool) -> list[tuple[str | None, Job]]:
    """The jobs that are not finished, each with its folder's name; None leaves that to Hydra.

    Args:
        folder: of the sweep.
        jobs: all of it.
        resume: whether the folder may have runs already.

    Raises:
        UserError: if it has, and may not.
    """
    there = run_folders(folder) if folder.is_dir() else []
    if there and not resume:
        raise UserError(
            f"{folder} has runs already. resume_sweep={folder} goes on with them; another "
            "hydra.sweep.dir begins anew."
        )
    if not resume:
        return [(None, job) for job in jobs]
    runs = {frozenset(run.overrides): run for run in (f.read() for f in there)}
    names = {str(run.folder.relative_to(folder)) for run in runs.values()}
    free = (str(number) for number in range(len(jobs) + len(names)) if str(number) not in names)
    missing: list[tuple[str | None, Job]] = []
    for job in jobs:
        run = runs.get(frozenset(job))
        if run is None:
            missing.append((next(free), job))
        elif run.status != "finished":
            missing.append((str(run.folder.relative_to(folder)), job))
    return missing


def with_each_value(jobs: Sequence[Job]) -> list[Job]:
    """So many of the jobs that each override is in one of them."""
    seen: set[str] = set()
    chosen = []
    for job in jobs:
        if not seen.issuperset(job):
            seen.update(job)
            chosen.append(job)
    return chosen


def jobs_at_once(launcher: Any, jobs: int) -> int | None:
    """How many jobs joblib runs side by side; None with other launchers.

    Raises:
        UserError: if it would be none.
    """
    n_jobs = launcher.get("n_jobs")
    if n_jobs is None or not jobs:
        return None
    from joblib import effective_n_jobs  # comes with the launcher

    try:
        return min(int(effective_n_jobs(n_jobs)), jobs)
    except ValueError as error:
        raise UserError(f"hydra.launcher.n_jobs={n_jobs} is neither a count nor -1.") from error


def hydra_overrides(folder: Path, name: str | None, at_once: int | None) -> list[str]:
    """What a job is told beside its own overrides.

    Args:
        folder: of the sweep.
        name: of the job's folder in it, if Hydra is not to choose it.
        at_once: as `jobs_at_once` has it.
    """
    told = [] if at_once is None else [f"hydra.launcher.n_jobs={at_once}"]
    if name is not None:
        told.append(f"hydra.sweep.subdir='{name}'")
    if name is not None and (folder / name / ".hydra").is_dir():
        # .hydra/ keeps the configuration that the run began with.
        told.append(f"hydra.output_subdir=.hydra/resumed_{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    return told


def show_sweep(folder: Path, jobs: Sequence[Job], errors: Sequence[Exception] = ()) -> bool:
    """Write the sweep's report; show its figures, and which jobs failed and why.

    Args:
        folder: of the sweep.
        jobs: all of it.
        errors: that jobs raised; shown where no folder tells of them.

    Returns:
        Whether all jobs are finished.
    """
    runs = [f.read(name=str(f.path.relative_to(folder))) for f in run_folders(folder)]
    typed = {frozenset(job) for job in jobs}
    of_sweep = [run for run in runs if frozenset(run.overrides) in typed]
    unfinished = [run for run in of_sweep if run.status != "finished"]
    not_started = len(typed) - len({frozenset(run.overrides) for run in of_sweep})
    console = get_console()
    console.print()
    if runs:
        groups = groups_of(runs)
        ordered = [run for group in groups for run in group.members]
        shown = [key for key in SHOWN if any(group.values(key) for group in groups)]
        if len(runs) <= LONGEST_TABLE:
            _print(by_run(folder, runs, ordered, groups, shown, best_run(runs)))
        if len(groups) < len(runs) and any(group.finished for group in groups):
            _print(by_configuration(groups, shown))
        for sentence in verdict(runs, groups):
            _line(sentence)
    for run in unfinished:
        settings = {key: run.settings.get(key, "") for key in [*differing(runs), "seed"]}
        _line(f"\n{run.status}: {run.name} ({describe(settings)}): {run.reason}")
    if not_started:
        _line(f"\nnot started: {not_started} job{'s' * (not_started > 1)}")
    said = {_first_line(run.reason) for run in unfinished}
    for message in dict.fromkeys(explain(error, "train") for error in errors):
        if _first_line(message) not in said:
            _line(f"\n{message}")
    console.print()
    if runs:
        _line(f"report     {write_report(folder).absolute()}")
    if unfinished or not_started:
        _line(f"go on      {resume_sweep_command(folder)}")
    return not unfinished and not not_started


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _print(table: Table) -> None:
    shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(table.headings):
        justify: Literal["left", "right"] = "right" if number in table.numeric else "left"
        shown.add_column(SHORT.get(heading, heading), justify=justify)
    for number, row in enumerate(table.rows):
        style = "bold" if number == table.best else None
        shown.add_row(*(Text(cell.text) for cell in row), style=style)
    get_console().print(shown)


def _line(text: str) -> None:
    # Without markup: a message may have brackets.
    get_console().print(text, markup=False, highlight=False, soft_wrap=True)
