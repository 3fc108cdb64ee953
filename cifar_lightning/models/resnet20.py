"""ResNet-20, the reference for accuracy at this size: 272,474 parameters."""

from torch import Tensor, nn

from cifar_lightning.models.blocks import Residual


class ResNet20(nn.Module):
    """The smallest residual network for CIFAR-10 of He et al., "Deep Residual Learning", 2016.

    Three stages of three blocks of two 3x3 convolutions, with 16, 32 and 64 channels. If a block
    halves the maps, its shortcut is a 1x1 convolution. The network has no dilated or depthwise
    convolution: train it with `budget.min_dilated=null budget.min_separable=null`.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layers = nn.Sequential(  # [N, 3, 32, 32]
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            *(_block(16, 16) for _ in range(3)),  # [N, 16, 32, 32]
            *(_block(16 if first else 32, 32) for first in (True, False, False)),  # [N, 32, 16, 16]
            *(_block(32 if first else 64, 64) for first in (True, False, False)),  # [N, 64, 8, 8]
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of normalised images [N, 3, H, W]."""
        logits: Tensor = self.head(self.layers(images))
        return logits


def _block(in_channels: int, out_channels: int) -> Residual:
    stride = out_channels // in_channels
    layers = [
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    if stride == 1:
        return Residual(layers)
    shortcut = [
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
    return Residual(layers, shortcut)
