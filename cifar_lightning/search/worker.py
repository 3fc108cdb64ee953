"""Tries one configuration after the other, until a study has as many trials as are wanted."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState
from rich import get_console

from cifar_lightning.cli import run_task
from cifar_lightning.config.compose import CONF, compose, key_of
from cifar_lightning.config.paths import PLACES
from cifar_lightning.errors import UserError
from cifar_lightning.search.claims import Claims, TrialLost
from cifar_lightning.search.pruning import Pruning
from cifar_lightning.search.space import Space, as_overrides, suggest
from cifar_lightning.search.storage import open_storage
from cifar_lightning.system.jobs import JobEnvironment, JobFailed, run_job, threads_for
from cifar_lightning.tracking.run_folder import RunFolder
from cifar_lightning.train import train

log = logging.getLogger(__name__)

FAILURES_ALIKE = 3  # and nothing else, after which a search ends
WAITS_S = (1, 5, 25, 60)  # for a storage that is away

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
        UserError: if the first trials fail for one reason, or the folder is another study's.
    """
    while (number := claims.next()) is not None:
        try:
            _do(search, claims, number)
        except TrialLost:
            _say(search, number, "another worker has it: this one gave no sign of life")
        except BaseException:
            claims.give_back(number)
            raise
        _stop_if_all_fail_alike(search)


def _stop_if_all_fail_alike(search: Search) -> None:
    """End a search in which something is wrong that has nothing to do with the parameters."""
    done = [t for t in search.study.get_trials(deepcopy=False) if t.state.is_finished()]
    reasons = {trial.user_attrs.get("reason") for trial in done}
    if len(done) >= FAILURES_ALIKE and len(reasons) == 1 and None not in reasons:
        raise UserError(
            f"All {len(done)} trials failed for one reason, so the search was stopped: "
            f"{reasons.pop()}"
        )


def _do(search: Search, claims: Claims, number: int) -> None:
    study = search.study
    # A seed of the trial's own: a sampler that starts anew proposes nothing a second time.
    study.sampler = search.sampler(seed_of(search.seed, number))
    trial = Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
    params = as_overrides(suggest(trial, search.space))
    trial.set_user_attr("overrides", params)
    if (twin := _twin(study, params)) is not None:
        trial.set_user_attr("same_as", twin.number)
        _tell(study, number, twin.value)
        _say(search, number, f"{twin.value:.2%}, as trial {twin.number}, which is the same")
        return
    config = trial_config(search, number, params)
    environment = JobEnvironment(
        threads=threads_for(claims.workers_here()),
        own_gpu=config.trainer.gpus in ("auto", 1),
        output=Path(config.run_dir, "output.log"),
        log=_log_config(Path(config.run_dir, "train.log")),
    )
    try:
        with _heartbeats(claims, number):
            metrics = run_job(
                partial(_train, config, search.address, study.study_name, study.pruner, number),
                environment,
            )
    except JobFailed as error:
        claims.beat(number)
        reason = str(error)
        trial.set_user_attr("reason", reason)
        _tell(study, number, state=TrialState.FAIL)
        _say(search, number, f"failed: {reason.partition(chr(10))[0]}")
        return
    claims.beat(number)
    for key in ("epochs", "train_seconds", "params", "device"):
        trial.set_user_attr(key, metrics[key])
    if metrics["stopped_by"] == "pruned":
        _tell(study, number, state=TrialState.PRUNED)
        _say(search, number, f"pruned after {metrics['epochs']:g} epochs")
    else:
        _tell(study, number, metrics["val/acc"])
        seconds = f"{metrics['train_seconds']:.1f} s"
        _say(search, number, f"{metrics['val/acc']:.2%}  {seconds}  {' '.join(params)}")


def _tell(
    study: optuna.Study, number: int, value: float | None = None, state: TrialState | None = None
) -> None:
    """Tell a trial's result, several times if the storage is away."""
    for seconds in (*WAITS_S, None):
        try:
            study.tell(number, value, state, skip_if_finished=True)
            return
        except StorageInternalError:
            if seconds is None:
                raise
            time.sleep(seconds)
        except ValueError as error:  # it waits again, or is another worker's
            raise TrialLost from error


def seed_of(seed: int, number: int) -> int:
    """Of the sampler of a trial; equal for equal arguments on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4])


def trial_config(search: Search, number: int, params: Sequence[str]) -> DictConfig:
    """The configuration of a trial, which goes on where an earlier worker left it.

    Recorded in the trial's folder as Hydra does it for a run.

    Raises:
        UserError: if the folder has another trial of that number.
    """
    folder = search.folder / "trials" / str(number)
    name = f"{search.study.study_name}-{number}"
    overrides = [*OF_EVERY_TRIAL, *search.overrides, *params]
    config = compose(overrides, folder, sweep=search.study.study_name)
    record = folder / ".hydra"
    if (record / "overrides.yaml").is_file() and _recipe(
        RunFolder(folder).read().overrides
    ) != _recipe(overrides):
        raise UserError(
            f"{folder} has a trial of another study. study=NAME or hydra.run.dir=FOLDER gives this "
            "one a folder of its own."
        )
    record.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, record / "config.yaml")
    OmegaConf.save(OmegaConf.create(overrides), record / "overrides.yaml")
    config.run_id = f"{name}-{config.run_id.rpartition('-')[2]}"
    last = RunFolder(folder).last
    if last.is_file():
        # With the checkpoint's configuration, which is this one, but for where things are here.
        here = [o for o in search.overrides if is_of_machine(o) and not o.startswith("data=")]
        config.resume, config.overrides = str(last), here
    return config


def is_of_machine(override: str) -> bool:
    """Whether an override says where things are and not what is trained."""
    key = key_of(override)
    places = (*(f"data.{place}" for place in PLACES), "trainer.gpus", "data", "logger")
    return key in places or key.startswith("logger.")


def _recipe(overrides: Sequence[str]) -> list[str]:
    return sorted(override for override in overrides if not is_of_machine(override))


def _twin(study: optuna.Study, params: Sequence[str]) -> FrozenTrial | None:
    """A trial with the same parameters, whose result this one would only get again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if trial.user_attrs.get("overrides") == [*params]:
            return trial
    return None


def _train(config: DictConfig, address: str, name: str, pruner: BasePruner, number: int) -> Any:
    study = optuna.load_study(study_name=name, storage=open_storage(address), pruner=pruner)
    trial = Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)
    task = partial(train, callbacks={"pruning": Pruning(trial)})
    return run_task(task, "train", config)


@contextmanager
def _heartbeats(claims: Claims, number: int) -> Iterator[None]:
    """Give signs of life until the training has ended."""
    ended = Event()

    def beat() -> None:
        while not ended.wait(claims.heartbeat_s):
            with suppress(TrialLost):  # the result will tell
                _beat(claims, number)

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


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
