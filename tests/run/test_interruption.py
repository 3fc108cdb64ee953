"""Interrupted runs: after a resume, they equal a run that was not interrupted."""

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY, Compose, exist
from omegaconf import DictConfig
from programs import (
    finish,
    finish_all,
    free_port,
    only,
    read_json,
    srun,
    start,
    start_two,
    wait_for,
)
from pytorch_lightning.callbacks import BaseFinetuning
from test_train import as_typed

from cifar_lightning.checkpoints.io import read_checkpoint
from cifar_lightning.config.compose import compose
from cifar_lightning.errors import UserError
from cifar_lightning.models import DilatedDW
from cifar_lightning.system import signals
from cifar_lightning.system.jobs import JobDied, run_job
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import train
from cifar_lightning.training.callbacks import Interruption
from cifar_lightning.training.module import Classifier


class Dropping(DilatedDW):
    """The seed network with a layer that draws from PyTorch's own generator."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.layers.insert(3, torch.nn.Dropout(0.2))


class Told(pl.Callback):
    """Sends this process a signal at one moment."""

    def __init__(self, number: signal.Signals, moment: str, epoch: int, batch: int = 0) -> None:
        self.number, self.moment, self.at = number, moment, (epoch, batch)
        self.sent = False

    def _now(self, trainer: pl.Trainer, moment: str, batch: int) -> None:
        if (moment, trainer.current_epoch, batch) == (self.moment, *self.at) and not self.sent:
            self.sent = True
            signals._last = -math.inf  # of another training of this process, a moment ago
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: pl.Trainer, *others: Any) -> None:
        self._now(trainer, "batch", others[-1])

    def on_validation_batch_start(self, trainer: pl.Trainer, *others: Any) -> None:
        self._now(trainer, "validation", trainer.fit_loop.batch_idx)

    def on_save_checkpoint(self, trainer: pl.Trainer, *others: Any) -> None:
        self._now(trainer, "saving", trainer.fit_loop.batch_idx)

    def on_train_epoch_end(self, trainer: pl.Trainer, *others: Any) -> None:
        self._now(trainer, "epoch end", 0)


class Thaw(BaseFinetuning):
    """Trains the first layer and its batch norm only from the second epoch on."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(
            [pl_module.get_submodule(f"network.layers.{n}") for n in (0, 2)], train_bn=False
        )

    def finetune_function(
        self, pl_module: pl.LightningModule, epoch: int, optimizer: torch.optim.Optimizer
    ) -> None:
        if epoch == 1:
            self.make_trainable([pl_module.get_submodule(f"network.layers.{n}") for n in (0, 2)])


class Enough(pl.Callback):
    """Ends the training with its second epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop |= trainer.current_epoch == 1


EARLY = [
    "+callbacks.early._target_=pytorch_lightning.callbacks.EarlyStopping",
    "+callbacks.early.monitor=val/loss",
    "+callbacks.early.patience=1",
    "+callbacks.early.min_delta=100",
]
ENOUGH = [f"+callbacks.enough._target_={__name__}.Enough"]


def run_told(config: DictConfig, told: Told) -> Any:
    """Train until the signal; returns the program's exit code."""
    told.sent = False
    with pytest.raises((KeyboardInterrupt, SystemExit)) as ending:
        train(config, {"told": told})
    return getattr(ending.value, "code", 130)


def assert_the_same_run(one: Path, other: Path, extra: int = 0) -> None:
    """But for extra validations with which the first began."""
    for name in ("best.ckpt", "last.ckpt"):
        a, b = (
            torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (one, other)
        )
        parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")
        for part in (*parts, "fit_scores", "random_state"):
            torch.testing.assert_close(a[part], b[part], rtol=0, atol=0)
        norms, validations = (
            [c["callbacks"].get(part) for c in (a, b)] for part in ("GradientNorm", "TargetReached")
        )
        torch.testing.assert_close(*norms, rtol=0, atol=0)
        # Without the seconds.
        accuracies = [[(v[0], v[2]) for v in state["validations"]] for state in validations]
        assert accuracies[0][extra:] == accuracies[1]
    rows = [
        [{k: v for k, v in row.items() if "throughput" not in k} for row in read_rows(folder)]
        for folder in (one, other)
    ]
    assert rows[0][extra:] == rows[1]


INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL
HALVES = "trainer.val_check_interval=0.5"
REPLAY = ("callbacks=hard_examples", "callbacks.hard_examples.fraction=0.5")
TO_TARGET = [*TINY, "target_accuracy=0.0", "trainer.max_epochs=3", HALVES]
# Signals one after the other, each with the step of the checkpoint that it leaves.
MOMENTS = [(Told(TERM, "batch", 1, 2), 9), (Told(INT, "validation", 2, 2), 15)]
ENDS = [
    (Told(TERM, "epoch end", 0), 7),
    (Told(TERM, "batch", 1, 5), 12),  # the last of an epoch
    (Told(TERM, "epoch end", 2), 18),  # only the test is missing
]
MORE_MOMENTS = [
    (ENDS, []),
    (ENDS, ["trainer.max_steps=1000"]),
    ([(Told(TERM, "batch", 1, 7), 17)], REPLAY),
    (
        [(Told(TERM, "batch", 0, 0), 1), (Told(TERM, "batch", 1, 2), 5)],
        ["optimizer=sgd", "trainer.accumulate_grad_batches=2"],
    ),
    ([(Told(TERM, "batch", 1, 2), 11)], ["data.val_size=0"]),
    ([(Told(TERM, "batch", 1, 3), 10)], [f"model._target_={__name__}.Dropping"]),
    ([(Told(TERM, "batch", 1, 2), 12)], ["experiment=speedrun"]),
    (
        [(Told(TERM, "batch", 1, 1), 4)],
        [
            "+callbacks.more._target_=pytorch_lightning.callbacks.GradientAccumulationScheduler",
            "+callbacks.more.scheduling={0:2}",
        ],
    ),
    ([(Told(TERM, "batch", 1, 2), 9)], ["trainer.precision=64-true"]),
    ([(Told(TERM, "batch", 2, 2), 15)], [f"+callbacks.thaw._target_={__name__}.Thaw"]),
]


@pytest.mark.parametrize(
    ("moments", "overrides"),
    [
        (MOMENTS, [HALVES]),
        *(pytest.param(*m, marks=pytest.mark.slow) for m in MORE_MOMENTS if exist(*m[1])),
    ],
)
def test_a_run_that_was_told_to_stop_goes_on_to_the_bit(
    tiny: Compose, tmp_path: Path, moments: Sequence[tuple[Told, int]], overrides: Sequence[str]
) -> None:
    target = "null" if "data.val_size=0" in overrides else "1.0"  # which it does not reach
    options = [f"target_accuracy={target}", *overrides, "trainer.max_epochs=3"]
    whole = train(tiny(*options))
    (tmp_path / "run").rename(tmp_path / "whole")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    config = tiny(*options)
    for told, step in moments:
        assert run_told(config, told) == {INT: 130, TERM: 143}[told.number]
        assert steps_of(last) == step
        config = as_typed(tiny, [f"resume={last}", *overrides])
    resumed = train(config)
    assert resumed["resumes"] == len(moments)
    measured = ("seconds", "images_per_s", "tflop", "resumes")
    for key, value in whole.items():
        assert any(word in key for word in measured) or resumed[key] == value, key
    assert_the_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_resumed_to_the_bit(
    tiny: Compose, tmp_path: Path
) -> None:
    """By SIGKILL, in processes of their own; at most an epoch is lost each time."""
    options = ["target_accuracy=1.0", HALVES, *REPLAY, "trainer.max_epochs=3"]
    train(tiny(*options))
    (tmp_path / "run").rename(tmp_path / "whole")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    config = tiny(*options)
    for told in (
        Told(KILL, "batch", 0, 3),
        Told(KILL, "validation", 1, 3),
        Told(KILL, "saving", 1, 8),
        Told(KILL, "batch", 2, 7),
    ):
        with pytest.raises(JobDied, match="SIGKILL"):
            run_job(partial(train, config, {"told": told}))
        if told.at[0]:
            assert steps_of(last) == 9 * told.at[0]
            config = as_typed(tiny, [f"resume={last}"])
    train(config)
    assert_the_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.fixture(scope="module")
