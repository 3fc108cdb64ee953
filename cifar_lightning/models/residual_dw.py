"""A residual network of depthwise separable convolutions, every other one dilated."""

from collections.abc import Sequence

from torch import Tensor, nn

from cifar_lightning.models.blocks import Residual, SqueezeExcitation, separable_norm


class ResidualDW(nn.Module):
    """Stages of residual blocks; each stage halves the height and width of the maps.

    A block is two depthwise separable convolutions, the second dilated by 2, which widens its
    receptive field at no cost, and squeeze-and-excitation. Each stage after the first begins
    with a dense 3x3 convolution and a max pool. Most of the multiply-adds are in these.

    Args:
        num_classes: number of logits.
        widths: number of channels in each stage.
        depths: number of residual blocks in each stage, from 0.
        squeeze: factor by which squeeze-and-excitation reduces the channels; None leaves it out.

    Raises:
        ValueError: if `widths` and `depths` differ in length.
    """

    def __init__(
        self,
        num_classes: int = 10,
        widths: Sequence[int] = (32, 64, 128),
        depths: Sequence[int] = (0, 1, 4),
        squeeze: int | None = 16,
    ) -> None:
        super().__init__()
        if len(widths) != len(depths):
            raise ValueError(
                f"widths and depths must be equally long, not {len(widths)} and {len(depths)}"
            )
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False)]
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                layers.append(nn.Conv2d(widths[stage - 1], width, 3, padding=1, bias=False))
                layers.append(nn.MaxPool2d(2))
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            layers += [_block(width, squeeze) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of normalised images [N, 3, H, W]."""
        maps = self.layers(images)  # at 32 x 32 pixels [N, 128, 8, 8]
        logits: Tensor = self.head(maps.mean((2, 3)))
        return logits


def _block(channels: int, squeeze: int | None) -> Residual:
    layers = [
        *separable_norm(channels),
        nn.ReLU(inplace=True),
        *separable_norm(channels, dilation=2),
    ]
    if squeeze:
        layers.append(SqueezeExcitation(channels, channels // squeeze))
    return Residual(layers)
