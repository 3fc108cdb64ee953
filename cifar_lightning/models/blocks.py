"""Blocks that the networks share, as lists of layers to unpack into an `nn.Sequential`."""

from torch import nn


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
