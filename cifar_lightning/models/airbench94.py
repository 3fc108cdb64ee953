"""The network of cifar10-airbench, the reference for speed: 1,972,792 parameters."""

from torch import Tensor, nn


class Airbench94(nn.Module):
    """The CNN of cifar10-airbench, which reaches 94 % on CIFAR-10 in 2.6 seconds on an A100.

    Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, in the version for Muon.
    A frozen 2x2 convolution, whose filters have to be initialised by whitening (`init.whiten`),
    then three blocks of two convolutions. It exceeds the default budget and has no dilated or
    depthwise convolution: train it with `experiment=airbench94`.

    Args:
        num_classes: number of logits.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        whitening = nn.Conv2d(3, 24, 2)  # both signs of each of the 12 patch directions
        whitening.weight.requires_grad = False
        self.layers = nn.Sequential(  # [N, 3, 32, 32]
            whitening,  # [N, 24, 31, 31]
            nn.GELU(),
            *_block(24, 64),  # [N, 64, 15, 15]
            *_block(64, 256),  # [N, 256, 7, 7]
            *_block(256, 256),  # [N, 256, 3, 3]
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),  # [N, 256]
        )
        self.head = nn.Linear(256, num_classes, bias=False)
        # The large `optimizer.head_lr` was tuned for weights of unit variance, and for logits
        # divided by the width.
        nn.init.normal_(self.head.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of normalised images [N, 3, H, W]."""
        logits: Tensor = self.head(self.layers(images)) / self.head.in_features
        return logits


def _block(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        _norm(out_channels),
        nn.GELU(),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        _norm(out_channels),
        nn.GELU(),
    ]


def _norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with a learned bias, no learned scale, and statistics that adapt in few steps."""
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad = False
    return norm
