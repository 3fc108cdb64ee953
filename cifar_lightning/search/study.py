"""Opens the Optuna study of a search, in a storage that its workers share."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from omegaconf import DictConfig, OmegaConf
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, BruteForceSampler, GridSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from cifar_lightning import run
from cifar_lightning.config import validate
from cifar_lightning.config.compose import CONF, compose, key_of
from cifar_lightning.config.paths import DATA_PATHS
from cifar_lightning.config.training import why_no_validation
from cifar_lightning.errors import UserError
from cifar_lightning.search.space import Space, as_overrides, examples, parse_space
from cifar_lightning.system.derive_seed import derive_seed

log = logging.getLogger(__name__)

warnings.filterwarnings("ignore", category=ExperimentalWarning)  # heartbeats and retries are

# The keys of a search; all other overrides are for its trials.
OWN_KEYS = {"search", *map(str, OmegaConf.load(CONF / "search.yaml"))} - {"defaults", "hydra"}
# Overrides of every trial, before the user's. A trial trains to its last epoch, and does not read
# the test images, which must not be used to choose.
OF_EVERY_TRIAL = ("target_accuracy=null", "trainer.limit_test_batches=0")
SECONDS_FOR_A_LOCK = 60  # SQLite has one writer at a time; the others wait this long
TRIES = 3  # to open a storage: another worker may be creating its tables
WAITS_S = (1, 5, 25, 60)  # between attempts to connect to a server

retry = RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True)
"""Enqueues a retry of a failed trial, with the same parameters."""


class Storage(RDBStorage):
    """A database that retries the trials of workers that died, at any moment."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Record a heartbeat; log a failure, because an error would end all later heartbeats."""
        try:
            super().record_heartbeat(trial_id)
        except StorageInternalError as error:
            log.warning("A heartbeat could not be recorded: %s", error.__cause__)

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """The running trials without a heartbeat during the grace period.

        Optuna leaves out trials that never had a heartbeat, but their worker may have died before
        its first one. They get a heartbeat here, so that their grace period begins.
        """
        query = sqlalchemy.text(
            "SELECT trial_id FROM trials WHERE study_id = :study_id AND state = 'RUNNING' "
            "AND trial_id NOT IN (SELECT trial_id FROM trial_heartbeats)"
        )
        with self.engine.begin() as connection:
            unheard = connection.execute(query, {"study_id": study_id}).scalars().all()
        for trial_id in unheard:
            self.record_heartbeat(trial_id)
        return super()._get_stale_trial_ids(study_id)


@dataclass(frozen=True)
class Search:
    """What all workers of a study share.

    Attributes:
        study: Optuna's study, with its pruner.
        space: the distribution of each parameter.
        address: URL of the storage.
        overrides: the user's overrides for every trial.
        folder: of the search; the run folders of its trials are in it.
        n_trials: number of trials in all, of all workers.
        sampler: makes the sampler of a trial from the number of trials before it.
        monitor: the metric that is optimised, `callbacks.best.monitor` of the trials. Its value for
            a trial's best checkpoint counts.
    """

    study: optuna.Study
    space: Space
    address: str
    overrides: Sequence[str]
    folder: Path
    n_trials: int
    sampler: Callable[[int], BaseSampler]
    monitor: str


def open_search(config: DictConfig) -> Search:
    """Check the configuration before the first trial, and open the study.

    Args:
        config: of conf/search.yaml, as `compose` gives it.

    Raises:
        UserError: names what is wrong.
    """
    _check(config)
    space = parse_space(config.search.params)
    overrides: list[str] = []
    for typed in config.overrides:
        if key_of(typed).partition(".")[0] not in OWN_KEYS:
            key = typed.partition("=")[0]  # if typed twice, the last value counts
            overrides = [*(o for o in overrides if o.partition("=")[0] != key), typed]
    twice = sorted({key_of(override) for override in overrides} & set(space))
    if twice:
        raise UserError(
            f"{', '.join(twice)} cannot be set: search={config.choices.search} searches for it."
        )
    folder = Path(config.run_dir)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())  # its files may be moved to another machine
    example = compose(
        [*OF_EVERY_TRIAL, *overrides, *as_overrides(examples(space))], folder / "trials" / "0"
    )
    _check_devices(example.trainer)
    run.check_config(example)
    if reason := why_no_validation(OmegaConf.to_container(example, resolve=True)):
        raise UserError(f"{reason} leaves no validation to judge a trial by.")
    best = example.callbacks.best
    if not str(best.monitor).startswith("val/"):
        raise UserError(
            f"callbacks.best.monitor={best.monitor} is not a validation metric (val/…)."
        )
    sampler = partial(_sampler, config)
    sampler(0)  # so that a mistake in its configuration is reported now
    pruner: BasePruner = NopPruner()
    if config.pruner is not None:
        pruner = run.instantiate_part(config.pruner, "pruner", BasePruner)
    address = config.storage or f"sqlite:///{folder / 'study.db'}"
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with storage_errors(address):
        folder.mkdir(parents=True, exist_ok=True)
        is_loss = best.mode == "min"
        direction = StudyDirection.MINIMIZE if is_loss else StudyDirection.MAXIMIZE
        study = _open_study(config, address, pruner, direction)
        _check_same_search(study, address, config, overrides)
    return Search(
        study=study,
        space=space,
        address=address,
        overrides=overrides,
        folder=folder,
        n_trials=config.n_trials,
        sampler=sampler,
        monitor=best.monitor,
    )