def at_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reached its target in the middle of its first epoch."""
    folder = tmp_path_factory.mktemp("at_target") / "run"
    metrics = train(compose(TO_TARGET, folder))
    assert (metrics["stopped_by"], metrics["epochs"]) == ("target", 0.5)
    return folder


def test_a_run_that_was_killed_after_its_target_goes_on_with_its_test(
    at_target: Path, tiny: Compose, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(at_target, tmp_path / "run"))
    (run / "metrics.json").unlink()
    last = run / "checkpoints" / "last.ckpt"
    again, whole = train(as_typed(tiny, [f"resume={last}"])), read_json(at_target / "metrics.json")
    assert again | {"images_per_s": None} == whole | {"images_per_s": None, "resumes": 1}
    assert steps_of(last) == 3
    train(as_typed(tiny, [f"resume={last}", "target_accuracy=1.0"]))
    train(tiny(*TO_TARGET, "target_accuracy=1.0", run_dir="whole"))
    assert_the_same_run(run, tmp_path / "whole")


@pytest.mark.parametrize(
    ("stopping", "stopped_by"), [(EARLY, "early_stopping"), (ENOUGH, "callback")]
)
def test_a_run_that_a_callback_has_stopped_goes_on_with_its_test_or_without_the_callback(
    stopping: list[str], stopped_by: str, tiny: Compose, tmp_path: Path
) -> None:
    options = ["target_accuracy=null", "trainer.max_epochs=3"]
    whole = train(tiny(*options, *stopping))
    assert (whole["stopped_by"], whole["epochs"]) == (stopped_by, 2)
    (tmp_path / "run").rename(tmp_path / "whole")
    assert run_told(tiny(*options, *stopping), Told(TERM, "epoch end", 1)) == 143
    resume = f"resume={tmp_path}/run/checkpoints/last.ckpt"
    own = stopping if stopping is ENOUGH else []  # is called only if it is typed again
    again = train(as_typed(tiny, [resume, *own]))
    assert (again["stopped_by"], again["epochs"]) == (stopped_by, 2)
    assert_the_same_run(tmp_path / "run", tmp_path / "whole")
    # Another target changes nothing of it.
    again = train(as_typed(tiny, [resume, *own, "target_accuracy=1.0"]))
    assert (again["stopped_by"], again["epochs"]) == (stopped_by, 2)
    name = stopping[0].partition("._target_")[0].lstrip("+")
    longer = [f"++{name}.patience=3"] if stopping is EARLY else [f"++{name}=null"]
    # Killed before the end of its first epoch it goes on once more, without being asked again.
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    assert run_told(as_typed(tiny, [resume, *longer]), Told(TERM, "batch", 2, 3)) == 143
    last.write_bytes(before)
    assert train(as_typed(tiny, [resume]))["epochs"] == 3


def with_best(checkpoints: Path, accuracy: float) -> list[str]:
    """Have the last checkpoint say that the best one had this accuracy; returns how to resume."""
    last = checkpoints / "last.ckpt"
    content = torch.load(last, weights_only=True)
    (best,) = (s for s in content["callbacks"].values() if s.get("monitor") == "val/acc")
    best["best_model_score"] = torch.tensor(accuracy)
    best["best_k_models"] = dict.fromkeys(best["best_k_models"], best["best_model_score"])
    torch.save(content, last)
    content = torch.load(checkpoints / "best.ckpt", weights_only=True)
    content["validation"] |= {"val/acc": accuracy, "val/loss": 1 - accuracy}
    torch.save(content, checkpoints / "best.ckpt")
    return [f"resume={last}", "trainer.max_epochs=2"]


def test_a_best_checkpoint_of_what_is_yet_to_come_is_not_taken_for_the_best(
    tiny: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of the epoch in which a run was killed, on a GPU whose second try has other bits."""
    checkpoints = tmp_path / "run" / "checkpoints"
    validate = Classifier.on_validation_epoch_end

    def half_right(classifier: Classifier) -> None:
        labels = torch.arange(10)
        classifier.val_scores.accuracy.reset()
        classifier.val_scores.accuracy.update(torch.eye(10), torch.where(labels < 5, labels, 0))
        validate(classifier)

    # One accuracy in all epochs: the best epoch is still the best checkpoint's.
    monkeypatch.setattr(Classifier, "on_validation_epoch_end", half_right)
    train(tiny("target_accuracy=null"))
    typed = with_best(checkpoints, 0.9)  # which nothing after it will reach
    later = torch.load(checkpoints / "best.ckpt", weights_only=True) | {"global_step": 9}
    torch.save(later, checkpoints / "best.ckpt")
    resumed = train(as_typed(tiny, typed))
    assert read_checkpoint(checkpoints / "best.ckpt").global_step == 12
    assert (resumed["best_epoch"], resumed["val/acc"]) == (2, 0.5)


