"""Corruptions of whole batches of images, each at five strengths.

Noise, blur and JPEG compression have the strengths of CIFAR-10-C (Hendrycks and Dietterich,
"Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", 2019). The
accuracies are not comparable with CIFAR-10-C, which is a fixed data set of corrupted images.

Each function takes uint8 images [N, 3, H, W] and a strength, and returns uint8 [N, 3, H, W].
Lengths in pixels are for images of 32 x 32 pixels, and grow in proportion to the image size.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

STANDARD_SIZE = 32


def add_noise(images: Tensor, deviation: float) -> Tensor:
    """Add Gaussian noise with a standard deviation on the scale from 0 to 1.

    Every call draws the same noise for the first image, the second, and so on.
    """
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        torch.manual_seed(0)
        noisy: Tensor = F.gaussian_noise(images, sigma=deviation)
    return noisy


def blur(images: Tensor, deviation: float) -> Tensor:
    """Blur with a Gaussian; its standard deviation is in pixels."""
    deviation *= images.shape[-1] / STANDARD_SIZE
    size = 2 * math.ceil(3 * deviation) + 1
    blurred: Tensor = F.gaussian_blur(images, [size, size], [deviation, deviation])
    return blurred


def brighten(images: Tensor, factor: float) -> Tensor:
    """Multiply by a factor; values above white are clipped."""
    brighter: Tensor = F.adjust_brightness(images, factor)
    return brighter


def compress(images: Tensor, quality: float) -> Tensor:
    """Compress as JPEG; the quality is from 1 to 100."""
    # With Pillow: torchvision deprecates its own encoder from 0.29 on.
    compressed = []
    for image in images.permute(0, 2, 3, 1).cpu().numpy():  # [H, W, 3]
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=int(quality))
        compressed.append(np.asarray(Image.open(file)))
    stacked = torch.from_numpy(np.stack(compressed))  # [N, H, W, 3]
    return stacked.permute(0, 3, 1, 2).contiguous().to(images.device)


def shift(images: Tensor, pixels: float) -> Tensor:
    """Move right and down by a number of pixels; fill the gap by reflection."""
    size = images.shape[-1]
    by = round(pixels * size / STANDARD_SIZE)
    padded: Tensor = F.pad(images, [by, by, 0, 0], padding_mode="reflect")
    return padded[..., :size, :size]


@dataclass(frozen=True)
class Corruption:
    """A corruption and its strengths.

    Attributes:
        apply: one of the functions above.
        strengths: five values, weakest first.
        unit: of the strengths.
    """

    apply: Callable[[Tensor, float], Tensor]
    strengths: tuple[float, ...]
    unit: str


CORRUPTIONS = {
    "noise": Corruption(add_noise, (0.04, 0.06, 0.08, 0.09, 0.10), "standard deviation"),
    "blur": Corruption(blur, (0.4, 0.6, 0.7, 0.8, 1.0), "standard deviation in pixels"),
    "brightness": Corruption(brighten, (1.2, 1.4, 1.6, 1.8, 2.0), "factor"),
    "jpeg": Corruption(compress, (80, 65, 58, 50, 40), "quality"),
    "shift": Corruption(shift, (1, 2, 3, 4, 6), "pixels"),
}
