"""What each layer of a network costs, and how much of an image it sees."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerFacts:
    """A layer as one image of a given size goes through it.

    Attributes:
        name: of the module, as `network.get_submodule` takes it.
        kind: what it is, such as `conv 3x3 dilation 2`; of other layers the class.
        output: shape of what comes out, without the batch: (channels, H, W), or (features,).
        parameters: of its own.
        multiply_adds: of the forward pass; 0 for what is no convolution or linear layer.
        field: first row of the image that can change the unit in the middle of its maps, and the
            row after the last; columns likewise.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    field: tuple[int, int]

    @property
    def sees(self) -> int:
        """Height and width of its receptive field in pixels, within the image."""
        return self.field[1] - self.field[0]


def layers_of(network: nn.Module, image_size: int = 32) -> list[LayerFacts]:
    """The layers of a network in the order in which they run.

    Receptive fields are measured, whatever the network: a row of the image becomes NaN, which all
    sums, products and maxima pass on, and so does every unit that depends on it.

    Args:
        network: takes images [N, 3, image_size, image_size]; left as it is.
        image_size: in pixels.
    """
    # In float64, in which no convolution uses an algorithm, as Winograd's, that mixes neighbours.
    network = copy.deepcopy(network).eval().double().cpu()
    images = torch.zeros(image_size, 3, image_size, image_size, dtype=torch.float64)
    rows = torch.arange(image_size)
    images[rows, :, rows] = math.nan  # of image i the row i
    found: list[LayerFacts] = []

    def look_at(name: str, layer: nn.Module, output: Tensor) -> None:
        middle = output  # [image_size, channels], of maps their middle
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
    """How much each pixel moves the unit in the middle of a layer's maps: the effective field.

    Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks",
    2016. The root of the mean squared gradient, over images, colours and the layer's channels; of
    these each image has a sum with random signs, whose square is on average the sum of squares.

    Args:
        network: takes images; its training mode is kept.
        images: normalised [N, 3, H, W].
        layer: its name, as in `LayerFacts`.

    Returns:
        [H, W], the largest value 1.
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


def kind_of(layer: nn.Module) -> str:
    """What a layer is: of a convolution how it is connected, its size and its dilation."""
    if not isinstance(layer, nn.Conv2d):
        return type(layer).__name__
    height, width = layer.kernel_size
    if (height, width) == (1, 1):
        return "pointwise 1x1"
    depthwise = layer.groups == layer.in_channels > 1
    kind = f"{'depthwise' if depthwise else 'conv'} {height}x{width}"
    dilation = max(layer.dilation)
    return f"{kind} dilation {dilation}" if dilation > 1 else kind
