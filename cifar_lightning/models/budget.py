"""Counts a network's parameters, multiply-adds and convolutions, and checks them against limits."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cifar_lightning.errors import UserError
from cifar_lightning.system.counted import counted


@dataclass(frozen=True)
class NetworkCounts:
    """The size of a network.

    Attributes:
        parameters: number of parameters, frozen ones included.
        dilated: number of convolutions with a dilation above 1.
        separable: number of depthwise separable convolutions, each a depthwise convolution followed
            by a 1x1 convolution over all its channels.
        multiply_adds: of the forward pass on one image.
    """

    parameters: int
    dilated: int
    separable: int
    multiply_adds: int


def count_network(network: nn.Module, image_size: int = 32) -> NetworkCounts:
    """Count a network's parameters, convolutions by kind, and multiply-adds.

    Args:
        network: takes images [N, 3, image_size, image_size]; returned to its training or eval mode.
        image_size: height and width of the images in pixels.

    Raises:
        UserError: if the network has no parameters.
    """
    if next(network.parameters(), None) is None:
        raise UserError("model: the network has no parameters, so there is nothing to train.")
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    separable = sum(
        first.groups == first.in_channels > 1  # depthwise
        and second.kernel_size == (1, 1)
        and second.groups == 1
        and second.in_channels == first.out_channels
        for first, second in pairwise(convolutions)
    )
    return NetworkCounts(
        parameters=sum(p.numel() for p in network.parameters()),
        dilated=sum(max(c.dilation) > 1 for c in convolutions),
        separable=separable,
        multiply_adds=_multiply_adds(network, image_size),
    )


def train_tflop(network: nn.Module, images_by_size: Mapping[int, int]) -> float:
    """Compute of a training in TFLOP: 6 FLOP per multiply-add, forward and backward together.

    Args:
        network: takes images [N, 3, H, W] of these sizes.
        images_by_size: number of images trained on, by their height and width in pixels.
    """
    flop = sum(6 * _multiply_adds(network, size) * n for size, n in images_by_size.items())
    return flop / 1e12


def _multiply_adds(network: nn.Module, image_size: int) -> int:
    parameter = next(network.parameters())
    image = torch.zeros(
        1, 3, image_size, image_size, dtype=parameter.dtype, device=parameter.device
    )
    training, fused = network.training, torch.backends.mha.get_fastpath_enabled()
    network.eval()  # so that batch norms keep their statistics
    torch.backends.mha.set_fastpath_enabled(False)  # in which the counter does not see attention
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network.forward(image)  # network(image) might be compiled, and again for this image
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    network.train(training)
    return int(counter.get_total_flops()) // 2


def check_budget(
    counts: NetworkCounts,
    max_params: float | None = 1_000_000,  # 1e6 is a float
    min_dilated: int | None = 1,
    min_separable: int | None = 1,
) -> None:
    """Check a network's counts against the budget; None or 0 lifts a limit.

    Args:
        counts: from `count_network`.
        max_params: largest number of parameters.
        min_dilated: smallest number of dilated convolutions.
        min_separable: smallest number of depthwise separable convolutions.

    Raises:
        UserError: names every limit that the network breaks, and by how much.
    """
    broken, keys = [], []
    if max_params and counts.parameters > max_params:
        over = counts.parameters - max_params
        broken.append(
            f"{counts.parameters:,} parameters, {over:,.0f} more than "
            f"budget.max_params={max_params:,.0f}"
        )
        keys.append("max_params")
    for found, least, key, what in (
        (counts.dilated, min_dilated, "min_dilated", "dilated convolution"),
        (counts.separable, min_separable, "min_separable", "depthwise separable convolution"),
    ):
        if least and found < least:
            broken.append(
                f"{counted(found, what)}, {least - found} fewer than budget.{key}={least}"
            )
            keys.append(key)
    if broken:
        raise UserError(
            "The network breaks the budget: it has "
            + "; ".join(broken)
            + ". Change the network, or lift the limit: "
            + " ".join(f"budget.{key}=null" for key in keys)
        )
