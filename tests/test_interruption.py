"""Runs that are told to stop: what goes on later is the run that was not interrupted."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from test_train import as_typed

from cifar_lightning.checkpoint import read_checkpoint
from cifar_lightning.models import DilatedDW
from cifar_lightning.runs import read_rows
from cifar_lightning.train import train

Compose = Callable[..., DictConfig]


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
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer: pl.Trainer, *others: Any) -> None:
        self._now(trainer, "batch", others[-1])

    def on_validation_batch_start(self, trainer: pl.Trainer, *others: Any) -> None:
        self._now(trainer, "validation", trainer.fit_loop.batch_idx)

    def on_train_epoch_end(self, trainer: pl.Trainer, *others: Any) -> None:
        self._now(trainer, "epoch end", 0)


def run_told(config: DictConfig, told: Told, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Train until the signal; returns the program's exit code."""
    from cifar_lightning import run

    build = run.build_callbacks
    with monkeypatch.context() as patch:
        patch.setattr(run, "build_callbacks", lambda *args: build(*args) | {"told": told})
        with pytest.raises((KeyboardInterrupt, SystemExit)) as ending:
            train(config)
    return getattr(ending.value, "code", 130)


def state(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(folder / "checkpoints" / name, weights_only=True)
    return content


def same(one: Any, other: Any) -> bool:
    """To the bit, at any depth."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_the_same_run(one: Path, other: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        a, b = state(one, name), state(other, name)
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
            assert same(a[part], b[part]), (name, part)
        assert same(a["fit_scores"], b["fit_scores"])
        assert same(a["random_state"], b["random_state"])
    rows = [
        [{k: v for k, v in row.items() if "throughput" not in k} for row in read_rows(folder)]
        for folder in (one, other)
    ]
    assert rows[0] == rows[1]


INT, TERM = signal.SIGINT, signal.SIGTERM
HALVES = "trainer.val_check_interval=0.5"


@pytest.mark.parametrize(
    ("told", "step", "overrides"),
    [
        (Told(TERM, "batch", 1, 2), 9, []),
        (Told(INT, "batch", 1, 2), 9, []),
        (Told(TERM, "batch", 0, 0), 1, ["optimizer=sgd"]),
        (Told(TERM, "batch", 1, 5), 12, []),  # the last of an epoch
        (Told(TERM, "validation", 1, 5), 12, []),
        (Told(INT, "validation", 1, 2), 9, [HALVES]),
        (Told(TERM, "batch", 1, 2), 9, [HALVES]),  # after which a validation is due
        (Told(TERM, "batch", 1, 3), 10, [HALVES]),
        (Told(TERM, "epoch end", 0), 7, []),
        (Told(TERM, "epoch end", 2), 18, []),  # only the test is missing
        (Told(TERM, "batch", 1, 7), 17, ["callbacks=revisit", "callbacks.revisit.fraction=0.5"]),
        (Told(TERM, "batch", 1, 1), 11, ["callbacks=revisit", "callbacks.revisit.fraction=0.5"]),
        (Told(TERM, "batch", 1, 2), 5, ["+trainer.accumulate_grad_batches=2"]),
        (Told(TERM, "batch", 1, 2), 11, ["data.val_size=0"]),
        (Told(TERM, "batch", 1, 2), 9, [f"model._target_={__name__}.Dropping"]),
        (Told(TERM, "batch", 1, 2), 12, ["experiment=speedrun"]),
    ],
    ids=lambda value: getattr(value, "moment", None),
)
def test_a_run_that_was_told_to_stop_goes_on_to_the_bit(
    tiny: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    told: Told,
    step: int,
    overrides: list[str],
) -> None:
    overrides = ["target_accuracy=null", *overrides, "trainer.max_epochs=3"]
    whole = train(tiny(*overrides))
    (tmp_path / "run").rename(tmp_path / "whole")
    code = run_told(tiny(*overrides), told, monkeypatch)
    assert code == {INT: 130, TERM: 143}[told.number]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last).global_step == step
    resumed = train(as_typed(tiny, [f"resume={last}", *overrides[1:-1]]))
    measured = ("seconds", "images_per_s", "tflop")
    for key, value in whole.items():
        assert any(word in key for word in measured) or resumed[key] == value, key
    assert_the_same_run(tmp_path / "run", tmp_path / "whole")
