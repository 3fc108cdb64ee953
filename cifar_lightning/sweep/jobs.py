"""The jobs of a sweep: which of them to run, and how to run one in its own process.

A job is a list of overrides; its folder is a run folder.
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
from cifar_lightning.system.counted import counted
from cifar_lightning.system.jobs import JobDied, JobFailed, run_job
from cifar_lightning.system.locks import run_lock
from cifar_lightning.system.logs import open_log_file
from cifar_lightning.tracking.run_folder import RunFolder, run_folders

log = logging.getLogger(__name__)

Job = list[str]


def missing_jobs(folder: Path, jobs: Sequence[Job], resume: bool) -> list[tuple[str | None, Job]]:
    """The jobs to run, each with the name of its folder; None lets Hydra choose the name.

    Args:
        folder: of the sweep.
        jobs: all jobs of the sweep.
        resume: whether the folder may have runs already; finished ones are left out.

    Raises:
        UserError: if it has runs, and `resume` is false.
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
    """Check that a resume includes all unfinished jobs of the sweep.

    Args:
        folder: of the sweep.
        recorded: the jobs of the sweep before the resume.
        jobs: the jobs of the resume.

    Raises:
        UserError: if one is missing; names it.
    """
    kept = {frozenset(job) for job in jobs}
    others = [job for job in recorded if frozenset(job) not in kept]
    if lost := missing_jobs(folder, others, resume=True) if others else []:
        raise UserError(
            f"The sweep in {folder} would lose {counted(len(lost), 'unfinished job')}, "
            f"such as {' '.join(lost[0][1])}. Overrides beside resume_sweep= may only add jobs: to "
            "add a value, type all values, such as seed=0,1,2 after seed=0,1. To change a value, "
            "start a new sweep with -m."
        )


def with_each_value(jobs: Sequence[Job]) -> list[Job]:
    """A few of the jobs, in which each override occurs at least once."""
    seen: set[str] = set()
    chosen = []
    for job in jobs:
        if not seen.issuperset(job):
            seen.update(job)
            chosen.append(job)
    return chosen


def jobs_at_once(launcher: Any, jobs: int) -> int | None:
    """The number of jobs that joblib runs at once; None for other launchers.

    Raises:
        UserError: if `hydra.launcher.n_jobs` is not a valid number.
    """
    n_jobs = launcher.get("n_jobs")
    if n_jobs is None or not jobs:
        return None
    from joblib import effective_n_jobs  # comes with the launcher

    try:
        return min(int(effective_n_jobs(n_jobs)), jobs)
    except ValueError as error:
        raise UserError(
            f"hydra.launcher.n_jobs={n_jobs} is invalid: it is a number of jobs, or -1 for one per "
            "core."
        ) from error


def hydra_overrides(name: str | None, at_once: int | None) -> list[str]:
    """Hydra's overrides for a job, beside the job's own.

    Args:
        name: of the job's folder in the sweep's folder; None lets Hydra choose it.
        at_once: from `jobs_at_once`.
    """
    # Hydra would write its record, .hydra/, before it is known that no other run is in the folder.
    overrides = ["hydra.output_subdir=null"]
    overrides += [] if at_once is None else [f"hydra.launcher.n_jobs={at_once}"]
    return overrides if name is None else [*overrides, f"hydra.sweep.subdir='{name}'"]


def run_apart(task: Callable[[DictConfig], Any], config: DictConfig) -> Any:
    """Run a job of a sweep in its own process, so that a crash does not affect other jobs.

    If the sweep is resumed, a run in the job's folder is resumed from its last checkpoint.

    Args:
        task: the function that Hydra would have called in this process.
        config: the job's, composed by Hydra.

    Raises:
        JobFailed: if the job fails, or its folder has the run of another job or process.
    """
    # Not at the top: it loads PyTorch, and Hydra imports this module at every start.
    from cifar_lightning.checkpoints.record import check_free, write_hydra

    hydra_config = HydraConfig.get()
    launcher, folder = hydra_config.launcher, RunFolder(Path(hydra_config.runtime.output_dir))
    # Submitit restarts a job that was preempted or reached its time limit.
    may_resume = hydra_config.sweeper.resume or "SUBMITIT_EXECUTOR" in os.environ
    in_parallel = launcher.get("n_jobs", 1) != 1  # the sweeper has replaced -1 by a number
    log_config: Any = OmegaConf.to_container(hydra_config.job_logging, resolve=True)
    # Plain containers: Hydra imports plugin modules twice, so their classes cannot be pickled.
    plain: Any = OmegaConf.to_container(hydra_config)
    # Resolved here: in the job, `${now:…}` would be the time of the job's start.
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
                    f"{folder.path} has a run already, which was not changed. It is of another job "
                    "with the same hydra.sweep.subdir, or of another process that works on this "
                    "sweep."
                )
            # The run's recorded configuration is this job's, so no override is needed.
            config.resume, plain["overrides"]["task"] = str(folder.last), []
        result = run_job(
            partial(_run, task, config, plain),
            threads=launcher.get("cpus_per_task"),  # joblib divides the cores by OMP_NUM_THREADS
            own_gpu=OmegaConf.select(config, "trainer.gpus") in ("auto", 1),
            output=folder.path / "output.log" if in_parallel else None,
            log=log_config,
        )
        ending = "finished"
    except JobDied as error:  # other errors were logged by the job itself
        open_log_file()
        log.error(str(error))
        raise
    finally:
        if in_parallel:  # the only line here; the rest is in output.log
            print(f"{ending:<11}{folder.path}", flush=True)
    return result


def _run(task: Callable[[DictConfig], Any], config: DictConfig, hydra_config: Any) -> Any:
    """Run the task; called in the job's process."""
    setup_globals()  # for `${now:…}` and `${hydra:…}` in overrides
    HydraConfig.instance().cfg = OmegaConf.create({"hydra": hydra_config})  # type: ignore[assignment]
    return task(config)
