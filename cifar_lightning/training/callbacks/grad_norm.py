"""Logs the norm of the gradients."""

from typing import Any

import pytorch_lightning as pl
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


class GradientNorm(pl.Callback):
    """Logs `train/grad_norm`: the L2 norm of all gradients together.

    It is logged at each validation, or at the end of each epoch if there is none, as the mean over
    the steps since it was last logged. It is measured before clipping, on gradients that are
    unscaled, accumulated and reduced over all devices. Steps whose gradients are not finite, which
    16-bit training skips, do not count.

    Attributes:
        gradient_norm: of the last step, on the device; None before it.
    """

    RUNS_LAST = True  # other callbacks may change the gradients

    def __init__(self) -> None:
        # Tensors on the device, because reading their values would make a GPU wait.
        self._sum: Tensor | float = 0.0
        self._steps: Tensor | int = 0
        self.gradient_norm: Tensor | None = None

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the norm of this step."""
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.gradient_norm = norm = get_total_norm(gradients).detach()
        finite = norm.isfinite()
        self._sum = self._sum + norm.where(finite, norm.new_zeros(()))
        self._steps = self._steps + finite.int()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log with the validation's metrics."""
        if trainer.state.fn == "fit":
            self._log(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log if there is no validation."""
        if not trainer.enable_validation:
            self._log(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The sum so far, for a resume within an epoch."""
        return {"sum": self._sum, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the sum."""
        self._sum, self._steps = state_dict["sum"], state_dict["steps"]
        float(self._sum), float(self._steps)  # a damaged value is refused here

    def _log(self, pl_module: pl.LightningModule) -> None:
        if isinstance(self._steps, Tensor):
            pl_module.log("train/grad_norm", self._sum / self._steps)
        self._sum, self._steps = 0.0, 0
