"""Who does which trial of a study that several workers share, in storages of every kind."""

import multiprocessing
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from claiming import claim_and_die, do_all, open_claims
from optuna.trial import TrialState

from cifar_lightning.errors import UserError
from cifar_lightning.search.claims import TrialLost
from cifar_lightning.search.storage import named, open_storage, without_password


@pytest.fixture(params=["sqlite", "journal", "postgres"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("database"))
    return f"{request.param}:///{tmp_path}/studies"


@pytest.mark.parametrize("shared_folder", [True, False])
def test_several_workers_do_each_trial_once(
    address: str, tmp_path: Path, shared_folder: bool
) -> None:
    folders = [tmp_path / ("one" if shared_folder else str(number)) for number in range(3)]
    open_claims(address, folders[0], 1)[1].close()  # makes the tables
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=spawn) as processes:
        done = list(processes.map(partial(do_all, address, n_trials=12), folders))
    assert sorted(number for numbers in done for number in numbers) == [*range(12)]
    study, claims = open_claims(address, folders[0], 12)
    finished = [trial for trial in study.get_trials() if trial.state.is_finished()]
    assert [trial.number for trial in finished] == [*range(12)]
    assert claims.next() is None
    # A higher number goes on from there.
    _, more = open_claims(address, folders[0], 14)
    assert more.next() == 12


def killed_worker(address: str, folder: Path, parameter: float = 0.25) -> None:
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=claim_and_die, args=(address, folder, parameter))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_trial_whose_worker_died_goes_on_at_once_with_its_values(
    address: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    killed_worker(address, folder)
    study, claims = open_claims(address, folder, 5)
    assert claims.workers_here() == 1
    assert claims.next() == 0
    assert study.trials[0].state == TrialState.RUNNING
    assert study.trials[0].params == {"x": 0.25}
    _, other = open_claims(address, folder, 5)
    assert claims.workers_here() == 2
    assert other.next() == 1  # the first has an owner that lives


def test_of_another_machine_silence_tells(address: str, tmp_path: Path) -> None:
    killed_worker(address, tmp_path / "theirs")
    _, here = open_claims(address, tmp_path / "here", 2, silence_s=1.5)
    assert here.next() == 1  # of the other trial nothing is known yet
    began = time.monotonic()
    while (number := open_claims(address, tmp_path / "here", 1, 1.5)[1].next()) is None:
        pass
    assert number == 0
    assert time.monotonic() - began > 1.5


def test_nobody_waits_for_a_machine_that_gives_signs_of_life(address: str, tmp_path: Path) -> None:
    _, theirs = open_claims(address, tmp_path / "theirs", 1, silence_s=2)
    assert theirs.next() == 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        waiting = process.submit(do_all, address, tmp_path / "here", 1)
        while not waiting.done():
            theirs.beat(0)
            time.sleep(0.2)
    assert waiting.result() == []
    theirs.beat(0)  # it is still theirs


def test_a_worker_that_was_taken_for_dead_finds_out(address: str, tmp_path: Path) -> None:
    _, slow = open_claims(address, tmp_path / "slow", 1)
    assert slow.next() == 0
    _, other = open_claims(address, tmp_path / "other", 1, silence_s=0.1)
    assert other.next() == 0
    with pytest.raises(TrialLost):
        slow.beat(0)
    other.beat(0)


def test_of_two_who_take_a_worker_for_dead_one_has_its_trial(address: str, tmp_path: Path) -> None:
    killed_worker(address, tmp_path / "theirs")
    study, one = open_claims(address, tmp_path / "one", 1, silence_s=0.1)
    assert one.next() == 0
    _, other = open_claims(address, tmp_path / "other", 1, silence_s=0.1)
    other._put_back(0)  # judged a moment before
    assert other._claim(0)
    assert not one._claim(0)
    states = []
    for claims in (one, other):  # the first has it no more
        claims.give_back(0)
        states.append(study.trials[0].state)
    assert states == [TrialState.RUNNING, TrialState.WAITING]


def test_a_trial_that_is_done_is_not_given_back(address: str, tmp_path: Path) -> None:
    study, claims = open_claims(address, tmp_path / "folder", 1)
    assert claims.next() == 0
    study.tell(0, 0.5)
    claims.give_back(0)
    assert study.trials[0].state == TrialState.COMPLETE


def test_passwords_are_not_shown(database: str) -> None:
    wrong = database.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(UserError) as error, named(wrong):
        open_storage(wrong)
    assert "secret" in wrong
    assert "secret" not in str(error.value)
    assert "someone:***@127.0.0.2" in str(error.value)
    assert without_password("studies.db") == "studies.db"
