"""Searches: what they may choose, several workers on one study, and workers that are killed."""

import csv
import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import TINY
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState
from programs import Program, finish, run_command, start, wait_for

from cifar_lightning.config.compose import compose
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.errors import UserError
from cifar_lightning.search import outcome, search, worker
from cifar_lightning.search.space import as_overrides, examples, parse_space
from cifar_lightning.search.study import (
    current_trials,
    is_of_machine,
    open_search,
    without_password,
)
from cifar_lightning.system.jobs import JobEnvironment, run_job
from cifar_lightning.tracking.run_folder import read_rows

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

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
        ("5", "it has one value"),
        ("choice(a,a)", "names nothing twice"),
        ("tag(log, choice(1,2))", "a choice has no magnitude"),
        ("tag(log, interval(0,1))", "low > 0"),
        ("tag(log, range(0,1,0.1))", "a range by magnitude has integers"),
        ("interval(2,1)", "low <= high"),
        ("range(0)", "it is empty"),
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
    *(option for option in TINY if not option.startswith(("data.train_size", "trainer.max"))),
    "data.train_size=400",
    "trainer.max_epochs=5",
    "pruner=null",
    "heartbeat_interval=1",
    "grace_period=3",
)
DONE = re.compile(r"^trial +(\d+) ", re.MULTILINE)
MINE = """
import os, signal
import pytorch_lightning as pl
import torch

class Crash(pl.Callback):
    def __init__(self, how):
        self.how = how
    def on_train_epoch_end(self, trainer, module):
        if self.how == "raise":
            raise RuntimeError("a fault of mine")
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "no_number":
            next(module.network.parameters()).data.fill_(torch.nan)
"""


def start_search(*typed: str, cwd: Path, **environment: str) -> Program:
    cwd.mkdir(exist_ok=True)
    return start("search", *typed, cwd=cwd, env=os.environ | environment)


