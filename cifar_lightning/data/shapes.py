"""Generated images of shapes in ten classes, for tests, demos and machines that are offline."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_lightning.data.datamodule import ImageData
from cifar_lightning.data.splits import ImageSplit, Splits
from cifar_lightning.system.memory import check_memory

# Measured peak memory while all images are drawn at once, in float32.
BYTES_PER_PIXEL = 80


class ShapesData(ImageData):
    """Shapes of any position, size, angle and colour on textured, noisy backgrounds.

    Colour and position are independent of the class, so a linear model learns little; a
    convolutional network learns the classes in a few hundred steps.

    Args:
        train_size: number of images in the train split, validation images included.
        test_size: number of images in the test split.
        image_size: height and width in pixels.
        data_seed: determines the images.
        batch_size, val_size, split_seed, seed: see `ImageData`.

    Raises:
        ValueError: if a split has fewer images than there are classes, or `image_size` is below 8.
        UserError: from `setup`, if there is not enough memory to draw the images.
    """

    def __init__(
        self,
        train_size: int = 5000,
        test_size: int = 1000,
        image_size: int = 32,
        data_seed: int = 0,
        batch_size: int = 64,
        val_size: int | float = 500,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, val_size, split_seed, seed)
        for name, size, least in (
            ("train_size", train_size, len(SHAPES)),
            ("test_size", test_size, len(SHAPES)),
            ("image_size", image_size, 8),
        ):
            if size < least:
                raise ValueError(f"{name} must be at least {least}, not {size}")
        self.train_size = train_size
        self.test_size = test_size
        self.draw_size = image_size
        self.data_seed = data_seed

    def load(self) -> Splits:
        pixels = max(self.train_size, self.test_size) * self.draw_size**2
        check_memory(
            f"Drawing {self.train_size:,} and {self.test_size:,} images of {self.draw_size:,} x "
            f"{self.draw_size:,} pixels",
            BYTES_PER_PIXEL * pixels,
            "Reduce data.train_size, data.test_size or data.image_size.",
        )
        generator = torch.Generator().manual_seed(self.data_seed)
        train = draw(self.train_size, self.draw_size, generator)
        test = draw(self.test_size, self.draw_size, generator)
        return Splits(train, test, tuple(SHAPES))


# Maps coordinates x, y, each [N, H, W], to the approximate distance from a shape's outline:
# negative inside, positive outside. The shape has radius 1 and is centred at the origin.
Outline = Callable[[Tensor, Tensor], Tensor]


def _polygon(x: Tensor, y: Tensor, sides: int) -> Tensor:
    sector = 2 * torch.pi / sides
    angle = torch.atan2(y, x)
    off_axis = angle - sector * torch.round(angle / sector)
    inner_radius = 0.5 * (1 + torch.cos(torch.tensor(torch.pi / sides)))
    return torch.hypot(x, y) * torch.cos(off_axis) - inner_radius


def _star(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - (0.68 + 0.36 * torch.cos(5 * torch.atan2(y, x)))


def _box(x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    return torch.maximum(x.abs() - width, y.abs() - height)


SHAPES: dict[str, Outline] = {
    "bar": lambda x, y: _box(x, y, 1.05, 0.26),
    "cross": lambda x, y: torch.minimum(_box(x, y, 1.0, 0.26), _box(x, y, 0.26, 1.0)),
    "disk": lambda x, y: torch.hypot(x, y) - 0.85,
    "dots": lambda x, y: torch.hypot(x.abs() - 0.6, y) - 0.38,
    "ell": lambda x, y: torch.minimum(_box(x + 0.55, y, 0.27, 0.9), _box(x, y - 0.63, 0.82, 0.27)),
    "frame": lambda x, y: _box(x, y, 0.8, 0.8).sub(-0.14).abs() - 0.16,
    "moon": lambda x, y: torch.maximum(torch.hypot(x, y) - 0.95, 0.8 - torch.hypot(x - 0.55, y)),
    "ring": lambda x, y: (torch.hypot(x, y) - 0.75).abs() - 0.2,
    "star": _star,
    "triangle": lambda x, y: _polygon(x, y, 3),
}


def draw(count: int, size: int, generator: torch.Generator) -> ImageSplit:
    """Draw images of all classes, equally often, in random order.

    Args:
        count: number of images.
        size: height and width in pixels.
        generator: of all randomness; on the CPU.

    Returns:
        Images uint8 [count, 3, size, size] and labels.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    labels = torch.arange(count) % len(SHAPES)
    labels = labels[torch.randperm(count, generator=generator)]

    line = torch.linspace(-1, 1, size)
    radius = uniform(0.42, 0.68, count, 1, 1)
    angle = uniform(0, 2 * torch.pi, count, 1, 1)
    x = (line[None, None, :] - uniform(-0.3, 0.3, count, 1, 1)) / radius  # [N, 1, W]
    y = (line[None, :, None] - uniform(-0.3, 0.3, count, 1, 1)) / radius  # [N, H, 1]
    x, y = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()  # [N, H, W]
    distance = torch.empty_like(x)
    for label, outline in enumerate(SHAPES.values()):
        chosen = labels == label
        distance[chosen] = outline(x[chosen], y[chosen])
    # A soft edge of half a pixel, as in photographs.
    cover = torch.sigmoid(-distance * radius * size).unsqueeze(1)  # [N, 1, H, W]

    background = uniform(0.2, 0.8, count, 3, 1, 1)
    # At least 0.22 away from the background in every channel, up or down.
    contrast = uniform(0.22, 0.5, count, 3, 1, 1) * (2 * (uniform(0, 1, count, 3, 1, 1) > 0.5) - 1)
    images = background + cover * contrast  # [N, 3, H, W]
    for cells, strength in ((3, 0.12), (8, 0.08), (size, 0.06)):  # coarse, fine, pixel noise
        texture = strength * torch.randn(count, 3, cells, cells, generator=generator)
        images += F.interpolate(texture, (size, size), mode="bilinear", align_corners=False)
    return ImageSplit((images.clamp(0, 1) * 255).round().to(torch.uint8), labels)