@pytest.mark.parametrize(
    "changed",
    [
        ("+callbacks.best.every_n_epochs=2",),
        ("trainer.limit_val_batches=0",),
        ("callbacks.best.monitor=val/loss", "callbacks.best.mode=min"),
    ],
)
def test_a_resume_with_other_options_keeps_the_best_checkpoint(
    changed: Sequence[str],
    trained_run: Path,
    tiny: Compose,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoints = shutil.copytree(trained_run, tmp_path / "run") / "checkpoints"
    typed = with_best(checkpoints, 0.9)
    best = (checkpoints / "best.ckpt").read_bytes()
    metrics = train(as_typed(tiny, [*typed, *changed]))
    assert (metrics["val/acc"], metrics["epochs"], metrics["best_epoch"]) == (0.9, 2, 1)
    assert "so the last checkpoint is tested" not in capsys.readouterr().out
    assert (checkpoints / "best.ckpt").read_bytes() == best


def test_of_equal_checkpoints_a_resume_gives_up_the_one_that_the_whole_run_would(
    tiny: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    validate = Classifier.on_validation_epoch_end

    def half_right(classifier: Classifier) -> None:
        labels = torch.arange(10)
        right = 10 if classifier.current_epoch == 2 else 5
        classifier.val_scores.accuracy.reset()
        classifier.val_scores.accuracy.update(torch.eye(10), torch.where(labels < right, labels, 0))
        validate(classifier)

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", half_right)
    options = ["target_accuracy=null", "+callbacks.best.save_top_k=2"]
    train(tiny(*options, "trainer.max_epochs=3"))
    checkpoints = (tmp_path / "run").rename(tmp_path / "whole") / "checkpoints"
    names = sorted(path.name for path in checkpoints.iterdir())
    train(tiny(*options, "trainer.max_epochs=2"))
    checkpoints = tmp_path / "run" / "checkpoints"
    train(as_typed(tiny, [f"resume={checkpoints}/last.ckpt", "trainer.max_epochs=3"]))
    assert "schedule   learning rate over 18 steps; 12 before the resume" in capsys.readouterr().out
    assert sorted(path.name for path in checkpoints.iterdir()) == names


def test_a_run_that_was_moved_keeps_its_best_checkpoint(
    trained_run: Path, tiny: Compose, tmp_path: Path
) -> None:
    checkpoints = shutil.copytree(trained_run, tmp_path / "moved") / "checkpoints"
    typed = with_best(checkpoints, 0.9)
    best = (checkpoints / "best.ckpt").read_bytes()
    config = tiny(*typed, run_dir="moved")
    config.overrides = typed
    assert train(config)["val/acc"] == 0.9
    assert (checkpoints / "best.ckpt").read_bytes() == best
    assert steps_of(checkpoints / "last.ckpt") == 12
    assert steps_of(trained_run / "checkpoints" / "last.ckpt") == 6


@pytest.mark.slow
def test_two_processes_save_together_and_go_on(tmp_path: Path) -> None:
    """Told one process alone, at a step that is its own."""
    options = [o for o in TINY if "gpus" not in o and "max_epochs" not in o]
    options += ["data.batch_size=24", "trainer=ddp_sim", "target_accuracy=null"]
    two = start_two(*options, "trainer.max_epochs=200")
    wait_for(lambda: list(tmp_path.glob(LAST)), two[0])
    two[1].send_signal(TERM)
    output = "".join(finish_all(two))
    assert two[1].returncode == 143, output
    assert two[0].returncode in (130, 143), output  # which was told by the other one
    assert "Traceback" not in output
    last = only(LAST)
    steps = read_checkpoint(last).global_step
    two = start_two(f"resume={last}", f"trainer.max_epochs={steps // 6 + 2}")
    output = "".join(finish_all(two))
    assert [program.returncode for program in two] == [0, 0], output
    rows = [row for row in read_rows(last.parents[1]) if "lr" in row]
    assert [row["epoch"] for row in rows] == list(range(1, steps // 6 + 3))
    assert read_checkpoint(last).global_step == 6 * (steps // 6 + 2)


@pytest.mark.slow
def test_under_slurm_the_same_command_goes_on_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in srun(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)
    options = [*TINY, "target_accuracy=null", "trainer.max_epochs=2000", "resume=auto"]
    steps = [0]
    for _ in range(3):
        program = start("train", *options)
        wait_for(lambda: any(steps_of(f) > steps[-1] for f in tmp_path.glob(LAST)), program)
        program.send_signal(TERM)
        output = finish(program)
        assert program.returncode == 143, output
        steps.append(steps_of(only(LAST)))
    assert steps == sorted(set(steps))
    rows = [row["step"] for row in read_rows(only(LAST).parents[1])]
    assert rows == [float(step) for step in range(5, steps[-1], 6)]


LAST = "runs/train/*/checkpoints/last.ckpt"


def steps_of(checkpoint: Path) -> int:
    return read_checkpoint(checkpoint).global_step


def test_weights_that_are_no_numbers_do_not_replace_the_last_checkpoint(
    tiny: Compose, tmp_path: Path
) -> None:
    class Ruining(Told):
        def on_train_batch_start(self, trainer: pl.Trainer, *others: Any) -> None:
            if trainer.global_step == 8:
                with torch.no_grad():
                    next(others[0].network.parameters()).fill_(torch.nan)
            super().on_train_batch_start(trainer, *others)

    config = tiny("target_accuracy=null", "trainer.max_epochs=3")
    assert run_told(config, Ruining(TERM, "batch", 1, 3)) == 143
    assert steps_of(tmp_path / "run" / "checkpoints" / "last.ckpt") == 6


def test_told_in_the_validation_that_reaches_the_target_a_run_has_only_its_test_to_do(
    at_target: Path, tiny: Compose, tmp_path: Path
) -> None:
    told = Told(TERM, "validation", 0, 2)
    assert run_told(tiny(*TO_TARGET), told) == 143
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert train(as_typed(tiny, [f"resume={last}"]))["epochs"] == 0.5
    assert_the_same_run(tmp_path / "run", at_target)


@pytest.mark.slow
def test_two_processes_leave_together_when_one_is_told_after_the_last_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    options = [o for o in TINY if "gpus" not in o and "max_epochs" not in o]
    options += ["plots=true", "data.batch_size=24", "trainer=ddp_sim", "target_accuracy=null"]
    program = start(
        "train", *options, "trainer.max_epochs=2", "+callbacks.late._target_=watching.Late"
    )
    output = finish(program)
    assert program.returncode != 0
    assert "Traceback" not in output
    assert steps_of(only(LAST)) == 12
    assert not list(tmp_path.glob("runs/train/*/figures/confusion_matrix.png"))  # of the test


def test_a_finished_run_without_its_best_checkpoint_says_so(
    trained_run: Path, at_target: Path, tiny: Compose, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for folder in (trained_run, at_target):
        shutil.copytree(folder, run)
        (run / "checkpoints" / "best.ckpt").unlink()
        with pytest.raises(UserError, match="There is no best checkpoint to test"):
            train(as_typed(tiny, [f"resume={run}/checkpoints/last.ckpt"]))
        shutil.rmtree(run)


def test_what_ignores_ctrl_c_goes_on_ignoring_it(tiny: Compose) -> None:
    """As what a shell has started by & does."""
    before = signal.signal(INT, signal.SIG_IGN)
    try:
        told = Told(INT, "batch", 0, 2)
        metrics = train(tiny("target_accuracy=null"), {"told": told})
        assert metrics["stopped_by"] == "max_epochs"
        assert told.sent
        assert signal.getsignal(INT) is signal.SIG_IGN
    finally:
        signal.signal(INT, before)


def test_a_second_signal_ends_a_training_at_once_if_it_is_not_the_first_sent_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interruption = Interruption(tmp_path / "last.ckpt")
    monkeypatch.setattr(signals, "_last", -math.inf)
    interruption._on_signal(TERM, None)
    interruption._on_signal(TERM, None)
    monkeypatch.setattr(signals, "SAME", 0.0)
    with pytest.raises(SystemExit) as ended:
        interruption._on_signal(TERM, None)
    assert ended.value.code == 143
    with pytest.raises(KeyboardInterrupt):
        interruption._on_signal(INT, None)


def test_ctrl_c_while_a_command_imports_ends_it_without_a_traceback() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "cifar_lightning.train", "--cfg", "job"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        for line in program.stderr:
            if line.endswith(" hydra.errors\n"):  # within the imports of train.py
                program.send_signal(signal.SIGINT)
                break
        assert "Traceback" not in program.stderr.read()
    # On a busy machine the signal may come after the imports, or after all.
    assert program.returncode in (-signal.SIGINT, 130, 0)
