"""The seed network: 257,856 parameters, 44.17 M multiply-adds at 32 x 32 pixels."""

from torch import Tensor, nn

from cifar_lightning.models.blocks import conv_relu_norm, separable_conv

# The unpadded convolutions and three max pools would leave no pixels of a smaller image.
SMALLEST_IMAGE = 24


class DilatedDW(nn.Module):
    """A compact CNN with one dilated and two depthwise separable convolutions.

    Args:
        num_classes: number of logits.
        image_size: height and width of the images in pixels.

    Raises:
        ValueError: if the images are smaller than 24 x 24 pixels.
    """

    def __init__(self, num_classes: int = 10, image_size: int = 32) -> None:
        super().__init__()
        if image_size < SMALLEST_IMAGE:
            raise ValueError(
                f"dilated_dw needs images of at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE} pixels, "
                f"not {image_size} x {image_size}: data.image_size=32 makes them larger"
            )
        self.layers = nn.Sequential(  # [N, 3, 32, 32]
            *conv_relu_norm(3, 32, padding=1),  # [N, 32, 32, 32]
            *conv_relu_norm(32, 64, padding=1),  # [N, 64, 32, 32]
            nn.Conv2d(64, 64, 1, bias=False),
            nn.MaxPool2d(2),  # [N, 64, 16, 16]
            *conv_relu_norm(64, 128, dilation=2),  # [N, 128, 12, 12]
            nn.MaxPool2d(2),  # [N, 128, 6, 6]
            *conv_relu_norm(128, 128, padding=2),  # [N, 128, 8, 8]
            nn.MaxPool2d(2),  # [N, 128, 4, 4]
            *separable_conv(128, 64, padding=1),  # [N, 64, 4, 4]
            *separable_conv(64, 32),  # [N, 32, 2, 2]
            # For 32 x 32 images this is the original's 2x2 average pool; other sizes work too.
            nn.AdaptiveAvgPool2d(1),  # [N, 32, 1, 1]
            nn.Conv2d(32, num_classes, 1, bias=False),  # [N, classes, 1, 1]
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of normalised images [N, 3, H, W]."""
        logits: Tensor = self.layers(images)
        return logits.flatten(1)
