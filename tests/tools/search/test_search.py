"""Searches: the search space, several workers on one study, and workers that are killed."""

import csv
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from conftest import TINY, Compose, not_installed
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import fail_stale_trials
from optuna.trial import TrialState
from programs import Program, finish, run_command, start, wait_for

from cifar_lightning.config.compose import compose
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.errors import UserError
from cifar_lightning.search import main, outcome, search, worker
from cifar_lightning.search.space import as_overrides, examples, parse_space
from cifar_lightning.search.study import (
    current_trials,
    is_of_machine,
    open_search,
    open_storage,
    without_password,
)
from cifar_lightning.system.locks import run_lock
from cifar_lightning.tracking.run_folder import read_rows

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a real server, Debian's, without its last part, a database."""
    if not POSTGRES:
        not_installed("A real PostgreSQL server keeps studies here: apt-get install postgresql")
    # Not below pytest's folder, which is its user's alone; the server refuses to be root's.
    folder = Path(tempfile.mkdtemp())
    user = "postgres" if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    start = partial(subprocess.run, check=True, user=user, capture_output=True, cwd=folder)
    port = 20_000 + secrets.randbelow(20_000)
    listening = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    start([POSTGRES[-1] / "initdb", "-D", "data", "-A", "trust", "-U", "someone"])
    control = [POSTGRES[-1] / "pg_ctl", "-D", "data", "-w"]
    # Its own log: the server would keep a pipe open for ever.
    start([*control, "-o", listening, "-l", "log", "start"], capture_output=False)
    yield f"postgresql://someone:secret@127.0.0.1:{port}"
    start([*control, "-m", "immediate", "stop"])
    shutil.rmtree(folder)


def administer(postgres: str, command: str) -> None:
    address = f"{postgres.replace('postgresql', 'postgresql+psycopg')}/postgres"
    engine = sqlalchemy.create_engine(address, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(command)
    engine.dispose()


@pytest.fixture
def database(postgres: str) -> str:
    name = f"studies_{secrets.token_hex(4)}"
    administer(postgres, f"CREATE DATABASE {name}")
    return f"{postgres}/{name}"


# What may be chosen.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("choice(a,b)", CategoricalDistribution(["a", "b"])),
        ("a,null", CategoricalDistribution(["a", "null"])),
        ("range(1,5)", IntDistribution(1, 4)),
        ("range(2,9,3)", IntDistribution(2, 8, step=3)),
        ("range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("tag(log, range(1,9))", IntDistribution(1, 8, log=True)),
        ("interval(0,1)", FloatDistribution(0, 1)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log, interval(0.01,1))", FloatDistribution(0.01, 1, log=True)),
        ("tag(log, int(interval(1,100)))", IntDistribution(1, 100, log=True)),
    ],
)
def test_a_space_is_what_hydras_grammar_says(text: str, expected: BaseDistribution) -> None:
    assert parse_space({"key": text}) == {"key": expected}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("5", "it is a single value"),
        ("choice(a,a)", "each value once"),
        ("tag(log, choice(1,2))", "a choice has no log scale"),
        ("tag(log, interval(0,1))", "low > 0"),
        ("tag(log, range(0,1,0.1))", "needs integers and steps of 1"),
        ("interval(2,1)", "low <= high"),
        ("range(0)", "the range is empty"),
        ("interval(0", "no viable alternative"),
    ],
)
def test_what_is_no_space_is_named(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=r"search\.params: optimizer\.lr: ") as error:
        parse_space({"optimizer.lr": text})
    assert reason in str(error.value)
    assert "As in choice(a,b)" in str(error.value)


def test_numbers_have_four_digits() -> None:
    params = {"a": 0.123456, "b": 1.0, "c": 3, "d": "x", "e": 1.234567e-7}
    assert as_overrides(params) == ["a=0.1235", "b=1", "c=3", "d=x", "e=1.235e-07"]
    space = parse_space({"a": "choice(x,y)", "b": "range(3,5)", "c": "interval(0.5,1)"})
    assert examples(space) == {"a": "x", "b": 3, "c": 0.5}