def run_search(*arguments: str, cwd: Path, **environment: str) -> str:
    program = start_search(*arguments, cwd=cwd, **environment)
    output = finish(program)
    assert program.returncode == 0, output
    return output


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def results(folder: Path) -> list[dict[str, str]]:
    """The table without what no two trainings have alike; a retried trial has a new number."""
    different = ("train_seconds", "trial")
    return [{k: v for k, v in row.items() if k not in different} for row in table(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search of five trials that nothing disturbed."""
    cwd = tmp_path_factory.mktemp("whole")
    run_search(*SMALL, "n_trials=5", cwd=cwd)
    return cwd / "runs/search/lr_augment"


@pytest.mark.slow
def test_a_search_leaves_what_it_should(whole: Path) -> None:
    rows = table(whole)
    assert [(row["trial"], row["state"]) for row in rows] == [
        (str(n), "complete") for n in range(5)
    ]
    space = ("optimizer.lr", "optimizer.sgd_lr", "augment", "label_smoothing")
    assert len({tuple(row[key] for key in space) for row in rows}) == 5
    assert all(0.02 <= float(row["optimizer.lr"]) <= 0.4 for row in rows)
    for row in rows:
        trial = whole / "trials" / row["trial"]
        metrics = json.loads((trial / "metrics.json").read_text())
        assert metrics["val/acc"] == pytest.approx(float(row["val/acc"]))
        assert metrics["test/acc"] is None  # test images are not for choosing
        assert (metrics["stopped_by"], metrics["epochs"]) == ("max_epochs", 5)
        config = OmegaConf.load(trial / ".hydra" / "config.yaml")
        assert config.optimizer.lr == float(row["optimizer.lr"])
        assert config.choices.augment == row["augment"]
        assert config.sweep == "lr_augment"
    for name in ("history", "importance"):
        assert (whole / f"{name}.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_best_configuration_is_an_experiment(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = whole / "conf" / "experiment" / "lr_augment_best.yaml"
    _, command, result, *_ = file.read_text().splitlines()
    best = max(table(whole), key=lambda row: float(row["val/acc"]))
    assert f"{float(best['val/acc']):.2%} validation accuracy" in result
    assert "experiment=lr_augment_best" in command
    monkeypatch.chdir(whole.parents[2])
    typed = ["--cfg", "job", *command.split()[4:]]
    ended = run_command("train", *typed)
    assert ended.returncode == 0, ended.stderr
    config = OmegaConf.create(ended.stdout)
    assert isinstance(config, DictConfig)
    trial = OmegaConf.load(whole / "trials" / best["trial"] / ".hydra" / "config.yaml")
    assert isinstance(trial, DictConfig)
    for key in ("model", "optimizer", "scheduler", "augment", "data", "label_smoothing", "init"):
        assert config[key] == trial[key], key
    assert config.target_accuracy is None
    assert config.trainer.max_epochs == 5
    assert "limit_test_batches" not in config.trainer  # it is tested


@pytest.mark.slow
def test_killed_half_way_and_started_again_it_ends_as_if_nothing_had_been(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed/runs/search/lr_augment"
    program = start_search(*SMALL, "n_trials=5", cwd=tmp_path / "killed")
    wait_for((folder / "trials/2/checkpoints/last.ckpt").exists, program)
    program.kill()
    finish(program)
    study = optuna.load_study(study_name="lr_augment", storage=f"sqlite:///{folder}/study.db")
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.RUNNING]
    before = [(folder / f"trials/{number}/metrics.json").stat().st_mtime_ns for number in (0, 1)]
    run_search(*SMALL, "n_trials=5", cwd=tmp_path / "killed")
    assert [trial.state for trial in current_trials(study)] == [TrialState.COMPLETE] * 5
    # Bit by bit, and the third trial was resumed from its checkpoint.
    assert results(folder) == results(whole)
    epochs = [row["epoch"] for row in read_rows(folder / "trials/2") if "lr" in row]
    assert epochs == [1, 2, 3, 4, 5]
    assert (folder / "trials/2/output.log").read_text().count("epoch 1/5") == 1
    after = [(folder / f"trials/{number}/metrics.json").stat().st_mtime_ns for number in (0, 1)]
    assert after == before
    # Once more there is nothing to do.
    assert not DONE.findall(run_search(*SMALL, "n_trials=5", cwd=tmp_path / "killed"))


@pytest.mark.slow
def test_ctrl_c_leaves_the_trial_to_the_next_start(tmp_path: Path) -> None:
    cwd = tmp_path / "stopped"
    folder = cwd / "runs/search/lr_augment"
    program = start_search(*SMALL, "n_trials=2", cwd=cwd)
    wait_for((folder / "trials/0/checkpoints/last.ckpt").exists, program)
    program.send_signal(signal.SIGINT)
    output = finish(program)
    assert program.returncode == 130, output
    assert "Traceback" not in output
    assert table(folder)[0]["state"] == "waiting"
    assert [row["state"] for row in _again(cwd)] == ["complete", "complete"]
    assert (folder / "trials/0/output.log").read_text().count("epoch 1/5") == 1


def _again(cwd: Path) -> list[dict[str, str]]:
    run_search(*SMALL, "n_trials=2", cwd=cwd)
    return table(cwd / "runs/search/lr_augment")


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("database"))
    return f"sqlite:///{tmp_path}/studies.db"


def take_part(config: DictConfig) -> int:
    """The number of trials that a worker runs."""
    opened = open_search(config)
    optimized = 0
    optimize = opened.study.optimize

    def count(*arguments: Any, **options: Any) -> None:
        nonlocal optimized
        optimize(*arguments, **options)
        optimized += 1

    opened.study.optimize = count  # type: ignore[method-assign]
    worker.work(opened)
    return optimized


def test_several_workers_run_exactly_so_many_trials(tmp_path: Path, address: str) -> None:
    (tmp_path / "conf/search").mkdir(parents=True)
    config = composed(tmp_path, f"storage={address}", "n_trials=60")
    config.search.params = {"optimizer.lr": "choice(0.1,0.2)"}
    study = open_search(config).study
    for lr in ("0.1", "0.2"):  # what all others are then the same as, so that nothing is trained
        distributions: dict[str, BaseDistribution] = {
            "optimizer.lr": CategoricalDistribution(["0.1", "0.2"])
        }
        attributes = {"overrides": [f"optimizer.lr={lr}"]}
        study.add_trial(
            optuna.create_trial(
                value=0.5,
                params={"optimizer.lr": lr},
                distributions=distributions,
                user_attrs=attributes,
            )
        )
    with ThreadPoolExecutor(3) as threads:
        work = partial(take_part, config)
        done = [*threads.map(partial(run_job, work), [JobEnvironment()] * 3)]
    states = [trial.state for trial in study.get_trials()]
    assert states.count(TrialState.COMPLETE) == 60
    assert set(states) <= {TrialState.COMPLETE, TrialState.WAITING, TrialState.FAIL}
    assert sum(done) == 58
    assert min(done) > 5


@pytest.mark.slow
def test_two_workers_share_one_study_and_one_is_killed(tmp_path: Path) -> None:
    cwd = tmp_path / "shared"
    first, second = (start_search(*SMALL, "n_trials=8", cwd=cwd) for _ in range(2))
    wait_for(lambda: len([*cwd.glob("runs/search/*/trials/*/checkpoints/last.ckpt")]) > 2, first)
    first.kill()
    done = [[int(number) for number in DONE.findall(finish(p))] for p in (first, second)]
    assert second.returncode == 0
    folder = cwd / "runs/search/lr_augment"
    rows = table(folder)
    assert [row["state"] for row in rows] == ["complete"] * 8
    assert sorted(done[0] + done[1]) == sorted(int(row["trial"]) for row in rows)
    assert all(done)
    # The trial that was running was resumed, under its number.
    logs = [log.read_text() for log in folder.glob("trials/*/output.log")]
    assert [log.count("epoch 1/5") for log in logs] == [1] * 8


@pytest.mark.slow
def test_two_machines_share_one_postgresql_study_and_one_dies(
    tmp_path: Path, database: str
) -> None:
    options = (*SMALL, "n_trials=6", f"storage={database}")
    first, second = (start_search(*options, cwd=tmp_path / name) for name in ("first", "second"))
    running = tmp_path / "first/runs/search/lr_augment/trials"
    wait_for(lambda: list(running.glob("*/checkpoints/last.ckpt")), first)
    first.kill()
    finish(first)
    output = finish(second)
    assert second.returncode == 0, output
    assert "secret" not in output
    rows = table(tmp_path / "second/runs/search/lr_augment")
    assert [row["state"] for row in rows] == ["complete"] * 6
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"secret@" in path.read_bytes()]


@pytest.mark.slow
def test_what_goes_wrong_fails_the_trial_and_not_the_search(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "conf" / "search").mkdir(parents=True)
    params = {"+callbacks.crash.how": "choice(raise,kill,no_number,no)"}
    OmegaConf.save({"params": params}, tmp_path / "conf" / "search" / "crashes.yaml")
    output = run_search(
        *("--config-dir", str(tmp_path / "conf"), "search=crashes", "n_trials=12", *SMALL),
        "+callbacks.crash._target_=mine.Crash",
        cwd=tmp_path / "here",
        PYTHONPATH=str(tmp_path),
    )
    rows = table(tmp_path / "here/runs/search/crashes")
    assert len(rows) == 12
    endings: dict[str, set[tuple[str, str]]] = {}
    for row in rows:
        how, reason = row["+callbacks.crash.how"], row["reason"].partition(":")[0]
        endings.setdefault(how, set()).add((row["state"], reason))
    died = "Its process was ended by SIGKILL, as the system does when memory runs out."
    assert endings == {
        "raise": {("failed", "a fault of mine")},
        "kill": {("failed", died)},
        "no_number": {("failed", "The loss became NaN or infinite")},
        "no": {("complete", "")},
    }
    assert output.count("failed: a fault of mine") == sum(
        row["+callbacks.crash.how"] == "raise" for row in rows
    )
    # The same once more is not trained once more.
    good = [row for row in rows if row["state"] == "complete"]
    assert {row["same_as"] for row in good[1:]} <= {good[0]["trial"]}
    assert not any(
        (tmp_path / f"here/runs/search/crashes/trials/{row['trial']}").exists() for row in good[1:]
    )


@pytest.mark.slow
def test_a_trial_without_prospects_is_pruned(tmp_path: Path) -> None:
    (tmp_path / "conf" / "search").mkdir(parents=True)
    params = {"optimizer.lr": "choice(0.1,1e-9)", "seed": "range(3)"}
    OmegaConf.save({"params": params}, tmp_path / "conf" / "search" / "lr.yaml")
    output = run_search(
        *("--config-dir", str(tmp_path / "conf"), "search=lr", "n_trials=8"),
        *(option for option in SMALL if option != "pruner=null"),
        *("optimizer.sgd_lr=1e-9", "pruner.n_startup_trials=2", "pruner.n_warmup_steps=1"),
        cwd=tmp_path / "here",
    )
    rows = table(tmp_path / "here/runs/search/lr")
    pruned = [row for row in rows if row["state"] == "pruned"]
    assert pruned, output
    for row in pruned:
        metrics = tmp_path / "here/runs/search/lr/trials" / row["trial"] / "metrics.json"
        assert json.loads(metrics.read_text())["stopped_by"] == "pruned"
        assert 2 <= float(row["epochs"]) < 5


# Mistakes.

HERE = ["logger=csv", "trainer.gpus=0"]  # of TINY, what is of the machine


def composed(tmp_path: Path, *overrides: str) -> DictConfig:
    typed = prepare_arguments([*TINY, *overrides])
    return compose(typed, tmp_path / "search", "search")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["n_trials=0"], r"n_trials=0 is invalid: it must be at least 1"),
        (["n_trials=many"], r"n_trials=many should be a valid integer"),
        (["grace_period=10"], r"it must be longer than heartbeat_interval=10"),
        (["search.params=null"], r"search=lr_augment has no params"),
        (["search.params.augment=5"], r"augment: 5 cannot be searched: it has one value"),
        (["optimizer.lr=0.1"], r"optimizer\.lr is searched by search=lr_augment"),
        (["data.val_size=0"], r"data\.val_size=0 leaves no images to judge a trial by"),
        (["label_smoothing=0.3", "augment=none"], r"augment, label_smoothing is searched"),
        (["trainer.max_epochs=0"], r"trainer\.max_epochs=0 is not a count from 1"),
        (["+sampler.nonsense=1"], r"sampler\.nonsense: .* has no such argument"),
        (["sampler=null"], r"sampler has no _target_"),
        (["trainer=ddp_sim"], r"A trial of a search trains on one device"),
        (["trainer.gpus=2"], r"A trial of a search trains on one device"),
        (["sampler._target_=optuna.samplers.No"], r"has no attribute 'No'"),
        (["sampler._target_=optuna.samplers.RandomSampler"], r"sampler\.multivariate: .* no such"),
        (
            ["sampler._target_=optuna.samplers.BruteForceSampler", "~sampler.multivariate"],
            r"A grid is a sweep's: train -m",
        ),
        (["pruner.n_startup_trials=-1"], r"pruner: "),
        (["storage=nonsense://x"], r"storage=nonsense://x: "),
        (["storage=postgresql://a:b@127.0.0.1:1/x"], r"a:\*\*\*@127\.0\.0\.1:1/x: .*refused"),
        (["storage=file/below/study.db"], r"storage=file/below/study\.db: "),
    ],
)
def test_a_mistake_is_named_before_the_first_trial(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        search(composed(tmp_path, *overrides))
    assert not (tmp_path / "search" / "trials").exists()


def test_a_study_is_of_one_search(tmp_path: Path) -> None:
    config = composed(tmp_path, "n_trials=1")
    first = open_search(config)
    again = composed(tmp_path, "n_trials=2", "logger.wandb.mode=offline", "logger=default")
    assert open_search(again).study.study_name == first.study.study_name
    with pytest.raises(UserError, match=r"was begun with .*study=NAME begins another"):
        open_search(composed(tmp_path, "trainer.precision=32-true"))
    open_search(composed(tmp_path, "trainer.precision=32-true", "study=another"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data=folder", True),
        ("data.path=x", True),
        ("+data.cache_dir=x", True),
        ("logger.wandb.mode=offline", True),
        ("trainer.gpus=0", True),
        ("data.batch_size=5", False),
        ("trainer.max_epochs=5", False),
    ],
)
def test_what_is_of_the_machine_is_no_part_of_an_experiment(override: str, expected: bool) -> None:
    assert is_of_machine(override) is expected


def test_a_folder_with_another_studys_trials_is_not_gone_on_with(tmp_path: Path) -> None:
    first = open_search(composed(tmp_path))
    worker.trial_config(first, 0, ["optimizer.lr=0.1"])
    last = tmp_path / "search/trials/0/checkpoints/last.ckpt"
    last.parent.mkdir()
    last.touch()
    again = worker.trial_config(first, 0, ["optimizer.lr=0.1"])
    assert (again.resume, again.overrides) == ("search/trials/0/checkpoints/last.ckpt", HERE)
    with pytest.raises(UserError, match=r"trials/0 has a trial of another study"):
        worker.trial_config(first, 0, ["optimizer.lr=0.2"])


def test_a_search_in_which_all_trials_fail_alike_is_stopped(tmp_path: Path) -> None:
    config = composed(tmp_path, "n_trials=9", "budget.max_params=1000")
    with pytest.raises(UserError, match=r"All 3 trials failed for one reason.* 257,856"):
        search(config)
    assert [row["state"] for row in table(tmp_path / "search")] == ["failed"] * 3


def test_an_experiment_that_was_chosen_is_the_base_of_the_best(tmp_path: Path) -> None:
    trial = optuna.trial.create_trial(
        value=0.5, user_attrs={"overrides": ["experiment=sgd", "augment=none", "optimizer.lr=0.2"]}
    )
    file, _ = outcome.write_experiment(tmp_path, "found", ["trainer.max_epochs=3"], trial, 1)
    (tmp_path / "typed").mkdir()
    typed = ["--config-dir", str(tmp_path / "conf"), "experiment=found", "--cfg", "job"]
    ended = run_command("train", *typed)
    assert ended.returncode == 0, ended.stderr
    config = OmegaConf.create(ended.stdout)
    assert isinstance(config, DictConfig)
    expected = compose(
        ["experiment=sgd", "augment=none", "optimizer.lr=0.2", "trainer.max_epochs=3"]
    )
    for key in ("optimizer", "augment", "init", "scheduler", "label_smoothing", "trainer"):
        assert config[key] == expected[key], key
    assert file.name == "found.yaml"


def test_each_trial_has_a_seed_of_its_own() -> None:
    seeds = {worker.seed_of(seed, number) for seed in range(3) for number in range(100)}
    assert len(seeds) == 300
    assert worker.seed_of(0, 0) == worker.seed_of(0, 0)


def test_passwords_are_not_shown(database: str, tmp_path: Path) -> None:
    wrong = database.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(UserError) as error:
        open_search(composed(tmp_path, f"storage={wrong}"))
    assert "secret" in wrong
    assert "secret" not in str(error.value)
    assert "someone:***@127.0.0.2" in str(error.value)
    assert without_password("studies.db") == "studies.db"
