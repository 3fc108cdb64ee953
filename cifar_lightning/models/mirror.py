"""Mirror symmetry of a convolutional network's weights.

A channel that finds something has a partner that finds its mirror image. Then a mirrored image
gives the mirrored maps with the partners swapped, and the same logits, whatever the weights are:
the network is equivariant under mirroring (Cohen and Welling, "Group Equivariant Convolutional
Networks", 2016), with the layers and the number of parameters that it had.
"""

import torch
from torch import Tensor, nn

from cifar_lightning.errors import UserError

# Relative to a filter's norm: whitened patches are symmetric only as far as the images are.
SAME = 0.2


def mirror_channels(first: nn.Conv2d) -> Tensor:
    """Which of a first convolution's filters is whose mirror image: int64 [filters].

    A filter may be its own. Those that have no mirror image among the others are paired in order.
    """
    filters = first.weight.detach().float().flatten(1)  # [F, D]
    mirrored = first.weight.detach().float().flip(-1).flatten(1)
    norms = filters.norm(dim=1).clamp_min(1e-7)
    # By the larger norm of the two, so that both of a pair find it equally near.
    distances = torch.cdist(mirrored, filters) / torch.maximum(norms, norms[:, None])  # [F, F]
    nearest = distances.argmin(1)
    index = torch.arange(len(nearest), device=nearest.device)
    found = (nearest[nearest] == index) & (distances[index, nearest] < SAME)
    left = index[~found]
    even = len(left) // 2 * 2
    partners: Tensor = nearest.clone()
    partners[left] = left  # an odd one out is its own
    partners[left[:even]] = left[:even].view(-1, 2).flip(1).flatten()
    return partners


def partners_of(count: int, first: Tensor) -> Tensor:
    """Which channel of a map of `count` channels is whose partner: int64 [count].

    Maps with at least as many channels as the first convolution begin with its partners, so that a
    convolution that starts as the identity is symmetric; all other channels pair with a neighbour.

    Args:
        count: of channels.
        first: as `mirror_channels` gives it.
    """
    known = len(first) if count >= len(first) else 0
    index = torch.arange(count, device=first.device)
    others = known + (index[: count - known] ^ 1)
    return torch.cat([first[:known], others.clamp_max(count - 1)])


def mirror_index(network: nn.Module, first: Tensor) -> Tensor:
    """Where the mirror image of each weight is: int64 [W], over all parameters flattened in a row.

    The network may be made of convolutions (dense or depthwise), batch norms, linear layers on
    pooled channels, and anything without parameters that treats all channels alike, and left as
    right: a pool over an odd number of columns drops the last one. Sums of maps are fine,
    concatenations are not. Its first layer takes images, its last gives logits, which
    have no partners.

    Args:
        network: its parameters' order is that of the result.
        first: as `mirror_channels` gives it.

    Raises:
        UserError: if a layer with parameters is none of these.
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
                f"Mirror symmetry knows dense and depthwise convolutions, batch norms and linear "
                f"layers, but not {layer}."
            )
        for parameter in layer.parameters(recurse=False):
            place = torch.arange(parameter.numel(), device=first.device).view(parameter.shape)
            place = place[rows]
            if parameter.ndim > 1:
                place = place[:, columns]
            if parameter.ndim == 4:
                place = place.flip(-1)
            pieces[id(parameter)] = place.flatten()
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

    For gradients that is the mean of the gradients of the images and of the mirrored images, if
    the weights are symmetric.

    Args:
        tensors: of all parameters in order, changed in place.
        index: as `mirror_index` gives it.
    """
    # All in a row: one indexing for all parameters.
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    means = (flat + flat[index]) / 2
    pieces = means.split([tensor.numel() for tensor in tensors])
    views = [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]
    torch._foreach_copy_(tensors, views)


@torch.no_grad()
def symmetrise_statistics(network: nn.Module, first: Tensor) -> None:
    """Give partner channels of each batch norm the mean of their statistics."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            partners = partners_of(layer.num_features, first)
            for values in (layer.running_mean, layer.running_var):
                if values is not None:
                    values.copy_((values + values[partners]) / 2)
