"""Which jobs of a sweep are to be run, and with which of Hydra's overrides.

A job is a list of overrides; its folder is a run's.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cifar_lightning.errors import UserError
from cifar_lightning.tracking.run_folder import run_folders

Job = list[str]


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
        # .hydra/ keeps what the run began with; the run's own record tells of its resumes.
        told.append("hydra.output_subdir=null")
    return told