def _check(config: DictConfig) -> None:
    values: Any = OmegaConf.to_container(config, resolve=True)
    counts = ("n_trials", "heartbeat_interval", "grace_period")
    kinds = dict.fromkeys(counts, int) | dict.fromkeys(("storage", "study"), str | None)
    validate.check_values("", kinds, values)
    validate.check_part("sampler", values["sampler"])
    if "seed" in values["sampler"]:
        raise UserError("sampler.seed would be ignored: seed= also sets the seed of the samplers.")
    if values["pruner"] is not None:
        validate.check_part("pruner", values["pruner"])
    for key in counts:
        if values[key] < 1:
            raise UserError(f"{key}={values[key]} is invalid: it must be at least 1.")
    if config.grace_period <= config.heartbeat_interval:
        raise UserError(
            f"grace_period={config.grace_period} is invalid: it must be longer than "
            f"heartbeat_interval={config.heartbeat_interval}, or running trials would be retried."
        )
    if not OmegaConf.is_dict(config.search.get("params")):
        raise UserError(
            f"search={config.choices.search} has no params, which name the keys to search and "
            "their possible values."
        )


def _check_devices(trainer: DictConfig) -> None:
    gpus, devices = trainer.gpus, trainer.get("devices", "auto")
    several = gpus > 1 if isinstance(gpus, int) else OmegaConf.is_list(gpus) and len(gpus) > 1
    if several or devices not in ("auto", 1) or trainer.num_nodes != 1:
        raise UserError(
            "A trial of a search trains on one device. Start the search once for each GPU instead: "
            "processes with the same storage share the trials, and each takes its own GPU."
        )


def _sampler(config: DictConfig, before: int) -> BaseSampler:
    """A trial's sampler, with its own seed, so that a restart repeats no proposal."""
    seed = derive_seed(config.seed, before) % 2**32  # Optuna's seeds have 32 bits
    sampler: BaseSampler = run.instantiate_part(config.sampler, "sampler", BaseSampler, seed=seed)
    if isinstance(sampler, GridSampler | BruteForceSampler):  # they would end the study themselves
        raise UserError(f"sampler={config.sampler._target_}: for a grid, use a sweep (train -m).")
    return sampler


def _open_study(
    config: DictConfig, address: str, pruner: BasePruner, direction: StudyDirection
) -> optuna.Study:
    """Open the study in its storage; both are created if they do not exist."""
    for tries_left in reversed(range(TRIES)):
        try:
            return optuna.create_study(
                study_name=config.study or config.choices.search,
                storage=open_storage(address, config.heartbeat_interval, config.grace_period),
                direction=direction,
                load_if_exists=True,
                pruner=pruner,
            )
        except (DBAPIError, StorageInternalError):
            if not tries_left:
                raise
            time.sleep(1)
    raise AssertionError


