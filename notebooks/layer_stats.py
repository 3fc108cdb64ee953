"""For the notebook on the network: the cost and the receptive field of each layer."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_lightning.tracking.plots.common import PALETTE
from cifar_lightning.tracking.saliency import kind_of


@dataclass(frozen=True)
class LayerFacts:
    """A layer, for one input image of a given size.

    Attributes:
        name: of the module, for `network.get_submodule`.
        kind: such as `conv 3x3 dilation 2`; for other layers, the class.
        output: shape of the output without the batch: (channels, H, W), or (features,).
        parameters: number of parameters.
        multiply_adds: of the forward pass; 0 if it is not a convolution or linear layer.
        field: receptive field of the unit in the middle of the output: its first row in the image,
            and the row after its last. Columns are the same.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    field: tuple[int, int]

    @property
    def sees(self) -> int:
        """Height and width of the receptive field in pixels, cut at the image borders."""
        return self.field[1] - self.field[0]


def layers_of(network: nn.Module, image_size: int = 32) -> list[LayerFacts]:
    """The layers of a network in the order in which they run.

    Receptive fields are measured, so this works for any network: if a row of the image is NaN,
    every unit that depends on it becomes NaN.

    Args:
        network: takes images [N, 3, image_size, image_size]; not changed.
        image_size: in pixels.
    """
    # In float64, because no algorithm of its convolutions mixes neighbours, as Winograd does.
    network = copy.deepcopy(network).eval().double().cpu()
    images = torch.zeros(image_size, 3, image_size, image_size, dtype=torch.float64)
    rows = torch.arange(image_size)
    images[rows, :, rows] = math.nan  # row i of image i
    found: list[LayerFacts] = []

    def look_at(name: str, layer: nn.Module, output: Tensor) -> None:
        middle = output  # becomes [image_size, channels]: the unit in the middle
        for size in output.shape[2:]:
            middle = middle.select(2, size // 2)
        reached = middle.isnan().any(1).nonzero().flatten()
        weight = getattr(layer, "weight", None)
        multiplies = isinstance(layer, nn.Conv2d | nn.Linear)
        found.append(
            LayerFacts(
                name,
                kind_of(layer),
                tuple(output.shape[1:]),
                sum(p.numel() for p in layer.parameters()),
                output[0].numel() * weight[0].numel() if multiplies and weight is not None else 0,
                (int(reached[0]), int(reached[-1]) + 1) if len(reached) else (0, 0),
            )
        )

    for name, layer in network.named_modules():
        if not any(layer.children()) and not isinstance(layer, nn.Sequential):  # an empty one
            layer.register_forward_hook(
                lambda module, _, output, name=name: look_at(name, module, output)
            )
    with torch.no_grad():
        network(images)
    return found


def sensitivity(network: nn.Module, images: Tensor, layer: str) -> Tensor:
    """The effective receptive field: how much each pixel changes the unit in the middle of a layer.

    Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks",
    2016. It is the root mean square of the gradient over images, colours and the layer's channels.
    For each image, the channels are summed with random signs: the mean square of such sums is the
    sum of squares.

    Args:
        network: takes images; its training mode is not changed.
        images: normalised [N, 3, H, W].
        layer: name, as in `LayerFacts`.

    Returns:
        [H, W], scaled to a maximum of 1.
    """
    seen: list[Tensor] = []

    def look_at(module: nn.Module, _: object, maps: Tensor) -> Tensor:
        seen.append(maps)
        return maps.clone()  # the next layer may work in place

    hook = network.get_submodule(layer).register_forward_hook(look_at)
    training = network.training
    network.eval()
    try:
        with torch.enable_grad():
            inputs = images.detach().requires_grad_()
            network(inputs)
    finally:
        hook.remove()
        network.train(training)
    height, width = seen[0].shape[2:]
    middle = seen[0][:, :, height // 2, width // 2]  # [N, channels]
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(2, middle.shape, generator=generator).to(middle) * 2 - 1
    (gradient,) = torch.autograd.grad((signs * middle).sum(), inputs)
    size = gradient.square().mean((0, 1)).sqrt()  # [H, W]
    return size / size.max()


def plot_costs(layers: Sequence[tuple[str, int, int]], title: str) -> Figure:
    """Plot each layer's share of all parameters and multiply-adds, with the first layer on top.

    Args:
        layers: name, parameters and multiply-adds of each layer.
        title: one line.
    """
    names, *numbers = zip(*layers, strict=True)
    figure = Figure(figsize=(8, 1.2 + 0.36 * len(names)), dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    axes = figure.subplots()
    positions = np.arange(len(names))
    for offset, values, colour, label in (
        (-0.2, numbers[0], PALETTE[0], "parameters"),
        (0.2, numbers[1], PALETTE[1], "multiply-adds"),
    ):
        shares = np.array(values) / max(sum(values), 1)
        bars = axes.barh(positions + offset, shares, color=colour, height=0.38, label=label)
        axes.bar_label(bars, [f"{share:.1%}" for share in shares], padding=3, fontsize=7)
    axes.set_yticks(positions, names)
    axes.invert_yaxis()
    axes.set_xlabel("share of the whole network")
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.margins(x=0.1)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure


def plot_fields(
    rows: Sequence[tuple[str, Sequence[tuple[NDArray[np.float32], tuple[int, int]]]]],
    columns: Sequence[str],
    title: str,
) -> Figure:
    """Plot effective receptive fields, with the receptive field as a frame.

    Args:
        rows: for each row, its name, and for each column a map [H, W] from 0 to 1 and the `field`
            of `LayerFacts`.
        columns: names.
        title: one line.
    """
    size = (1.3 + 1.9 * len(columns), 0.7 + 1.9 * len(rows))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (name, maps) in zip(grid, rows, strict=True):
        line[0].set_ylabel(name, fontsize=9)
        for axes, (values, (first, after)) in zip(line, maps, strict=True):
            axes.imshow(values, cmap="inferno", vmin=0, vmax=1)
            corner, side = (first - 0.5, first - 0.5), after - first
            axes.add_patch(
                Rectangle(corner, side, side, fill=False, edgecolor=PALETTE[5], clip_on=False)
            )
            axes.set(xticks=[], yticks=[])
    for axes, heading in zip(grid[0], columns, strict=True):
        axes.set_title(heading, fontsize=9)
    return figure
