"""Feature maps and activation maps of a network's convolutions."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_lightning.training.module import Classifier


@dataclass(frozen=True)
class Layer:
    """A convolution's output for some images.

    Attributes:
        name: its number among the convolutions, from 1, and its kind.
        maps: [N, channels, H, W].
        spatial: whether its kernel is larger than 1x1.
    """

    name: str
    maps: Tensor
    spatial: bool


def feature_maps(classifier: Classifier, images: Tensor) -> list[Layer]:
    """The feature maps of each convolution, in order of execution, except maps of 1x1 pixel.

    Args:
        classifier: its mode is kept.
        images: uint8 [N, 3, H, W].
    """
    with torch.no_grad():
        _, layers = _run(classifier, images)
    return [replace(layer, maps=layer.maps.float().cpu()) for layer in layers]


def activation_maps(classifier: Classifier, images: Tensor) -> tuple[Tensor, list[Layer]]:
    """LayerCAM: where each layer saw the predicted class.

    Jiang et al., "LayerCAM: Exploring Hierarchical Class Activation Maps for Localization", 2021.
    Each pixel of a map is weighted by its gradient if that is positive, and the maps are summed.
    Unlike CAM and Grad-CAM, this also works for early layers, whose maps are large.

    Args:
        classifier: its mode is kept.
        images: uint8 [N, 3, H, W].

    Returns:
        The predictions int64 [N], and the layers with maps [N, 1, H, W] from 0 to 1, in the size of
        the images.
    """
    with torch.enable_grad():
        logits, layers = _run(classifier, images)
        predictions = logits.argmax(1)  # [N]
        score = logits.gather(1, predictions[:, None]).sum()
        # Layers that the logits do not depend on, such as an auxiliary head, have no gradient.
        layers = [layer for layer in layers if layer.maps.requires_grad]
        gradients = torch.autograd.grad(score, [x.maps for x in layers], allow_unused=True)
    found = []
    for layer, gradient in zip(layers, gradients, strict=True):
        if gradient is None:
            continue
        weighted = gradient.clamp_min(0) * layer.maps.detach()
        summed = weighted.sum(1, keepdim=True).clamp_min(0).float().cpu()  # [N, 1, h, w]
        # Stretched to full size, although maps of unpadded convolutions do not cover the edges.
        large = F.interpolate(summed, images.shape[-2:], mode="bilinear")
        scaled = large / large.amax((2, 3), keepdim=True).clamp_min(1e-12)
        found.append(replace(layer, maps=scaled))
    return predictions.cpu(), found


def _run(classifier: Classifier, images: Tensor) -> tuple[Tensor, list[Layer]]:
    """Logits float32 [N, classes], and the maps of the convolutions, with their gradient graph."""
    layers: list[Layer] = []

    def watch(number: int, convolution: nn.Conv2d, maps: Tensor) -> Tensor:
        if maps.shape[2:] != (1, 1):
            spatial = convolution.kernel_size != (1, 1)
            layers.append(Layer(f"{number} {kind_of(convolution)}", maps, spatial))
        # The network gets a copy, because the next layer may work in place.
        return maps.clone()

    convolutions = [m for m in classifier.network.modules() if isinstance(m, nn.Conv2d)]
    hooks = [
        convolution.register_forward_hook(
            lambda module, _, maps, number=number: watch(number, module, maps)
        )
        for number, convolution in enumerate(convolutions, 1)
    ]
    training = classifier.training
    classifier.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            inputs = classifier.normalise(images.to(classifier.device))
            # Otherwise the maps of a frozen first layer would have no gradients.
            inputs.requires_grad_(torch.is_grad_enabled())
            logits = classifier.network(inputs).float()
    finally:
        classifier.train(training)
        for hook in hooks:
            hook.remove()
    return logits, layers


def kind_of(layer: nn.Module) -> str:
    """The kind of a layer; for a convolution with kernel size and dilation, such as `conv 3x3`."""
    if not isinstance(layer, nn.Conv2d):
        return type(layer).__name__
    height, width = layer.kernel_size
    if (height, width) == (1, 1):
        return "pointwise 1x1"
    depthwise = layer.groups == layer.in_channels > 1
    kind = f"{'depthwise' if depthwise else 'conv'} {height}x{width}"
    dilation = max(layer.dilation)
    return f"{kind} dilation {dilation}" if dilation > 1 else kind
