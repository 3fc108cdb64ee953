"""Tries one configuration after the other, until a study has as many trials as are wanted."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState
from rich import get_console

from cifar_lightning.cli import CONF, compose, run_task
from cifar_lightning.jobs import Ask, JobFailed, Surroundings, run_job, threads_for
from cifar_lightning.searching.claims import Claims, TrialLost
from cifar_lightning.searching.space import Space, as_overrides, suggest

log = logging.getLogger(__name__)

# Of every trial, before what was typed: to its end, and without a look at the test images, which
# are not for choosing.
OF_EVERY_TRIAL = ("target_accuracy=null", "+trainer.limit_test_batches=0")


@dataclass(frozen=True)
class Search:
    """What all workers of a study share.

    Attributes:
        study: with its pruner.
        space: to choose from.
        address: of the storage.
        lock: see `Claims`.
        overrides: those typed, for every trial.
        folder: of the search; the trials' are in it.
        n_trials: in all.
        sampler: makes one from a seed.
        seed: that the samplers' come from.
    """

    study: optuna.Study
    space: Space
    address: str
    lock: Path
    overrides: Sequence[str]
    folder: Path
    n_trials: int
    sampler: Callable[[int], BaseSampler]
    seed: int


def work(search: Search, claims: Claims) -> None:
    """Do trials until none is left.

    Raises:
        KeyboardInterrupt: after Ctrl-C; the trial that was running waits for the next start.
    """
    while (number := claims.next()) is not None:
        try:
            _do(search, claims, number)
        except TrialLost:
            _say(search, number, "another worker has it: this one gave no sign of life")
        except BaseException:
            claims.give_back(number)
            raise


def _do(search: Search, claims: Claims, number: int) -> None:
    study = search.study
    # A seed of the trial's own: a sampler that starts anew proposes nothing a second time.
    study.sampler = search.sampler(seed_of(search.seed, number))
    trial = Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
    params = as_overrides(suggest(trial, search.space))
    trial.set_user_attr("overrides", params)
    if (twin := _twin(study, params)) is not None:
        trial.set_user_attr("same_as", twin.number)
        study.tell(number, twin.value, skip_if_finished=True)
        _say(search, number, f"{twin.value:.2%}, as trial {twin.number}, which is the same")
        return
    config = trial_config(search, number, params)
    surroundings = Surroundings(
        threads=threads_for(claims.workers_here()),
        own_gpu=config.trainer.gpus in ("auto", 1),
        output=Path(config.run_dir, "output.log"),
        log=_log_config(Path(config.run_dir, "train.log")),
    )
    try:
        metrics = run_job(
            partial(_train, config),
            surroundings,
            answer=partial(_is_hopeless, trial),
            tick=partial(_beat, claims, number),
            tick_s=claims.heartbeat_s,
        )
    except JobFailed as error:
        claims.beat(number)
        reason = str(error)
        trial.set_user_attr("reason", reason)
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        _say(search, number, f"failed: {reason.partition(chr(10))[0]}")
        return
    claims.beat(number)
    for key in ("epochs", "train_seconds", "params", "device"):
        trial.set_user_attr(key, metrics[key])
    if metrics["stopped_by"] == "pruned":
        study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
        _say(search, number, f"pruned after {metrics['epochs']:g} epochs")
    else:
        study.tell(number, metrics["val/acc"], skip_if_finished=True)
        seconds = f"{metrics['train_seconds']:.1f} s"
        _say(search, number, f"{metrics['val/acc']:.2%}  {seconds}  {' '.join(params)}")


def seed_of(seed: int, number: int) -> int:
    """Of the sampler of a trial; equal for equal arguments on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4])


def trial_config(search: Search, number: int, params: Sequence[str]) -> DictConfig:
    """The configuration of a trial, which goes on where an earlier worker left it.

    Recorded in the trial's folder as Hydra does it for a run.
    """
    folder = search.folder / "trials" / str(number)
    name = f"{search.study.study_name}-{number}"
    overrides = [*OF_EVERY_TRIAL, *search.overrides, *params]
    config = compose(overrides, folder, sweep=search.study.study_name)
    record = folder / ".hydra"
    record.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, record / "config.yaml")
    OmegaConf.save(OmegaConf.create(overrides), record / "overrides.yaml")
    config.run_id = f"{name}-{config.run_id.rpartition('-')[2]}"
    last = folder / "checkpoints" / "last.ckpt"
    if last.is_file():
        config.resume, config.overrides = str(last), []
    return config


def _twin(study: optuna.Study, params: Sequence[str]) -> FrozenTrial | None:
    """A trial with the same parameters, whose result this one would only get again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if trial.user_attrs.get("overrides") == [*params]:
            return trial
    return None


def _train(config: DictConfig, ask: Ask) -> Any:
    def is_hopeless(validations: int, accuracy: float) -> bool:
        return bool(ask((validations, accuracy)))

    return run_task("train", config, is_hopeless=is_hopeless)


def _is_hopeless(trial: Trial, question: tuple[int, float]) -> bool:
    validations, accuracy = question
    step = validations - 1  # pruners count from 0
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    if step not in known:  # not told by an earlier worker
        trial.report(accuracy, step)
    return trial.should_prune()


def _beat(claims: Claims, number: int) -> None:
    try:
        claims.beat(number)
    except StorageInternalError as error:
        # The training goes on without; if the storage stays away, its result cannot be told.
        log.warning("trial %d: no sign of life could be given: %s", number, error)


def _log_config(file: Path) -> dict[str, Any]:
    config = OmegaConf.load(CONF / "hydra" / "job_logging" / "quiet.yaml")
    config.handlers.file.filename = str(file)
    container: Any = OmegaConf.to_container(config, resolve=True)
    return dict(container)


def _say(search: Search, number: int, text: str) -> None:
    width = len(str(search.n_trials - 1))
    line = f"trial {number:>{width}}  {text}"
    get_console().print(line, markup=False, highlight=False, soft_wrap=True)
