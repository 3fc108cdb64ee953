"""Runs one trial after another, until the study has `n_trials`."""

import hashlib
import socket
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import TrialPruned
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState
from rich import get_console

from cifar_lightning.cli import run_task
from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.errors import UserError
from cifar_lightning.search.pruning import Pruning
from cifar_lightning.search.space import as_overrides, suggest
from cifar_lightning.search.study import (
    OF_EVERY_TRIAL,
    Search,
    as_text,
    current_trials,
    is_of_machine,
    number_of,
    recipe,
    retry,
)
from cifar_lightning.system.counted import counted
from cifar_lightning.system.jobs import JobFailed, run_job, threads_for
from cifar_lightning.system.locks import is_locked, run_lock
from cifar_lightning.tracking.run_folder import RunFolder
from cifar_lightning.train import train

POLL_S = 1.0  # between two checks of the trials of other workers
FAILURES_ALIKE = 3  # trials, all failed for the same reason, after which a search stops
# Workers on one machine share its cores. They are found by this hash, which hides its name.
HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


class Superfluous(Exception):
    """A trial is superfluous: other workers already run all `n_trials`."""


def work(search: Search) -> None:
    """Run trials until `n_trials` have ended, including those of other workers.

    While other workers run the last trials, this one waits, to take over if one of them dies.

    Raises:
        KeyboardInterrupt: after Ctrl-C; the next start resumes the trial that was running.
        UserError: if all trials fail for the same reason, or the folder belongs to another study.
    """
    waiting = False
    while True:
        fail_stale_trials(search.study)
        trials = current_trials(search.study)
        ended = sum(trial.state.is_finished() for trial in trials)
        if ended >= search.n_trials:
            return
        running = [number_of(trial) for trial in trials if trial.state == TrialState.RUNNING]
        if ended + len(running) >= search.n_trials:
            if not waiting:
                numbers = ", ".join(map(str, running))
                text = (
                    f"Other workers run the last trials: {numbers}. This one waits, and takes over "
                    "if a worker dies."
                )
                get_console().print(text, highlight=False, soft_wrap=True)
            waiting = True
            time.sleep(POLL_S)
            continue
        waiting = False
        _run_next(search)
        _stop_if_all_fail_alike(search.study)


def _stop_if_all_fail_alike(study: optuna.Study) -> None:
    """Stop a search if all of its trials fail for the same reason."""
    ended = [trial for trial in current_trials(study) if trial.state.is_finished()]
    reasons = {trial.user_attrs.get("reason") for trial in ended}
    if len(ended) >= FAILURES_ALIKE and len(reasons) == 1 and None not in reasons:
        raise UserError(
            f"All {len(ended)} trials failed for the same reason, so the search stops: "
            f"{reasons.pop()} The same command continues with the next trial."
        )


def _run_next(search: Search) -> None:
    """Run one trial: the first that waits for a retry, or else a new one."""
    started: list[int] = []
    try:
        # One at a time. MaxTrialsCallback would let each of several workers finish its current
        # trial, and would not count failed trials.
        objective = partial(_objective, search, started)
        search.study.optimize(objective, n_trials=1, catch=(JobFailed, Superfluous))
    except BaseException as error:
        if not started or retry_later(search.study, started[0]) or not isinstance(error, Exception):
            raise
        _print(
            search,
            started[0],
            "taken over by another worker, because it had no heartbeat for too long",
        )


def retry_later(study: optuna.Study, number: int) -> bool:
    """Enqueue a trial that was not completed again, for the next free worker.

    Returns:
        False if a retry of it exists already.
    """
    study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
    trials = study.get_trials()
    if any(number in retry.retry_history(trial) for trial in trials):
        return False
    retry(study, trials[number])
    return True