# Whole searches.

SMALL = (
    *TINY,
    "trainer.max_epochs=2",
    "pruner=null",
    "heartbeat_interval=1",
    "grace_period=5",
    "+callbacks.pause._target_=trial_callbacks.Pause",
)
DONE = re.compile(r"^trial +(\d+) ", re.MULTILINE)


def start_search(*typed: str, cwd: Path, pause_in: int) -> Program:
    """A search as a program, which waits within one of its trials."""
    cwd.mkdir(exist_ok=True)
    path = f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"
    env = os.environ | {"PYTHONPATH": path, "PAUSE_IN": str(pause_in)}
    return start("search", *typed, cwd=cwd, env=env)


def run_search(cwd: Path, *overrides: str) -> dict[str, Any]:
    """A search in this process; its trials have processes of their own."""
    folder = cwd / "runs/search/lr_augment"
    return search(compose([*SMALL, *overrides], folder, "search"))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def results(folder: Path) -> list[dict[str, str]]:
    """The table without seconds, and without numbers, one of which a retry takes."""
    different = ("train_seconds", "trial")
    return [{k: v for k, v in row.items() if k not in different} for row in table(folder)]


def shown_config(*typed: str) -> DictConfig:
    """The configuration of a training, which is not started."""
    ended = run_command("train", "--cfg", "job", *typed)
    assert ended.returncode == 0, ended.stderr
    config = OmegaConf.create(ended.stdout)
    assert isinstance(config, DictConfig)
    return config


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of three trials that nothing disturbed."""
    cwd = tmp_path_factory.mktemp("whole")
    found = run_search(cwd, "n_trials=3")
    assert found["complete"] == 3
    return cwd / "runs/search/lr_augment"


@pytest.mark.slow
def test_a_search_leaves_what_it_should(whole: Path) -> None:
    rows = table(whole)
    assert [(row["trial"], row["state"]) for row in rows] == [
        (str(n), "complete") for n in range(3)
    ]
    space = ("optimizer.lr", "optimizer.sgd_lr", "augment", "loss.label_smoothing")
    assert len({tuple(row[key] for key in space) for row in rows}) == 3
    assert all(0.02 <= float(row["optimizer.lr"]) <= 0.4 for row in rows)
    for row in rows:
        trial = whole / "trials" / row["trial"]
        metrics = json.loads((trial / "metrics.json").read_text())
        assert metrics["val/acc"] == pytest.approx(float(row["val/acc"]))
        assert metrics["test/acc"] is None  # test images are not for choosing
        assert (metrics["stopped_by"], metrics["epochs"]) == ("max_epochs", 2)
        config = OmegaConf.load(trial / "config.yaml")
        assert config.optimizer.lr == float(row["optimizer.lr"])
        assert config.choices.augment == row["augment"]
        assert config.sweep == "lr_augment"
    for name in ("history", "importance"):
        assert (whole / f"{name}.png").stat().st_size > 5000

    # The best configuration is an experiment, which is tested.
    file = whole / "conf" / "experiment" / "lr_augment_best.yaml"
    _, command, result, *_ = file.read_text().splitlines()
    best = max(rows, key=lambda row: float(row["val/acc"]))
    assert f"val/acc {float(best['val/acc']):.2%}" in result
    assert "experiment=lr_augment_best" in command
    config = shown_config(*command.split()[4:])
    trial_config = OmegaConf.load(whole / "trials" / best["trial"] / "config.yaml")
    assert isinstance(trial_config, DictConfig)
    for key in ("model", "optimizer", "scheduler", "augment", "data", "loss", "init"):
        assert config[key] == trial_config[key], key
    assert config.target_accuracy is None
    assert config.trainer.max_epochs == 2
    assert config.trainer.limit_test_batches is None


@contextmanager
def interrupted_when(condition: Callable[[], bool]) -> Iterator[None]:
    """Has Ctrl-C end what this process does as soon as something is so."""

    def interrupt() -> None:
        wait_for(condition)
        os.kill(os.getpid(), signal.SIGINT)

    # What a shell starts by & ignores Ctrl-C, and so might these tests.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(interrupt)
            yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_stopped_and_killed_and_started_again_it_ends_as_if_nothing_had_been(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs/search/lr_augment"
    monkeypatch.setenv("PAUSE_IN", "1")
    paused = (folder / "trials/1/paused").exists
    with interrupted_when(paused), pytest.raises(KeyboardInterrupt):
        run_search(tmp_path, "n_trials=3")
    monkeypatch.delenv("PAUSE_IN")
    assert [row["state"] for row in table(folder)] == ["complete", "waiting"]

    killed = start_search(*SMALL, "n_trials=3", cwd=tmp_path, pause_in=3)  # 2 was the retry of 1
    wait_for((folder / "trials/3/paused").exists, killed)
    killed.kill()
    assert DONE.findall(finish(killed)) == ["1"]
    finished = [folder / f"trials/{number}/metrics.json" for number in (0, 1)]
    before = [file.stat().st_mtime_ns for file in finished]

    assert run_search(tmp_path, "n_trials=3")["complete"] == 3
    assert [file.stat().st_mtime_ns for file in finished] == before
    # To the bit, and each trial was resumed from its checkpoint, under its number.
    assert results(folder) == results(whole)
    for number in (1, 3):
        epochs = [row["epoch"] for row in read_rows(folder / f"trials/{number}") if "lr" in row]
        assert epochs == [1, 2]
        assert (folder / f"trials/{number}/output.log").read_text().count("epoch 1/2") == 1


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("database"))
    return f"sqlite:///{tmp_path}/studies.db"


def prints(text: str, capsys: pytest.CaptureFixture[str]) -> Callable[[], bool]:
    """A condition: whether this process has printed a text since."""
    printed: list[str] = []

    def has_printed() -> bool:
        printed.append(capsys.readouterr().out)
        return text in "".join(printed)

    return has_printed


def test_several_workers_run_exactly_so_many_trials(tmp_path: Path, address: str) -> None:
    (tmp_path / "conf/search").mkdir(parents=True)
    config = composed(tmp_path, f"storage={address}", "n_trials=7")
    config.search.params = {"optimizer.lr": "choice(0.1,0.2)"}
    study = open_search(config).study
    for lr in ("0.1", "0.2"):  # what all others are then the same as, so that nothing is trained
        known = {"overrides": [f"optimizer.lr={lr}"]}
        study.add_trial(optuna.create_trial(value=0.5, user_attrs=known))
    workers = [open_search(config) for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(worker.work, workers))
    states = [trial.state for trial in current_trials(study)]
    assert states == [TrialState.COMPLETE] * 7
    others = [t for t in study.get_trials() if t.state != TrialState.COMPLETE]
    assert all("superfluous" in trial.user_attrs for trial in others)


def test_a_trial_whose_worker_died_before_its_first_heartbeat_is_retried(
    tmp_path: Path, address: str
) -> None:
    heartbeats = ("heartbeat_interval=1", "grace_period=2")
    study = open_search(composed(tmp_path, f"storage={address}", *heartbeats)).study
    study.add_trial(optuna.create_trial(state=TrialState.RUNNING))

    def is_retried() -> bool:
        fail_stale_trials(study)
        return [t.state for t in current_trials(study)] == [TrialState.WAITING]

    assert not is_retried()
    wait_for(is_retried)


def test_a_worker_says_that_it_waits_for_the_last_trials(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_search(composed(tmp_path, "n_trials=1"))
    opened.study.add_trial(optuna.create_trial(state=TrialState.RUNNING))
    waits = prints("Other workers run the last trials: 0. This one waits", capsys)

    def end_the_trial() -> None:
        try:
            wait_for(waits, seconds=20)
        finally:
            opened.study.tell(0, 0.5)

    with ThreadPoolExecutor(1) as threads:
        ending = threads.submit(end_the_trial)
        worker.work(opened)
        ending.result()


def test_a_server_that_is_away_for_a_moment_loses_nothing(
    postgres: str, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage = open_storage(database, 10, 120)
    change = f"ALTER DATABASE {database.rpartition('/')[2]} ALLOW_CONNECTIONS"
    administer(postgres, f"{change} false")
    with ThreadPoolExecutor(1) as threads:
        studies = threads.submit(storage.get_all_studies)
        wait_for(lambda: studies.done() or "does not answer" in caplog.text)
        administer(postgres, f"{change} true")
        assert studies.result() == []


def test_a_heartbeat_that_fails_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = open_storage(f"{tmp_path}/studies.db", 10, 120)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE trial_heartbeats")
    storage.record_heartbeat(0)
    assert "no such table: trial_heartbeats" in caplog.text


@pytest.mark.slow
def test_a_worker_takes_over_what_one_on_another_machine_leaves(
    tmp_path: Path, database: str
) -> None:
    options = ("n_trials=2", f"storage={database}")
    first = start_search(*SMALL, *options, cwd=tmp_path / "first", pause_in=0)
    trials = tmp_path / "first/runs/search/lr_augment/trials"
    wait_for((trials / "0/paused").exists, first)
    cwd = tmp_path / "second"  # machines have folders of their own
    folder = cwd / "runs/search/lr_augment"

    def kill() -> None:
        """When the second worker runs a trial while the first one does."""
        wait_for((folder / "trials/1/checkpoints/last.ckpt").exists, first)
        first.kill()

    with ThreadPoolExecutor(1) as threads:
        killing = threads.submit(kill)
        assert run_search(cwd, *options)["complete"] == 2
        killing.result()
    assert DONE.findall(finish(first)) == []
    assert [(row["trial"], row["state"]) for row in table(folder)] == [
        ("0", "complete"),
        ("1", "complete"),
    ]
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in texts if b"secret@" in text]


def enqueued(tmp_path: Path, key: str, values: Sequence[str], *overrides: str) -> DictConfig:
    """A search's configuration; it will try these values in this order."""
    config = composed(tmp_path, f"n_trials={len(values)}", "trainer.max_epochs=2", *overrides)
    config.search.params = {key: f"choice({','.join(sorted(set(values)))})"}
    study = open_search(config).study
    for value in values:
        study.enqueue_trial({key: value})
    return config


