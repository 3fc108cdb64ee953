import re
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import Compose
from fake_gpu import copies_of_an_epoch
from test_callbacks import Diverging
from torch import Tensor

from cifar_lightning.errors import UserError
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import train
from cifar_lightning.training.callbacks.grad_norm import GradientNorm


class Halving(pl.Callback):
    """Changes the gradients, as some methods do, and notes the norms of what is left."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, 0.5)
        self.norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())


@pytest.mark.parametrize("val_size", [50, 0])
def test_the_gradient_norm_is_the_mean_of_what_the_optimizer_saw(
    tiny: Compose, tmp_path: Path, val_size: int
) -> None:
    config = tiny("target_accuracy=null", "trainer.max_epochs=2", f"data.val_size={val_size}")
    halving = Halving()
    train(config, {"halving": halving})  # listed behind the norm
    steps = len(halving.norms) // 2
    means = [mean(halving.norms[:steps]), mean(halving.norms[steps:])]
    rows = read_rows(tmp_path / "run")
    found = [row["train/grad_norm"] for row in rows if "train/grad_norm" in row]
    assert found == pytest.approx(means, rel=1e-4)


def test_a_step_that_is_skipped_has_no_gradient_norm() -> None:
    callback = GradientNorm()
    logged: dict[str, Tensor] = {}
    module = torch.nn.Linear(1, 2, bias=False)
    module.log = logged.__setitem__  # type: ignore[assignment]
    for gradient in ([3.0, 4.0], [float("inf"), 0.0], [6.0, 8.0]):
        module.weight.grad = torch.tensor(gradient)[:, None]
        callback.on_before_optimizer_step(None, module, None)  # type: ignore[arg-type]
    fitting = SimpleNamespace(state=SimpleNamespace(fn="fit"))
    callback.on_validation_epoch_end(fitting, module)  # type: ignore[arg-type]
    assert logged["train/grad_norm"] == 7.5


DIVERGING = "module._target_=test_callbacks.Diverging"
LR, NORM = r"(?P<lr>\S+)", r"(?P<norm>\S+)"


@pytest.mark.parametrize("every", [1, 50])
def test_the_learning_rate_and_the_gradient_norms_of_a_step_without_a_number_are_named(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    monkeypatch.setattr(Diverging, "bad_step", 4)
    norms: list[float] = []
    rates: list[float] = []

    def note(callback: GradientNorm, trainer: pl.Trainer, *others: Any) -> None:
        measure(callback, trainer, *others)
        assert callback.gradient_norm is not None
        norms.append(callback.gradient_norm.item())
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    measure = GradientNorm.on_before_optimizer_step
    monkeypatch.setattr(GradientNorm, "on_before_optimizer_step", note)
    said = (
        rf"step 4, in epoch 1 \(learning rate {LR}, gradient norm nan, in the step before {NORM}\)"
    )
    with pytest.raises(UserError, match=said) as error:
        train(tiny(DIVERGING, f"callbacks.nan.every_n_steps={every}"))
    found = re.search(said, str(error.value))
    assert found is not None
    assert found["lr"] == f"{rates[3]:.3g}" != f"{rates[2]:.3g}"
    assert found["norm"] == f"{norms[2]:.3g}" != f"{norms[1]:.3g}"


def test_without_the_norm_the_learning_rate_alone_is_named(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Diverging, "bad_step", 1)
    with pytest.raises(UserError, match=r"step 1, in epoch 1 \(learning rate \S+\)\."):
        train(tiny(DIVERGING, "callbacks.nan.every_n_steps=1", "callbacks.gradient_norm=null"))


def test_a_gpu_waits_for_no_gradient_norm() -> None:
    assert copies_of_an_epoch(GradientNorm()) == ([], 4)
