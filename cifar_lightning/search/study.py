"""Opens the study that a search's configuration describes, or joins it."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from omegaconf import DictConfig, OmegaConf
from optuna.samplers import BruteForceSampler, GridSampler
from optuna.storages import BaseStorage

from cifar_lightning import run
from cifar_lightning.config import validate
from cifar_lightning.config.compose import CONF, compose, key_of
from cifar_lightning.errors import UserError
from cifar_lightning.search.space import as_overrides, examples, parse_space
from cifar_lightning.search.storage import lock_of, named, open_storage, without_password
from cifar_lightning.search.worker import OF_EVERY_TRIAL, Search, is_of_machine

# Keys of a search; all others are of its trials.
OWN = {str(key) for key in OmegaConf.load(CONF / "search.yaml")} - {"defaults", "hydra"} | {
    "search"
}
TRIES = 3


def open_search(config: DictConfig) -> tuple[Search, BaseStorage]:
    """The search, when everything about it that can be wrong before its first trial is right.

    Args:
        config: of conf/search.yaml, as `cli.compose` gives it.

    Raises:
        UserError: names what is wrong.
    """
    _check(config)
    space = parse_space(config.search.params)
    overrides = [o for o in config.overrides if key_of(o).partition(".")[0] not in OWN]
    twice = sorted({key_of(override) for override in overrides} & set(space))
    if twice:
        raise UserError(f"{', '.join(twice)} is searched by search={config.choices.search}.")
    folder = Path(config.run_dir)
    if folder.is_relative_to(Path.cwd()):
        folder = folder.relative_to(Path.cwd())  # as it is typed; what is written holds for others
    example = compose(
        [*OF_EVERY_TRIAL, *overrides, *as_overrides(examples(space))], folder / "trials" / "0"
    )
    validate.check_config(example)
    if example.data.get("val_size") == 0:
        raise UserError("data.val_size=0 leaves no images to judge a trial by.")
    _check_devices(example.trainer)

    sampler = partial(_sampler, config)
    sampler(0)  # what is wrong with it is said now
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if config.pruner is not None:
        pruner = run.instantiate_part(config.pruner, "pruner")
    address = config.storage or f"sqlite:///{folder / 'study.db'}"
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    lock = lock_of(address, folder)
    with named(address):
        lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        storage, study = _open(address, config.study or config.choices.search, pruner)
    _join(study, address, config, overrides)
    search = Search(
        study=study,
        space=space,
        address=address,
        lock=lock,
        overrides=overrides,
        folder=folder,
        n_trials=config.n_trials,
        sampler=sampler,
        seed=config.seed,
    )
    return search, storage


def _check(config: DictConfig) -> None:
    values: Any = OmegaConf.to_container(config, resolve=True)
    kinds = {"n_trials": int, "silence_s": float, "storage": str | None, "study": str | None}
    validate.check_values("", kinds, values)
    validate.check_part("sampler", values["sampler"])
    if values["pruner"] is not None:
        validate.check_part("pruner", values["pruner"])
    if config.n_trials < 1:
        raise UserError(f"n_trials={config.n_trials} is not a count from 1.")
    if config.silence_s <= 0:
        raise UserError(f"silence_s={config.silence_s} is not above 0.")
    if not OmegaConf.is_dict(config.search.get("params")):
        raise UserError(
            f"search={config.choices.search} has no params: keys, and what each may be."
        )


def _check_devices(trainer: DictConfig) -> None:
    gpus, devices = trainer.gpus, trainer.get("devices", 1)
    several = gpus > 1 if isinstance(gpus, int) else OmegaConf.is_list(gpus) and len(gpus) > 1
    if several or devices != 1 or trainer.num_nodes != 1:
        raise UserError(
            "A trial of a search trains on one device. Start the search once for each GPU instead: "
            "all that have the same storage share the trials, and each takes a GPU of its own."
        )


def _sampler(config: DictConfig, seed: int) -> optuna.samplers.BaseSampler:
    sampler: optuna.samplers.BaseSampler = run.instantiate_part(
        config.sampler, "sampler", seed=seed
    )
    if isinstance(sampler, GridSampler | BruteForceSampler):  # which want to end a study themselves
        raise UserError(f"sampler={config.sampler._target_}: A grid is a sweep's: train -m.")
    return sampler


def _open(
    address: str, name: str, pruner: optuna.pruners.BasePruner
) -> tuple[BaseStorage, optuna.Study]:
    """The storage and the study in it; made where they are not there yet."""
    for tries_left in reversed(range(TRIES)):
        try:
            with named(address):
                storage = open_storage(address)
                study = optuna.create_study(
                    study_name=name,
                    storage=storage,
                    direction="maximize",
                    load_if_exists=True,
                    pruner=pruner,
                )
            return storage, study
        except UserError:
            # Another machine may be making its tables at this moment.
            if not tries_left:
                raise
            time.sleep(1)
    raise AssertionError


def _join(study: optuna.Study, address: str, config: DictConfig, overrides: Sequence[str]) -> None:
    """Have all workers of a study try the same: what a trial depends on is kept with it.

    Raises:
        UserError: if the study was begun with something else.
    """
    wanted = {
        "params": {str(key): str(text) for key, text in config.search.params.items()},
        "overrides": sorted(o for o in overrides if not is_of_machine(o)),
        "data": config.choices.data,
    }
    begun = study.user_attrs.get("searched")
    if begun is None:
        study.set_user_attr("searched", wanted)
        return
    if differing := [key for key in wanted if begun.get(key) != wanted[key]]:
        what = "; ".join(f"{key}: {begun.get(key)}, not {wanted[key]}" for key in differing)
        raise UserError(
            f"The study {study.study_name} in {without_password(address)} was begun with {what}. "
            "study=NAME begins another one."
        )