@pytest.mark.slow
def test_what_goes_wrong_fails_the_trial_and_not_the_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = "+callbacks.failure._target_=trial_callbacks.Failure"
    ways = ["raise", "kill", "diverge", "no", "no"]
    found = search(enqueued(tmp_path, "+callbacks.failure.how", ways, target))
    assert (found["failed"], found["complete"], found["best"]) == (3, 2, 3)
    rows = table(tmp_path / "search")
    reasons = [row["reason"].partition(":")[0] for row in rows]
    assert reasons == [
        "a fault of mine",
        "Its process was ended by SIGKILL, perhaps by the system because memory ran out.",
        "The loss became NaN or infinite",
        "",
        "",
    ]
    assert "trial 0  failed: a fault of mine" in capsys.readouterr().out
    # The same once more is not trained once more.
    assert [row["same_as"] for row in rows] == ["", "", "", "", "3"]
    assert not (tmp_path / "search/trials/4").exists()


def test_a_pruner_is_told_the_metric_that_is_optimised(tiny: Compose, tmp_path: Path) -> None:
    study = optuna.create_study(direction="minimize")
    by_loss = ("callbacks.best.monitor=val/loss", "callbacks.best.mode=min")
    two = ("trainer.max_epochs=2", "target_accuracy=null")
    worker._train(study.ask(), "val/loss", tiny(*by_loss, *two))
    losses = [row["val/loss"] for row in read_rows(tmp_path / "run") if "val/loss" in row]
    assert study.trials[0].intermediate_values == pytest.approx(dict(enumerate(losses)))


