"""The summary at the end of a sweep: which configuration is best, and which jobs failed and why."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich import get_console

from cifar_lightning.config.compose import PACKAGE
from cifar_lightning.config.messages import explain
from cifar_lightning.system.counted import counted
from cifar_lightning.system.typed import program
from cifar_lightning.tracking import seeds
from cifar_lightning.tracking.run_folder import Run, run_folders
from cifar_lightning.tracking.tables import print_table

# Metrics that fit on a terminal, and short headings for them.
SHOWN = ("val/acc", "test/acc", "epochs", "train_seconds")
SHORT = {"val accuracy": "val acc", "test accuracy": "test acc", "training seconds": "seconds"}
LONGEST_TABLE = 100  # rows; a longer table is in the report only


def show_sweep(
    command: str, folder: Path, jobs: Sequence[Sequence[str]], errors: Sequence[Exception] = ()
) -> bool:
    """Print the results of a sweep, and which jobs failed and why; write its report.

    Args:
        command: the command that was swept, such as `train`.
        folder: of the sweep.
        jobs: the overrides of each job.
        errors: raised by jobs; those not found in a run folder are printed.

    Returns:
        True if all jobs, and all runs in the folder, are finished.
    """
    runs = [f.read(name=str(f.path.relative_to(folder))) for f in run_folders(folder)]
    wanted = {frozenset(job) for job in jobs}
    # Includes runs of no job, such as one that was moved here.
    unfinished = [run for run in runs if run.status != "finished"]
    not_started = len(wanted - {frozenset(run.overrides) for run in runs})
    get_console().print()
    if runs:
        _print_results(folder, runs)
    for run in unfinished:
        settings = {key: run.settings.get(key, "") for key in [*seeds.differing(runs), "seed"]}
        _print(f"\n{run.status}: run {run.name} ({seeds.describe(settings)}): {run.reason}")
    if not_started:
        _print(f"\nnot started: {counted(not_started, 'job')}")
    printed = {_first_line(run.reason) for run in unfinished}
    for message in dict.fromkeys(explain(error, command) for error in errors):
        if _first_line(message) not in printed:
            _print(f"\n{message}")
    get_console().print()
    if runs:
        _write_report(folder)
    typed = shlex.join([*program("python"), "-m", f"cifar_lightning.{command}"])
    if unfinished or not_started:
        _print(f"resume     {typed} {shlex.quote(f'resume_sweep={folder}')}")
    elif new := seeds.seeds_to_add(folder, runs, seeds.groups_of(runs)):
        _print(f"more seeds {typed} {new}")
    return not unfinished and not not_started


def _print_results(folder: Path, runs: Sequence[Run]) -> None:
    groups = seeds.groups_of(runs)
    shown = [key for key in SHOWN if key in seeds.shown_metrics(groups)]
    if len(runs) <= LONGEST_TABLE:
        print_table(seeds.by_run(folder, runs, groups, shown), SHORT)
    if len(groups) < len(runs) and any(group.finished for group in groups):
        print_table(seeds.by_configuration(groups, shown), SHORT)
    for sentence in seeds.summary(runs, groups):
        _print(sentence)


def _write_report(folder: Path) -> None:
    """Write a report, and print its path; do nothing if that tool was deleted."""
    if (PACKAGE / "report" / "__main__.py").is_file():
        sys.stdout.flush()
        # If it fails, it prints why. The results of the sweep are not affected.
        subprocess.run([sys.executable, "-m", "cifar_lightning.report", f"run={folder}"])


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _print(text: str) -> None:
    # Without markup, because a message may have brackets.
    get_console().print(text, markup=False, highlight=False, soft_wrap=True)