def _objective(search: Search, started: list[int], trial: Trial) -> float:
    """Train a trial, and return the monitored metric of its best checkpoint.

    Args:
        search: of the trial.
        started: the trial's number is appended to it.
        trial: a new one, or a retry.

    Raises:
        JobFailed: if the training fails; the trial's attribute `reason` says why.
        TrialPruned: if it was pruned.
        Superfluous: if there are enough trials without it. It is not counted then.
    """
    started.append(trial.number)
    trials = current_trials(search.study)
    # Several workers may ask for the last trial at once. Numbers are assigned one by one, so each
    # worker sees all earlier trials, and exactly `n_trials` of them run.
    before = sum(other.number < trial.number for other in trials)
    if before >= search.n_trials:
        trial.set_user_attr("superfluous", True)
        raise Superfluous
    search.study.sampler = search.sampler(before)
    params = as_overrides(suggest(trial, search.space))
    trial.set_user_attr("overrides", params)
    trial.set_user_attr("host", HOST)
    number = next(number_of(other) for other in trials if other.number == trial.number)
    if (same := _find_same(trials, params)) is not None:
        assert same.value is not None
        trial.set_user_attr("same_as", number_of(same))
        result = as_text(search.monitor, same.value)
        _print(search, number, f"{result}, copied from trial {number_of(same)}: same parameters")
        return same.value
    others_here = sum(
        other.state == TrialState.RUNNING
        and other.user_attrs.get("host") == HOST
        and other.number != trial.number
        for other in trials
    )
    folder = search.folder / "trials" / str(number)
    if is_locked(folder):  # by a worker whose heartbeats failed; its run is resumed
        _print(search, number, f"waits for another process that is still working in {folder}")
        while is_locked(folder):
            time.sleep(POLL_S)
    config = trial_config(search, number, params)
    try:
        metrics = run_job(
            partial(run_task, partial(_train, trial, search.monitor), "train", config),
            threads=threads_for(1 + others_here),
            own_gpu=config.trainer.gpus in ("auto", 1),
            output=Path(config.run_dir, "output.log"),
            log=_log_config(Path(config.run_dir, "train.log")),
        )
        if metrics["monitor_value"] is None:
            raise JobFailed(f"The run ended before a validation logged {search.monitor}.")
    except JobFailed as error:
        trial.set_user_attr("reason", str(error))
        _print(search, number, f"failed: {str(error).partition(chr(10))[0]}")
        raise
    for key in ("epochs", "train_seconds", "params", "device"):
        trial.set_user_attr(key, metrics[key])
    if metrics["stopped_by"] == "pruned":
        _print(search, number, f"pruned after {counted(metrics['epochs'], 'epoch')}")
        raise TrialPruned
    seconds = f"{metrics['train_seconds']:.1f} s"
    value = float(metrics["monitor_value"])
    _print(search, number, f"{as_text(search.monitor, value)}  {seconds}  {' '.join(params)}")
    return value


def _find_same(trials: Sequence[FrozenTrial], params: Sequence[str]) -> FrozenTrial | None:
    """A complete trial with the same parameters, which would have the same result."""
    complete = (trial for trial in trials if trial.state == TrialState.COMPLETE)
    return next((t for t in complete if t.user_attrs["overrides"] == [*params]), None)


def trial_config(search: Search, number: int, params: Sequence[str]) -> DictConfig:
    """The configuration of a trial, recorded in its folder as Hydra does for a run.

    If the folder has a run with a checkpoint, the trial resumes it.

    Raises:
        UserError: if the folder has a trial of another study.
    """
    folder = RunFolder(search.folder / "trials" / str(number))
    overrides = [*OF_EVERY_TRIAL, *search.overrides, *params]
    config = compose(overrides, folder.path, sweep=search.study.study_name)
    record = folder.path / ".hydra"
    recorded = (record / "overrides.yaml").is_file()
    if recorded and {*recipe(folder.read().overrides)} != {*recipe(overrides)}:
        raise UserError(
            f"{folder.path} has a trial of another study. Give this one its own folder with "
            "study=NAME or hydra.run.dir=FOLDER."
        )
    record.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, record / "config.yaml")
    OmegaConf.save(OmegaConf.create(overrides), record / "overrides.yaml")
    config.run_id = f"{search.study.study_name}-{number}-{config.run_id.rpartition('-')[2]}"
    if folder.last.is_file():
        # A resume uses the run's recorded configuration, with the paths of this machine.
        here = [o for o in search.overrides if is_of_machine(o) and not o.startswith("data=")]
        config.resume, config.overrides = str(folder.last), here
    return config


def _train(trial: Trial, monitor: str, config: DictConfig) -> Any:
    """Train a trial; called in its own process."""
    with run_lock(Path(config.run_dir)):
        return train(config, callbacks={"pruning": Pruning(trial, monitor)})


def _log_config(file: Path) -> dict[str, Any]:
    config = OmegaConf.load(CONF / "hydra" / "job_logging" / "quiet.yaml")
    config.handlers.file.filename = str(file)
    container: Any = OmegaConf.to_container(config, resolve=True)
    return dict(container)


def _print(search: Search, number: int, text: str) -> None:
    width = len(str(search.n_trials - 1))
    line = f"trial {number:>{width}}  {text}"
    get_console().print(line, markup=False, highlight=False, soft_wrap=True)