@pytest.mark.slow
def test_a_search_by_loss_prefers_the_lower_one(tmp_path: Path) -> None:
    by_loss = ("callbacks.best.monitor=val/loss", "callbacks.best.mode=min")
    config = enqueued(tmp_path, "optimizer.lr", ["0.1", "1e-09"], *by_loss)
    found = search(config)
    rows = table(tmp_path / "search")
    losses = [float(row["val/loss"]) for row in rows]
    assert found["best"] == losses.index(min(losses)) == 0
    assert found["val/loss"] == pytest.approx(losses[0], abs=1e-6)
    study = open_search(config).study
    for trial, loss in zip(study.trials, losses, strict=True):
        assert min(trial.intermediate_values.values()) == pytest.approx(loss)  # for the pruner


@pytest.mark.slow
def test_a_trial_without_prospects_is_pruned(tmp_path: Path) -> None:
    pruner = ("pruner.n_startup_trials=1", "optimizer.sgd_lr=1e-9", "trainer.max_epochs=3")
    search(enqueued(tmp_path, "optimizer.lr", ["0.1", "1e-09"], *pruner))
    assert [row["state"] for row in table(tmp_path / "search")] == ["complete", "pruned"]
    metrics = json.loads((tmp_path / "search/trials/1/metrics.json").read_text())
    assert metrics["stopped_by"] == "pruned"
    assert metrics["epochs"] < 3


