"""Blocks that the networks share, and the normalisation of their inputs."""

from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor, nn


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images uint8 [N, 3, H, W] to zero mean and unit variance by channel, float32.

    Args:
        images: with values from 0 to 255.
        mean: of the training images on the scale 0 to 1, [1, 3, 1, 1].
        std: likewise.
    """
    return (images / 255 - mean) / std


def conv_relu_norm(
    in_channels: int, out_channels: int, padding: int = 0, dilation: int = 1
) -> list[nn.Module]:
    """A 3x3 convolution without bias (the norm has one), ReLU, batch norm."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=padding, dilation=dilation, bias=False),
        nn.ReLU(inplace=True),
        nn.BatchNorm2d(out_channels),
    ]


def separable_conv(in_channels: int, out_channels: int, padding: int = 0) -> list[nn.Module]:
    """A depthwise separable convolution (Howard et al., "MobileNets", 2017), linear.

    One 3x3 filter a channel, then a 1x1 convolution that mixes the channels; both with bias.
    """
    return [
        nn.Conv2d(in_channels, in_channels, 3, padding=padding, groups=in_channels),
        nn.Conv2d(in_channels, out_channels, 1),
    ]


def separable_norm(channels: int, dilation: int = 1) -> list[nn.Module]:
    """A depthwise separable convolution that keeps maps' size, and batch norm; none has a bias."""
    return [
        Depthwise(channels, dilation),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    ]


class Depthwise(nn.Conv2d):
    """One 3x3 filter a channel, which may be dilated; maps keep their size.

    Args:
        channels: of the maps.
        dilation: pixels from one tap of a filter to the next.
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
        """Maps [N, C, H, W] of the same shape."""
        step = self.dilation[0]
        divides = maps.shape[2] % step == 0 == maps.shape[3] % step
        if step == 1 or maps.is_cuda or not self.training or not divides:
            return super().forward(maps)
        # PyTorch's CPU has no fast kernel for the gradients of dilated depthwise convolutions. A
        # dilated filter never mixes pixels of different remainders by the step: each of step x
        # step coarse maps is a batch entry of its own to the same filter, undilated.
        n, channels, height, width = maps.shape
        grid = (n, height // step, step, width // step, step, channels)
        coarse = maps.permute(0, 2, 3, 1).reshape(grid).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        coarse = F.conv2d(coarse.permute(0, 3, 1, 2), self.weight, padding=1, groups=channels)
        grid = (n, step, step, height // step, width // step, channels)
        back = coarse.permute(0, 2, 3, 1).reshape(grid).permute(0, 3, 1, 4, 2, 5)
        return back.reshape(n, height, width, channels).permute(0, 3, 1, 2)


class Residual(nn.Module):
    """ReLU of the maps plus what layers make of them (He et al., "Deep Residual Learning", 2016).

    Args:
        layers: in a row.
        shortcut: layers that give the maps the shape of what `layers` make; none keep it.
    """

    def __init__(self, layers: Iterable[nn.Module], shortcut: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [N, C, H, W] to maps of the shape of what the layers make."""
        result: Tensor = F.relu(self.shortcut(maps) + self.branch(maps))
        return result


class SqueezeExcitation(nn.Module):
    """Weighs each channel by what all channels' means say (Hu et al., 2018).

    Args:
        channels: of the maps.
        squeezed: channels between the two 1x1 convolutions.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [N, C, H, W] of the same shape."""
        means = maps.mean((2, 3), keepdim=True)  # [N, C, 1, 1]
        weights: Tensor = self.excite(F.relu(self.squeeze(means))).sigmoid()  # [N, C, 1, 1]
        return maps * weights
