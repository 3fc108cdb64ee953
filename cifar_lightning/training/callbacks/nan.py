"""Stops training when the loss or the weights become NaN or infinite."""

import math
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from cifar_lightning.errors import UserError


class TerminateOnNaN(pl.Callback):
    """Stops training when loss or weights are not finite, before a checkpoint is saved.

    Args:
        every_n_steps: steps between two checks on a CPU. A GPU would have to wait for each check,
            so it is checked only before a checkpoint may be saved.

    Raises:
        ValueError: if `every_n_steps` is below 1.
        UserError: during training, with the step, its learning rate and, if a callback has the
            attribute `gradient_norm`, its gradient norm.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, not {every_n_steps}")
        self.every_n_steps = every_n_steps
        self._losses: list[Tensor] = []  # since the last check
        self._rates: list[float] = []
        # Gradient norms, if a callback measures them; the first is of the step before the losses.
        self._norms: list[Tensor | None] = [None]
        self._step = 0  # of the last loss, counted from 1 over the whole training

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Store the learning rate; after the step it would be that of the next one."""
        self._rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Store the loss; check every `every_n_steps` steps."""
        # Without a loss, as a module that optimizes manually may return, only weights are checked.
        self._losses.append(outputs.get("loss", torch.zeros((), device=pl_module.device)))
        norms = (getattr(c, "gradient_norm", None) for c in trainer.callbacks)  # type: ignore[attr-defined]
        self._norms.append(next((norm for norm in norms if norm is not None), None))
        self._step = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx + 1
        if len(self._losses) >= self.every_n_steps and not self._losses[0].is_cuda:
            self._check(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check before the best checkpoint is saved."""
        if trainer.state.fn == "fit":
            self._check(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check before the last checkpoint is saved."""
        self._check(trainer, pl_module)

    def _check(self, trainer: pl.Trainer, module: pl.LightningModule | None = None) -> None:
        """Check the stored losses and, if a module is given, its weights and statistics."""
        losses, self._losses = self._losses, []
        norms, self._norms = self._norms, self._norms[-1:]
        rates, self._rates = self._rates, []
        finite = torch.stack(losses).isfinite() if losses else torch.ones(1, dtype=torch.bool)
        step = math.inf
        if not finite.all():
            step = self._step - len(losses) + 1 + int(finite.int().argmin())
        elif module and not is_finite(module):
            step = self._step  # the step's loss is finite, but the weights after it are not
        # All devices stop together: one that continued would wait for the others for ever.
        found = torch.tensor(float(step), device=trainer.strategy.root_device)
        first = trainer.strategy.reduce(found, reduce_op="min").item()
        if first < math.inf:
            epoch = (int(first) - 1) // int(trainer.num_training_batches) + 1
            position = int(first) - self._step - 1 + len(losses)  # among this check's steps
            raise UserError(
                f"The loss became NaN or infinite: step {first:.0f}, in epoch {epoch}"
                f"{_rate_and_norms(position, rates, norms)}. "
                "Training has stopped; the saved checkpoints are from before that step. Try a "
                "lower learning rate (optimizer.lr), a longer warm-up (scheduler.warmup), or "
                "trainer.precision=32-true."
            )


def _rate_and_norms(position: int, rates: Sequence[float], norms: Sequence[Tensor | None]) -> str:
    """Describe a step's learning rate, its gradient norm, and that of the step before.

    `position` counts the checked steps from 0; `norms` begins with the step before them.
    """
    if not 0 <= position < len(rates):  # found in the weights, with no steps since the last check
        return ""
    facts = [f"learning rate {rates[position]:.3g}"]
    for label, norm in (
        ("gradient norm", norms[position + 1]),
        ("in the step before", norms[position]),
    ):
        facts += [] if norm is None else [f"{label} {norm.item():.3g}"]
    return f" ({', '.join(facts)})"


def is_finite(module: pl.LightningModule) -> bool:
    """Whether all weights and statistics of a module are finite numbers."""
    state = [value for value in module.state_dict().values() if value.is_floating_point()]
    # Not by their norm, which is infinite if the values are large.
    return bool(torch.stack([value.isfinite().all() for value in state]).all())