# Mistakes.

HERE = ["logger=csv", "trainer.gpus=0"]  # of TINY, what is of the machine


def composed(tmp_path: Path, *overrides: str) -> DictConfig:
    typed = prepare_arguments([*TINY, *overrides])
    return compose(typed, tmp_path / "search", "search")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["n_trials=0"], r"n_trials=0 is invalid: it must be at least 1"),
        (["grace_period=10"], r"it must be longer than heartbeat_interval=10"),
        (["search.params=null"], r"search=lr_augment has no params"),
        (["data.val_size=0"], r"data\.val_size=0 leaves no validation to judge a trial by"),
        (
            ["loss.label_smoothing=0.3", "augment=none"],
            r"augment, loss\.label_smoothing cannot be set",
        ),
        (["trainer.max_epochs=0"], r"trainer\.max_epochs=0 should be greater than"),
        (["+sampler.nonsense=1"], r"sampler\.nonsense: .* has no such argument"),
        (["+sampler.seed=1"], r"sampler\.seed would be ignored"),
        (["trainer=ddp_sim"], r"A trial of a search trains on one device"),
        (["trainer.gpus=2"], r"A trial of a search trains on one device"),
        (
            ["sampler._target_=optuna.samplers.BruteForceSampler", "~sampler.multivariate"],
            r"for a grid, use a sweep \(train -m\)",
        ),
        (["pruner.n_startup_trials=-1"], r"pruner: "),
        (["storage=nonsense://x"], r"storage=nonsense://x: "),
        pytest.param(
            ["storage=postgresql://a:sesame@127.0.0.1:1/x"],
            r"storage=postgresql://a:\*\*\*@127\.0\.0\.1:1/x: .*refused",
            marks=pytest.mark.slow,
        ),
        (["storage=file/below/study.db"], r"storage=file/below/study\.db: "),
    ],
)
def test_a_mistake_is_named_before_the_first_trial(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message) as error:
        search(composed(tmp_path, *overrides))
    assert "sesame" not in str(error.value)  # nor does the reason tell the password
    assert not (tmp_path / "search" / "trials").exists()


def test_a_search_has_no_multirun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["cifar-search", "-m", "n_trials=1,2"])
    with pytest.raises(SystemExit, match=r"A search makes its own trials: leave -m out"):
        main()


