"""Losses that are no numbers."""

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from cifar_lightning.errors import UserError
from cifar_lightning.training.callbacks.grad_norm import GradientNorm


class TerminateOnNaN(pl.Callback):
    """Ends a training whose loss or weights are not finite, before a checkpoint is made of them.

    Args:
        every_n_steps: steps between two looks on a CPU; on a GPU, which waits whenever a value is
            read, it looks only when a checkpoint may follow, as it does on a CPU too.

    Raises:
        ValueError: if `every_n_steps` is below 1.
        UserError: from the training, naming the step, its learning rate and, where `GradientNorm`
            measures it, the norm of its gradients.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, not {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._losses: list[Tensor] = []  # since the last look
        self._rates: list[float] = []
        # Of the gradients, as far as they are measured; the first is of the step before.
        self._norms: list[Tensor | None] = [None]
        self._step = 0  # of the last loss, counted from 1 over the whole training

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate; after the step it is already that of the next."""
        self._rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Note the loss; look from time to time."""
        self._losses.append(outputs["loss"])
        measured = [c for c in trainer.callbacks if isinstance(c, GradientNorm)]  # type: ignore[attr-defined]
        self._norms.append(measured[0].last if measured else None)
        self._step = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        if len(self._losses) >= self.every_n_steps and not self._losses[0].is_cuda:
            self._look(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look before the best checkpoint is saved."""
        if trainer.state.fn == "fit":
            self._look(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look before the last checkpoint is saved."""
        self._look(trainer, pl_module)

    def _look(self, trainer: pl.Trainer, module: pl.LightningModule | None = None) -> None:
        """Look at the noted losses, and at the weights and statistics of a module."""
        losses, self._losses = self._losses, []
        norms, self._norms = self._norms, self._norms[-1:]
        rates, self._rates = self._rates, []
        finite = torch.stack(losses).isfinite() if losses else torch.ones(1, dtype=torch.bool)
        step = math.inf
        if not finite.all():
            step = self._step - len(losses) + 1 + int(finite.int().argmin())
        elif module and not is_finite(module):
            step = self._step  # its loss was a number, what it did to the weights is not
        # All devices stop together, or those that go on would wait for the others for ever.
        found = torch.tensor(float(step), device=trainer.strategy.root_device)
        first = trainer.strategy.reduce(found, reduce_op="min").item()
        if first < math.inf:
            epoch = (int(first) - 1) // int(trainer.num_training_batches) + 1
            place = int(first) - self._step - 1 + len(losses)  # among those of this look
            raise UserError(
                f"The loss is not a finite number any more: step {first:.0f}, in epoch {epoch}"
                f"{_circumstances(place, rates, norms)}. "
                "The training was stopped; the checkpoints are of before that. What helps: a lower "
                "learning rate (optimizer.lr), a longer warm-up (scheduler.warmup), or "
                "trainer.precision=32-true."
            )


def _circumstances(place: int, rates: Sequence[float], norms: Sequence[Tensor | None]) -> str:
    """The learning rate at a step, and the gradient norms there and at the step before.

    Args:
        place: of the step among those looked at, from 0.
        rates: of these steps.
        norms: of the step before them, and of these.
    """
    if not 0 <= place < len(rates):  # its weights were found to be at fault after the last look
        return ""
    facts = [f"learning rate {rates[place]:.3g}"]
    for words, norm in (("gradient norm", norms[place + 1]), ("one step before", norms[place])):
        facts += [] if norm is None else [f"{words} {norm.item():.3g}"]
    return f" ({', '.join(facts)})"


def is_finite(module: pl.LightningModule) -> bool:
    """Whether all weights and statistics of a module are finite numbers."""
    state = [value for value in module.state_dict().values() if value.is_floating_point()]
    return bool(get_total_norm(state).isfinite())
