"""The sweeper behind `-m`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.errors import UserError, how_to_install
from cifar_lightning.sweep import jobs as sweep_jobs
from cifar_lightning.system.atomic import atomic_write
from cifar_lightning.tracking.run_folder import read_sweep


class Sweeper(BasicSweeper):
    """Runs every combination of the given values, even if some jobs fail.

    Args:
        max_batch_size: number of jobs that the launcher gets at once; None for all.
        params: more values to sweep, by key.
        resume: whether the folder may have jobs already; unfinished ones are resumed.
    """

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: Mapping[str, str] | None = None,
        resume: bool = False,
    ) -> None:
        if max_batch_size is not None and max_batch_size < 1:
            raise UserError(
                f"hydra.sweeper.max_batch_size={max_batch_size} is invalid: it must be at least 1."
            )
        super().__init__(max_batch_size, dict(params or {}))
        self.resume = resume
        self.launcher_error: UserError | None = None  # why the launcher could not run some jobs

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Set up the launcher, which will run each job in its own process.

        Raises:
            UserError: if the launcher is not installed.
        """
        try:
            super().setup(
                hydra_context=hydra_context,
                task_function=partial(sweep_jobs.run_apart, task_function),
                config=config,
            )
        except RuntimeError as error:
            raise UserError(f"hydra/launcher: {error}. {how_to_install('sweep')}") from error

    def sweep(self, arguments: list[str]) -> None:
        """Run the jobs, and print a summary.

        Raises:
            SystemExit: with code 1, if a job is not finished.
            UserError: if the folder has jobs already and this is not a resume, or if a resume
                would lose jobs of the sweep.
        """
        # Not at the top: Hydra imports this module at every start.
        from cifar_lightning.sweep.summary import show_sweep

        assert self.config is not None
        assert self.hydra_context is not None
        jobs, folder = self._jobs(arguments), Path(self.config.hydra.sweep.dir)
        record = folder / "multirun.yaml"
        missing = sweep_jobs.missing_jobs(folder, jobs, self.resume)
        if self.resume and record.is_file():
            sweep_jobs.check_none_is_lost(folder, self._jobs(read_sweep(folder)), jobs)
        # These few jobs, which cover all values, show mistakes; composing all could take minutes.
        for job in sweep_jobs.with_each_value([job for _, job in missing]):
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, job)
            if composed.get("resume") is not None:  # from an experiment or hydra.sweeper.params
                raise UserError("resume= resumes one run; resume_sweep=FOLDER resumes a sweep.")
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(record) as file:
            file.write(OmegaConf.to_yaml(self.config).encode())
        at_once = sweep_jobs.jobs_at_once(self.config.hydra.launcher, len(missing))
        if at_once is not None:  # joblib divides the cores by it
            self.launcher.joblib["n_jobs"] = at_once  # type: ignore[union-attr]
        launched = [[*job, *sweep_jobs.hydra_overrides(name, at_once)] for name, job in missing]
        errors: list[Exception] = []
        try:
            errors = self._launch(launched)
        finally:
            finished = show_sweep(self.config.hydra.job.config_name, folder, jobs, errors)
        if self.launcher_error is not None:
            raise self.launcher_error
        if not finished:
            raise SystemExit(1)

    def _jobs(self, arguments: Sequence[str]) -> list[list[str]]:
        """Every combination of the values in a sweep's overrides."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        jobs: list[list[str]] = self.split_arguments(overrides, None)[0]
        return jobs

    def _launch(self, jobs: Sequence[Sequence[str]]) -> list[Exception]:
        """Run the jobs; return the errors that they raised."""
        assert self.launcher is not None
        errors: list[Exception] = []
        done = 0
        if not jobs:  # the sweep is finished
            return []
        for batch in self.split_overrides_to_chunks([list(j) for j in jobs], self.max_batch_size):
            try:
                results = self.launcher.launch(batch, initial_job_idx=done)
            except RuntimeError as error:  # from the launcher itself; it returns the errors of jobs
                self.launcher_error = UserError(f"hydra/launcher: {error}")
                results = []
            # `return_value` would raise the error, and print the job's overrides.
            errors += [r._return_value for r in results if r.status is JobStatus.FAILED]
            done += len(batch)
        return errors