def open_storage(address: str, heartbeat_interval: int, grace_period: int) -> Storage:
    """Open the database at an address, or create it.

    Args:
        address: `sqlite:///FILE`, `postgresql://USER:PASSWORD@HOST/DATABASE`, or another URL that
            SQLAlchemy knows; a plain path is a SQLite file.
        heartbeat_interval: seconds between two heartbeats of a running trial.
        grace_period: seconds without a heartbeat after which a trial is retried.

    Raises:
        SQLAlchemyError, ImportError, OSError: if it cannot be opened.
    """
    if "://" not in address:
        address = f"sqlite:///{address}"
    scheme, _, rest = address.partition("://")
    is_sqlite = scheme == "sqlite"
    if is_sqlite:
        Path(rest[1:]).absolute().parent.mkdir(parents=True, exist_ok=True)
    if scheme == "postgresql":
        scheme = "postgresql+psycopg"  # the driver that is installed
    # A server allows about a hundred connections for all workers, and a worker seldom needs one.
    server = {"poolclass": NullPool}
    storage = Storage(
        f"{scheme}://{rest}",
        engine_kwargs={"connect_args": {"timeout": SECONDS_FOR_A_LOCK}} if is_sqlite else server,
        heartbeat_interval=heartbeat_interval,
        grace_period=grace_period,
        heartbeat_stale_trial_callback=retry,
    )
    if is_sqlite:
        _lock_before_reading(storage.engine)
    else:
        _wait_for_the_server(storage.engine)
    return storage


def _wait_for_the_server(engine: sqlalchemy.Engine) -> None:
    """Retry each connection for a while, so that a restart of the server loses no result."""

    @sqlalchemy.event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _: Any, arguments: Any, options: Any) -> Any:
        for seconds in WAITS_S:
            try:
                return dialect.connect(*arguments, **options)
            except dialect.loaded_dbapi.OperationalError as error:
                log.warning("The storage does not answer; next attempt in %d s: %s", seconds, error)
                time.sleep(seconds)
        return None  # SQLAlchemy makes the last attempt


def _lock_before_reading(engine: sqlalchemy.Engine) -> None:
    """Make each transaction of SQLite lock the file when it begins, not at its first change.

    Otherwise two workers could both read that a trial is waiting, and both take it; and two
    transactions that have read could block each other from writing.
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def leave_begin_to_us(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # close the connections that were opened before


@contextmanager
def storage_errors(address: str) -> Iterator[None]:
    """Turn errors of a storage into a message with its URL, without the password.

    Raises:
        UserError: if the storage raises an error.
    """
    try:
        yield
    except (SQLAlchemyError, ImportError, OSError, StorageInternalError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).strip().partition("\n")[0]
        raise UserError(f"storage={without_password(address)}: {reason}") from error


def without_password(address: str) -> str:
    """The URL of a storage, without its password."""
    try:
        return sqlalchemy.make_url(address).render_as_string(hide_password=True)
    except ArgumentError:
        return address


def _check_same_search(
    study: optuna.Study, address: str, config: DictConfig, overrides: Sequence[str]
) -> None:
    """Check that all workers of a study search the same; the first worker records what that is.

    Raises:
        UserError: if the study was started with other parameters, overrides or data.
    """
    wanted = {
        "params": {str(key): str(text) for key, text in config.search.params.items()},
        "overrides": sorted(recipe(overrides)),
        "data": config.choices.data,
    }
    begun = study.user_attrs.get("searched")
    if begun is None:
        study.set_user_attr("searched", wanted)
        return
    if differing := [key for key in wanted if begun.get(key) != wanted[key]]:
        what = "; ".join(f"{key}: {begun.get(key)}, not {wanted[key]}" for key in differing)
        raise UserError(
            f"The study {study.study_name} in {without_password(address)} was started with {what}. "
            "study=NAME starts another one."
        )


def is_of_machine(override: str) -> bool:
    """Whether an override is about this machine, such as a path, and not about the training."""
    key = key_of(override)
    keys = (*(f"data.{name}" for name in DATA_PATHS), "trainer.gpus", "data", "logger")
    return key in keys or key.startswith("logger.")


def recipe(overrides: Sequence[str]) -> list[str]:
    """The overrides that are about the training, not about this machine."""
    return [override for override in overrides if not is_of_machine(override)]


def as_text(monitor: str, value: float) -> str:
    """Format a value of a metric: an accuracy in percent, others with four digits."""
    return f"{value:.2%}" if monitor.endswith("acc") else f"{value:.4g}"


def current_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials of a study by number, without those that were retried or are superfluous."""
    trials = study.get_trials(deepcopy=False)
    left_out = {number for trial in trials for number in retry.retry_history(trial)}
    left_out |= {trial.number for trial in trials if "superfluous" in trial.user_attrs}
    return sorted((t for t in trials if t.number not in left_out), key=number_of)


def number_of(trial: FrozenTrial) -> int:
    """The number that users see. A retry has the number of the trial whose run it resumes."""
    first = retry.retried_trial_number(trial)
    return trial.number if first is None else first
