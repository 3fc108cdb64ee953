"""Blocks that the networks share, and the normalisation of their inputs."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Normalise images to zero mean and unit variance per channel.

    Args:
        images: uint8, or floats from 0 to 1, [N, 3, H, W].
        mean: mean of the training images per channel, [1, 3, 1, 1], for pixels from 0 to 1.
        std: standard deviation, in the same shape and scale.

    Returns:
        floats [N, 3, H, W].
    """
    if not images.is_floating_point():
        images = images / 255
    return (images - mean) / std


def conv_relu_norm(
    in_channels: int, out_channels: int, padding: int = 0, dilation: int = 1
) -> list[nn.Module]:
    """A 3x3 convolution without bias (the norm has one), ReLU, batch norm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        padding: zeros at each border, in pixels.
        dilation: distance between the kernel's taps, in pixels.
    """
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=padding, dilation=dilation, bias=False),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(out_channels),
    ]


def separable_conv(in_channels: int, out_channels: int, padding: int = 0) -> list[nn.Module]:
    """A depthwise separable convolution (Howard et al., "MobileNets", 2017) without activation.

    One 3x3 filter per channel, then a 1x1 convolution across channels; both with bias.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        padding: zeros at each border, in pixels.
    """
    return [
        nn.Conv2d(in_channels, in_channels, 3, padding=padding, groups=in_channels),
        nn.Conv2d(in_channels, out_channels, 1),
    ]


def separable_norm(channels: int, dilation: int = 1) -> list[nn.Module]:
    """A depthwise separable convolution without bias, padded to keep the map size, and batch norm.

    Args:
        channels: channels of the input, and of the output.
        dilation: of the depthwise convolution, in pixels.
    """
    return [
        Depthwise(channels, dilation),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    ]


class Depthwise(nn.Conv2d):
    """A depthwise 3x3 convolution without bias, padded to keep the map size.

    Args:
        channels: number of channels.
        dilation: distance between a filter's taps, in pixels.
    """

    def __init__(self, channels: int, dilation: int = 1) -> None:
        super().__init__(
            channels,
            channels,
            3,
            padding=dilation,
            dilation=dilation,
            groups=channels,
            bias=False,
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve maps [N, C, H, W]; the result has the same shape."""
        step = self.dilation[0]
        divisible = maps.shape[2] % step == 0 == maps.shape[3] % step
        if step == 1 or maps.is_cuda or not self.training or not divisible:
            return super().forward(maps)
        # On the CPU PyTorch has no fast kernel for the gradients of dilated depthwise convolutions.
        # A dilated filter combines only every step-th row and column. So the maps are split into
        # step x step coarse ones, which the undilated filter convolves as separate batch entries.
        n, channels, height, width = maps.shape
        grid = (n, height // step, step, width // step, step, channels)
        coarse = maps.permute(0, 2, 3, 1).reshape(grid).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        coarse = F.conv2d(coarse.permute(0, 3, 1, 2), self.weight, padding=1, groups=channels)
        grid = (n, step, step, height // step, width // step, channels)
        back = coarse.permute(0, 2, 3, 1).reshape(grid).permute(0, 3, 1, 4, 2, 5)
        return back.reshape(n, height, width, channels).permute(0, 3, 1, 2)


class Residual(nn.Module):
    """A residual block, ReLU(shortcut(x) + layers(x)) (He et al., "Deep Residual Learning", 2016).

    Args:
        layers: of the residual branch, in order.
        shortcut: of the shortcut, if the branch changes the shape; empty for the identity.
    """

    def __init__(self, layers: Iterable[nn.Module], shortcut: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, maps: Tensor) -> Tensor:
        """Map [N, C, H, W] to the shape that the branch returns."""
        result: Tensor = F.relu(self.shortcut(maps) + self.branch(maps))
        return result


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation (Hu et al., 2018): rescales each channel, given all channels' means.

    Args:
        channels: number of channels.
        squeezed: number of channels between the two 1x1 convolutions.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Scale maps [N, C, H, W]; the result has the same shape."""
        means = maps.mean((2, 3), keepdim=True)  # [N, C, 1, 1]
        weights: Tensor = self.excite(F.relu(self.squeeze(means))).sigmoid()  # [N, C, 1, 1]
        return maps * weights
