"""The jobs of a sweep: which of them are to be run, and each in a process of its own.

A job is a list of overrides; its folder is a run's.
"""

import logging
import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.errors import UserError
from cifar_lightning.system import processes
from cifar_lightning.system.jobs import JobDied, JobFailed, run_job
from cifar_lightning.system.locks import run_lock
from cifar_lightning.system.logs import open_log_file
from cifar_lightning.tracking.run_folder import RunFolder, run_folders

log = logging.getLogger(__name__)

Job = list[str]


def missing_jobs(folder: Path, jobs: Sequence[Job], resume: bool) -> list[tuple[str | None, Job]]:
    """The jobs that are not finished, each with the name of its folder; None leaves it to Hydra.

    Args:
        folder: of the sweep.
        jobs: all of the sweep.
        resume: whether the folder may have runs already.

    Raises:
        UserError: if it has runs that it may not have.
    """
    there = run_folders(folder) if folder.is_dir() else []
    if there and not resume:
        raise UserError(
            f"{folder} has runs already. {shlex.quote(f'resume_sweep={folder}')} resumes them; "
            "another hydra.sweep.dir starts a new sweep."
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


def check_none_is_lost(folder: Path, recorded: Sequence[Job], jobs: Sequence[Job]) -> None:
    """Check that a resume has all jobs of the sweep that are not finished.

    Args:
        folder: of the sweep.
        recorded: its jobs until now, of which the resume's are to take the place.
        jobs: of the resume.

    Raises:
        UserError: names one that it lacks.
    """
    kept = {frozenset(job) for job in jobs}
    others = [job for job in recorded if frozenset(job) not in kept]
    if lost := missing_jobs(folder, others, resume=True) if others else []:
        raise UserError(
            f"The sweep in {folder} would lose {len(lost)} unfinished job{'s' * (len(lost) > 1)}, "
            f"as {' '.join(lost[0][1])}. Options beside resume_sweep= may only add jobs: to "
            "add values, type all, as seed=0,1,2 after seed=0,1. To change a value, start a new "
            "sweep, with -m."
        )


def with_each_value(jobs: Sequence[Job]) -> list[Job]:
    """Some of the jobs, such that each override is in at least one of them."""
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


def hydra_overrides(name: str | None, at_once: int | None) -> list[str]:
    """Hydra's overrides for a job, beside the job's own.

    Args:
        name: of the job's folder in the sweep's, if Hydra is not to choose it.
        at_once: as `jobs_at_once` has it.
    """
    # Hydra would write its record, .hydra/, before it is known whether the job has a right to it.
    overrides = ["hydra.output_subdir=null"]
    overrides += [] if at_once is None else [f"hydra.launcher.n_jobs={at_once}"]
    return overrides if name is None else [*overrides, f"hydra.sweep.subdir='{name}'"]


def run_apart(task: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Run a job of a sweep in a process of its own, so that a crash leaves the others alone.

    A run that is in the job's folder already is resumed from its last checkpoint.

    Args:
        task: what Hydra would have called in this process.
        config: as Hydra composed it.

    Raises:
        JobFailed: if the job fails, or has no right to the run in its folder.
    """
    # Not at the top: it loads PyTorch, and Hydra imports this module at every start.
    from cifar_lightning.checkpoints.record import check_free, write_hydra

    hydra_config = HydraConfig.get()
    launcher, folder = hydra_config.launcher, RunFolder(Path(hydra_config.runtime.output_dir))
    # Submitit starts a job again that was preempted, or ran out of its time.
    may_resume = hydra_config.sweeper.resume or "SUBMITIT_EXECUTOR" in os.environ
    in_parallel = launcher.get("n_jobs", 1) != 1  # a count, which the sweeper has made of -1
    log_config: Any = OmegaConf.to_container(hydra_config.job_logging, resolve=True)
    # Plain, because Hydra executes its plugins' modules twice, whose classes cannot be pickled.
    plain: Any = OmegaConf.to_container(hydra_config)
    # Resolved: within the job, `${now:…}` would be the time of the job's own start.
    plain["sweep"]["dir"] = hydra_config.sweep.dir
    ending = "failed"
    try:
        if processes.is_first():
            try:
                with run_lock(folder.path):
                    if not folder.last.is_file():
                        check_free(folder)
                        write_hydra(folder, config)
            except UserError as error:
                raise JobFailed(str(error)) from None
        if folder.last.is_file():
            if not may_resume:
                raise JobFailed(
                    f"{folder.path} has a run already, which was left as it was: of another job "
                    "with the same hydra.sweep.subdir, or of another process that works on this "
                    "sweep."
                )
            # By the run's own configuration, which is this job's.
            config.resume, plain["overrides"]["task"] = str(folder.last), []
        result = run_job(
            partial(_run, task, config, plain),
            threads=launcher.get("cpus_per_task"),  # joblib divides the cores by OMP_NUM_THREADS
            own_gpu=OmegaConf.select(config, "trainer.gpus") in ("auto", 1),
            output=folder.path / "output.log" if in_parallel else None,
            log=log_config,
        )
        ending = "finished"
    except JobDied as error:  # what it raised, it has logged itself
        open_log_file()
        log.error(str(error))
        raise
    finally:
        if in_parallel:  # nothing else is printed of it here
            print(f"{ending:<11}{folder.path}", flush=True)
    return result


def _run(task: Callable[[DictConfig], Any], config: DictConfig, hydra_config: Any) -> Any:
    """The task, in the process of the job."""
    setup_globals()  # for `${now:…}` and `${hydra:…}` in overrides
    HydraConfig.instance().cfg = OmegaConf.create({"hydra": hydra_config})  # type: ignore[assignment]
    return task(config)
