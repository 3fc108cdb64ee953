"""Weights that see an image and its mirror image alike."""

from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_lightning.errors import UserError
from cifar_lightning.models.mirror import (
    mirror_channels,
    mirror_index,
    symmetrise,
    symmetrise_statistics,
)


class MirrorSymmetry(pl.Callback):
    """Keeps a network's weights mirror-symmetric: an image and its mirror image get equal logits.

    The weights are made symmetric before the first step, and the gradients at every step. The
    gradient of a symmetric network on mirrored images is the mirrored gradient, so each step learns
    from the images and their mirror images, at the price of the images alone. (Batch norms take
    their statistics from the images alone.)

    See `cifar_lightning.models.mirror` for what is symmetric, and for which networks. Flips as
    augmentation are of no use beside it.

    Raises:
        UserError: before the first step, if the network has layers that it does not know, or is
            not symmetric with symmetric weights.
    """

    def __init__(self) -> None:
        self._partners: Tensor | None = None  # of the first convolution's filters, int64 [F]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find partners and make the weights symmetric; a resume's are both already."""
        network = _network(pl_module)
        resumes = self._partners is not None
        if self._partners is None:
            first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
            if first is None:
                raise UserError("Mirror symmetry needs a network that begins with a convolution.")
            self._partners = mirror_channels(first)
        self._partners = self._partners.to(pl_module.device)
        self._index = mirror_index(network, self._partners)
        if not resumes:
            self._symmetrise_weights(pl_module)
        image_size = trainer.datamodule.image_size  # type: ignore[attr-defined]
        _check(pl_module, image_size)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Make the gradients symmetric."""
        weights = list(_network(pl_module).parameters())
        gradients = [w.grad if w.grad is not None else torch.zeros_like(w) for w in weights]
        symmetrise(gradients, self._index)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the statistics symmetric, which a batch's images are not."""
        if trainer.state.fn == "fit":
            self._symmetrise_state(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the statistics symmetric before a checkpoint is made of them."""
        self._symmetrise_state(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the network: another training begins anew."""
        self._partners = None

    def _symmetrise_weights(self, pl_module: pl.LightningModule) -> None:
        symmetrise([weight.data for weight in _network(pl_module).parameters()], self._index)

    def _symmetrise_state(self, pl_module: pl.LightningModule) -> None:
        assert self._partners is not None
        self._symmetrise_weights(pl_module)  # from which rounding leads away
        symmetrise_statistics(_network(pl_module), self._partners)

    def state_dict(self) -> dict[str, Any]:
        """The partners, for a resume."""
        return {"partners": None if self._partners is None else self._partners.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the partners of an earlier run."""
        self._partners = state_dict["partners"]


@torch.no_grad()
def _check(pl_module: pl.LightningModule, image_size: int) -> None:
    """Refuse a network that tells images from their mirror images though its weights do not."""
    shape = (8, 3, image_size, image_size)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8).to(pl_module.device)
    pl_module.eval()
    logits, mirrored = pl_module(images), pl_module(images.flip(-1))
    pl_module.train()
    if (logits - mirrored).abs().max() > 0.1 * logits.std():
        raise UserError(
            "The network is not mirror-symmetric, even with symmetric weights: a pool over an odd "
            "number of columns, or a linear layer on maps, sees left and right differently. Take "
            "callbacks=default."
        )


def _network(pl_module: pl.LightningModule) -> nn.Module:
    return cast(nn.Module, pl_module.network)
