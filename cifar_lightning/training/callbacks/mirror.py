"""Mirror symmetry: weights that give an image and its mirror image the same logits.

Each channel has a partner channel whose filter is its mirror image. Then a mirrored image gives
mirrored maps with partners swapped, and the same logits: the network is equivariant under mirroring
(Cohen and Welling, "Group Equivariant Convolutional Networks", 2016), with the same layers and
number of parameters.
"""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cifar_lightning.errors import UserError
from cifar_lightning.training.module import network_of

# Largest distance between a filter's mirror image and its partner, relative to the filter's norm:
# whitening filters are only as symmetric as the images.
PARTNER_DISTANCE = 0.2


class MirrorSymmetry(pl.Callback):
    """Keeps a network's weights mirror-symmetric: an image and its mirror image get equal logits.

    The weights are made symmetric before the first step, and the gradients at every step. The
    gradient of a symmetric network on mirrored images is the mirrored gradient, so each step learns
    from the images and their mirror images, at the cost of the images alone. (Batch norms take
    their statistics from the images alone.)

    `mirror_index` says for which networks it works. Augmentation by flips has no effect with it.

    Raises:
        UserError: before the first step, if the network has unknown layers, or is not symmetric
            with symmetric weights.
    """

    def __init__(self) -> None:
        self._partners: Tensor | None = None  # see `mirror_channels`

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find partners and make the weights symmetric, unless a resume has restored them."""
        network = network_of(pl_module)
        resumed = self._partners is not None
        if self._partners is None:
            first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
            if first is None:
                raise UserError("Mirror symmetry needs a network that begins with a convolution.")
            self._partners = mirror_channels(first)
        self._partners = self._partners.to(pl_module.device)
        self._index = mirror_index(network, self._partners)
        if not resumed:
            self._symmetrise_weights(pl_module)
        image_size = trainer.datamodule.image_size  # type: ignore[attr-defined]
        _check_symmetry(network, image_size)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Make the gradients symmetric."""
        weights = list(network_of(pl_module).parameters())
        gradients = [w.grad if w.grad is not None else torch.zeros_like(w) for w in weights]
        symmetrise(gradients, self._index)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the norms' statistics symmetric, because the batches' are not."""
        if trainer.state.fn == "fit":
            self._symmetrise_state(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the norms' statistics symmetric before a checkpoint is saved."""
        self._symmetrise_state(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the partners: the next training finds its own."""
        self._partners = None

    def _symmetrise_weights(self, pl_module: pl.LightningModule) -> None:
        symmetrise([weight.data for weight in network_of(pl_module).parameters()], self._index)

    def _symmetrise_state(self, pl_module: pl.LightningModule) -> None:
        assert self._partners is not None
        self._symmetrise_weights(pl_module)  # rounding makes them drift
        symmetrise_statistics(network_of(pl_module), self._partners)

    def state_dict(self) -> dict[str, Any]:
        """The partners, for a resume."""
        return {"partners": None if self._partners is None else self._partners.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the partners."""
        self._partners = state_dict["partners"]


@torch.no_grad()
def _check_symmetry(network: nn.Module, image_size: int) -> None:
    """Refuse a network whose logits differ for mirrored images in spite of symmetric weights."""
    shape = (8, 3, image_size, image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    images = images.to(next(network.parameters()))  # dtype and device
    network.eval()
    logits, mirrored = network(images), network(images.flip(-1))
    network.train()
    if (logits - mirrored).abs().max() > 0.1 * logits.std():
        raise UserError(
            "The network is not mirror-symmetric, even with symmetric weights: a pool over an odd "
            "number of columns, or a linear layer on maps, treats left and right differently. Use "
            "callbacks=default."
        )


def mirror_channels(first: nn.Conv2d) -> Tensor:
    """Find each filter's partner: the filter of the first convolution that is its mirror image.

    A filter may be its own partner. Those without a mirror image are paired in order.

    Args:
        first: the convolution, with F filters.

    Returns:
        The position of each filter's partner, int64 [F].
    """
    filters = first.weight.detach().float().flatten(1)  # [F, D]
    mirrored = first.weight.detach().float().flip(-1).flatten(1)
    norms = filters.norm(dim=1).clamp_min(1e-7)
    # Relative to the larger norm of the two, so that the distance is symmetric.
    distances = torch.cdist(mirrored, filters) / torch.maximum(norms, norms[:, None])  # [F, F]
    nearest = distances.argmin(1)
    index = torch.arange(len(nearest), device=nearest.device)
    found = (nearest[nearest] == index) & (distances[index, nearest] < PARTNER_DISTANCE)
    unpaired = index[~found]
    even = len(unpaired) // 2 * 2
    partners: Tensor = nearest.clone()
    partners[unpaired] = unpaired  # if their number is odd, the last is its own
    partners[unpaired[:even]] = unpaired[:even].view(-1, 2).flip(1).flatten()
    return partners


def partners_of(count: int, first: Tensor) -> Tensor:
    """Assign partners to the channels of maps.

    If there are at least as many channels as in the first convolution, the first ones have its
    partners, so that a convolution that starts as the identity is symmetric. All others are paired
    with a neighbour.

    Args:
        count: number of channels.
        first: the first convolution's partners, from `mirror_channels`.

    Returns:
        The position of each channel's partner, int64 [count].
    """
    known = len(first) if count >= len(first) else 0
    index = torch.arange(count, device=first.device)
    others = known + (index[: count - known] ^ 1)
    return torch.cat([first[:known], others.clamp_max(count - 1)])


def mirror_index(network: nn.Module, first: Tensor) -> Tensor:
    """Find the mirror image of each weight of a network.

    The network may have convolutions (dense or depthwise), batch norms, linear layers on pooled
    channels, and layers without parameters that treat all channels alike, and left and right alike.
    (A pool over an odd number of columns does not: it drops the last one.) Maps may be added but
    not concatenated. The first layer takes images, and the last returns logits; the channels of
    images and logits have no partners.

    Args:
        network: with W weights, in the order of its parameters.
        first: the first convolution's partners, from `mirror_channels`.

    Returns:
        The position of each weight's mirror image among all parameters, flattened: int64 [W].

    Raises:
        UserError: if a layer with parameters is of another kind.
    """
    layers = [m for m in network.modules() if next(m.parameters(recurse=False), None) is not None]
    pieces: dict[int, Tensor] = {}
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            rows = columns = partners_of(layer.num_features, first)
        elif isinstance(layer, nn.Linear | nn.Conv2d) and _is_dense_or_depthwise(layer):
            out_channels, in_channels = layer.weight.shape[:2]
            rows = partners_of(out_channels, first)
            columns = partners_of(in_channels, first)
            if layer is layers[0] or in_channels == 1:
                columns = torch.arange(in_channels, device=first.device)
            if layer is layers[-1]:
                rows = torch.arange(out_channels, device=first.device)
        else:
            raise UserError(
                f"Mirror symmetry works with dense and depthwise convolutions, batch norms and "
                f"linear layers, but not with {layer}."
            )
        for parameter in layer.parameters(recurse=False):
            index = torch.arange(parameter.numel(), device=first.device).view(parameter.shape)
            index = index[rows]
            if parameter.ndim > 1:
                index = index[:, columns]
            if parameter.ndim == 4:
                index = index.flip(-1)
            pieces[id(parameter)] = index.flatten()
    offset, result = 0, []
    for parameter in network.parameters():
        result.append(pieces[id(parameter)] + offset)
        offset += parameter.numel()
    return torch.cat(result)


def _is_dense_or_depthwise(layer: nn.Linear | nn.Conv2d) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    return layer.groups == 1 or layer.groups == layer.in_channels == layer.out_channels


@torch.no_grad()
def symmetrise(tensors: list[Tensor], index: Tensor) -> None:
    """Replace each weight, or gradient, by the mean of itself and its mirror image.

    If the weights are symmetric, the result for gradients is the mean of the gradients on the
    images and on the mirrored images.

    Args:
        tensors: of all parameters in order, changed in place.
        index: from `mirror_index`.
    """
    # Concatenated, so that one indexing serves all parameters.
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    means = (flat + flat[index]) / 2
    pieces = means.split([tensor.numel() for tensor in tensors])
    views = [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]
    torch._foreach_copy_(tensors, views)


@torch.no_grad()
def symmetrise_statistics(network: nn.Module, first: Tensor) -> None:
    """Replace the statistics of each batch norm's partner channels by their mean.

    Args:
        network: changed in place.
        first: the first convolution's partners, from `mirror_channels`.
    """
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            partners = partners_of(layer.num_features, first)
            for values in (layer.running_mean, layer.running_var):
                if values is not None:
                    values.copy_((values + values[partners]) / 2)