def test_a_study_is_of_one_search(tmp_path: Path) -> None:
    config = composed(tmp_path, "n_trials=1")
    first = open_search(config)
    again = composed(tmp_path, "n_trials=2", "logger.wandb.mode=offline", "logger=default")
    assert open_search(again).study.study_name == first.study.study_name
    with pytest.raises(UserError, match=r"was started with .*study=NAME starts another"):
        open_search(composed(tmp_path, "trainer.precision=32-true"))
    open_search(composed(tmp_path, "trainer.precision=32-true", "study=another"))
    # Of a key that was typed twice the last value counts.
    twice = ("cutmix=0.1", "cutmix=0.2")
    open_search(composed(tmp_path, *twice, "study=third"))
    open_search(composed(tmp_path, twice[1], "study=third"))
    with pytest.raises(UserError, match="was started with"):
        open_search(composed(tmp_path, *reversed(twice), "study=third"))


def test_what_is_of_the_machine_is_no_part_of_an_experiment() -> None:
    of_machine = ["data=folder", "data.path=x", "+data.cache_dir=x", "trainer.gpus=0"]
    assert all(map(is_of_machine, [*of_machine, "logger.wandb.mode=offline"]))
    assert not any(map(is_of_machine, ["data.batch_size=5", "trainer.max_epochs=5"]))


def test_a_trial_of_another_study_is_not_resumed(tmp_path: Path) -> None:
    first = open_search(composed(tmp_path))
    worker.trial_config(first, 0, ["optimizer.lr=0.1"])
    last = tmp_path / "search/trials/0/checkpoints/last.ckpt"
    last.parent.mkdir()
    last.touch()
    again = worker.trial_config(first, 0, ["optimizer.lr=0.1"])
    assert (again.resume, again.overrides) == ("search/trials/0/checkpoints/last.ckpt", HERE)
    with pytest.raises(UserError, match=r"trials/0 has a trial of another study"):
        worker.trial_config(first, 0, ["optimizer.lr=0.2"])


def test_a_search_whose_trials_all_fail_says_so_and_stops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed(tmp_path, "n_trials=1", "budget.max_params=1000")
    held = threading.Event()
    waits = prints("trial 0  waits for another process", capsys)

    def hold_first() -> None:
        """As a worker does whose trial was taken for dead."""
        with run_lock(tmp_path / "search/trials/0"):
            held.set()
            wait_for(waits, seconds=60)

    with ThreadPoolExecutor(1) as threads:
        holding = threads.submit(hold_first)
        held.wait()
        with pytest.raises(UserError, match=r"No trial was completed: trials\.csv has the rea"):
            search(config)
        holding.result()
    (failed,) = table(tmp_path / "search")
    assert (failed["trial"], failed["state"]) == ("0", "failed")
    log = (tmp_path / "search" / "trials" / "0" / "train.log").read_text()
    assert failed["reason"] in " ".join(log.split())
    config.n_trials = 5
    study = open_search(config).study
    study.add_trial(study.trials[0])
    with pytest.raises(UserError, match=r"All 3 trials failed for the same reason.* 257,856"):
        search(config)
    reasons = [row["reason"] for row in table(tmp_path / "search")]
    assert reasons == [failed["reason"]] * 3


def test_an_experiment_that_was_chosen_is_the_base_of_the_best(tmp_path: Path) -> None:
    trial = optuna.trial.create_trial(
        value=0.5, user_attrs={"overrides": ["experiment=sgd", "augment=none", "optimizer.lr=0.2"]}
    )
    file, _ = outcome.write_experiment(
        tmp_path, "found", ["trainer.max_epochs=3"], trial, "the best"
    )
    config = shown_config("--config-dir", str(tmp_path / "conf"), "experiment=found")
    expected = compose(
        ["experiment=sgd", "augment=none", "optimizer.lr=0.2", "trainer.max_epochs=3"]
    )
    for key in ("optimizer", "augment", "init", "scheduler", "loss", "trainer"):
        assert config[key] == expected[key], key
    assert file.name == "found.yaml"


def test_passwords_are_not_shown() -> None:
    assert without_password("postgresql://me:secret@host/x") == "postgresql://me:***@host/x"
    assert without_password("studies.db") == "studies.db"
