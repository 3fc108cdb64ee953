"""What processes of test_claims.py do; they load this alone, and no torch."""

import os
import signal
import time
from pathlib import Path

import optuna

from cifar_lightning.search.claims import Claims
from cifar_lightning.search.storage import lock_of, open_storage


def open_claims(
    address: str, folder: Path, n_trials: int, silence_s: float = 120.0
) -> tuple[optuna.Study, Claims]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(address)
    study = optuna.create_study(
        study_name="shared", storage=storage, direction="maximize", load_if_exists=True
    )
    folder.mkdir(exist_ok=True)
    return study, Claims(study, storage, folder, lock_of(address, folder), n_trials, silence_s)


def do_all(address: str, folder: Path, n_trials: int) -> list[int]:
    study, claims = open_claims(address, folder, n_trials)
    done = []
    while (number := claims.next()) is not None:
        time.sleep(0.02)
        claims.beat(number)
        study.tell(number, 0.5)
        done.append(number)
    claims.close()
    return done


def claim_and_die(address: str, folder: Path, parameter: float) -> None:
    study, claims = open_claims(address, folder, 5)
    number = claims.next()
    assert number is not None
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    study.sampler = optuna.samplers.PartialFixedSampler({"x": parameter}, study.sampler)
    optuna.Trial(study, trial_id).suggest_float("x", 0, 1)
    os.kill(os.getpid(), signal.SIGKILL)
