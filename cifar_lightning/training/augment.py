"""Augmentation of whole batches on their device, random for each image.

Every function takes images [N, C, H, W] and, unless it says otherwise, returns new images of the
same shape, dtype and device. Randomness comes from a `torch.Generator` on the images' device, so
equal generators give equal results.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def random_shift(images: Tensor, max_shift: int, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `max_shift` pixels in both axes; borders are filled by reflection.

    The result is that of reflection padding and a random crop, but no padded batch is made.

    Args:
        images: [N, C, H, W].
        max_shift: in pixels.
        generator: on the images' device.

    Raises:
        ValueError: if `max_shift` is negative or not below the image's height and width.
    """
    n, _, height, width = images.shape
    if not 0 <= max_shift < min(height, width):
        raise ValueError(f"max_shift must be from 0 to {min(height, width) - 1}, not {max_shift}")
    device = images.device
    offsets = torch.randint(  # [2, N, 1]
        -max_shift, max_shift + 1, (2, n, 1), generator=generator, device=device
    )
    rows = _reflect(torch.arange(height, device=device) + offsets[0], height)  # [N, H]
    columns = _reflect(torch.arange(width, device=device) + offsets[1], width)  # [N, W]
    image = torch.arange(n, device=device)[:, None, None]  # [N, 1, 1]
    shifted = images[image, :, rows[:, :, None], columns[:, None, :]]  # [N, H, W, C]
    return shifted.permute(0, 3, 1, 2)  # channels_last without a copy


def _reflect(index: Tensor, size: int) -> Tensor:
    """Reflect indices outside 0 … size - 1 about the border pixels."""
    last = size - 1
    return last - (last - index.abs()).abs()


def flip(images: Tensor, mask: Tensor) -> Tensor:
    """Mirror some images left to right.

    Args:
        images: [N, C, H, W].
        mask: bool [N], which of them to mirror.
    """
    return torch.where(mask[:, None, None, None], images.flip(-1), images)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2.

    Args:
        images: [N, C, H, W].
        generator: on the images' device.
    """
    mask = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return flip(images, mask)


def alternating_flip(images: Tensor, index: Tensor, epoch: int) -> Tensor:
    """Mirror each image in every other epoch: some in even epochs, the others in odd ones.

    Two epochs in a row show every image both ways; random flips show half of the images the same
    way twice (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024).

    Args:
        images: [N, C, H, W].
        index: int64 [N], each image's position in its data set. A hash of it decides even or odd.
        epoch: counted from 0.
    """
    # A multiplicative hash (Steele et al., SplitMix64, 2014) gives neighbours unrelated bits, the
    # same on every device and in every process. int64 wraps on overflow.
    mixed = (index + 1) * -0x61C8864680B583EB
    mixed = (mixed ^ (mixed >> 30)) * -0x40A7B892E31B1A47
    coin = (mixed >> 40) & 1
    return flip(images, (coin + epoch) % 2 == 1)


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Fill a `size` x `size` square around a random pixel of each image with its mean colour.

    The square is clipped at the border, as in DeVries and Taylor, "Improved Regularization of
    Convolutional Neural Networks with Cutout", 2017.

    Args:
        images: [N, C, H, W].
        size: of the square, in pixels.
        generator: on the images' device.

    Raises:
        ValueError: if `size` is negative, or larger than the images.
    """
    n, _, height, width = images.shape
    if not 0 <= size <= min(height, width):  # a larger square would cover most images whole
        raise ValueError(f"cutout must be from 0 to {min(height, width)}, not {size}")
    device = images.device
    top = torch.randint(0, height, (n, 1), generator=generator, device=device) - size // 2
    left = torch.randint(0, width, (n, 1), generator=generator, device=device) - size // 2
    rows = torch.arange(height, device=device) - top  # [N, H], 0 at the square's first row
    columns = torch.arange(width, device=device) - left  # [N, W]
    in_rows, in_columns = (rows >= 0) & (rows < size), (columns >= 0) & (columns < size)
    square = in_rows[:, None, :, None] & in_columns[:, None, None, :]  # [N, 1, H, W]
    colour = images.mean((2, 3), keepdim=True, dtype=torch.float32)  # [N, C, 1, 1]
    return torch.where(square, colour.to(images.dtype), images)


def cutmix(
    images: Tensor, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """CutMix: with some probability, replace a rectangle of an image by that of another image.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
    Features", 2019: the rectangle has the image's proportions, a random centre and a random area of
    up to the whole image, and is clipped at the border.

    Args:
        images: [N, C, H, W].
        probability: that an image is mixed, from 0 to 1.
        generator: on the images' device.

    Returns:
        The images; the position of each one's other image in the batch, int64 [N]; and the fraction
        of its own pixels that each has kept, float32 [N].
    """
    n, _, height, width = images.shape
    area, chosen, row, column = torch.rand(4, n, 1, generator=generator, device=images.device)
    side = area.sqrt() * (chosen < probability)  # [N, 1], as a fraction of the image's
    in_rows = _spans(row, side, height)  # [N, H]
    in_columns = _spans(column, side, width)  # [N, W]
    rectangle = in_rows[:, None, :, None] & in_columns[:, None, None, :]  # [N, 1, H, W]
    # The other image is the next one of the batch, whose order is random.
    others = torch.arange(n, device=images.device).roll(-1)
    mixed = torch.where(rectangle, images[others], images)
    kept = 1 - in_rows.sum(1) * in_columns.sum(1) / (height * width)
    return mixed, others, kept


def _spans(centre: Tensor, side: Tensor, size: int) -> Tensor:
    """Mark the pixels within side / 2 of the centre, bool [N, size]; both are fractions [N, 1]."""
    pixels = (torch.arange(size, device=centre.device) + 0.5) / size
    return (pixels - centre).abs() < side / 2


def scale(images: Tensor, size: int) -> Tensor:
    """Scale images to `size` x `size` pixels, bilinear and antialiased.

    Without antialiasing, a smaller image would sample the pixels instead of averaging them.

    Args:
        images: floating point [N, C, H, W].
        size: of the result, in pixels.

    Returns:
        [N, C, size, size], channels_last.
    """
    # In float32, because PyTorch's CPU kernel takes no other dtype.
    scaled = F.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return scaled.to(images.dtype, memory_format=torch.channels_last)


class Augment:
    """Applies shift, flip and cutout in this order, then `extra`; 0 or `none` leaves one out.

    Args:
        shift: largest shift in pixels, see `random_shift`.
        flip: `none`, `random` (see `random_flip`) or `alternating` (see `alternating_flip`).
        cutout: side of the square in pixels, see `cutout`.
        extra: your own functions of images and `generator`, called in this order; see
            docs/extend.md.

    Raises:
        ValueError: if `flip` is none of the three.
    """

    def __init__(
        self,
        shift: int = 0,
        flip: Literal["none", "random", "alternating"] = "none",
        cutout: int = 0,
        extra: Sequence[Callable[..., Tensor]] = (),
    ) -> None:
        if flip not in ("none", "random", "alternating"):
            raise ValueError(f"flip must be none, random or alternating, not {flip!r}")
        self.shift = shift
        self.flip = flip
        self.cutout = cutout
        self.extra = extra

    def __call__(
        self, images: Tensor, index: Tensor, epoch: int, generator: torch.Generator
    ) -> Tensor:
        """Augment a batch.

        Args:
            images: uint8 [N, C, H, W].
            index: int64 [N], positions in the data set.
            epoch: counted from 0.
            generator: on the images' device.
        """
        if self.shift:
            images = random_shift(images, self.shift, generator)
        if self.flip == "random":
            images = random_flip(images, generator)
        elif self.flip == "alternating":
            images = alternating_flip(images, index, epoch)
        if self.cutout:
            images = cutout(images, self.cutout, generator)
        for function in self.extra:
            images = function(images, generator=generator)
        return images


class Torchvision:
    """Transforms of `torchvision.transforms.v2`, for `extra` of `Augment`.

    A v2 transform draws one set of random numbers per call, for all images that it is given. So it
    is called for each image, which takes longer than one call for the whole batch, on a GPU by far.

    Args:
        transforms: called in this order with uint8 images [n, 3, H, W]. The last one has to return
            uint8 images, or floats from 0 to 1, all of one size.
        images_per_draw: n, the images that share their random numbers. More are faster, and less
            random.

    Raises:
        ValueError: if `images_per_draw` is below 1.
    """

    def __init__(
        self, transforms: Sequence[Callable[[Tensor], Tensor]], images_per_draw: int = 1
    ) -> None:
        if images_per_draw < 1:
            raise ValueError(f"images_per_draw must be at least 1, not {images_per_draw}")
        self.transforms = transforms
        self.images_per_draw = images_per_draw

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Transform a batch.

        Args:
            images: uint8 [N, 3, H, W].
            generator: on the images' device.
        """
        seed = torch.randint(2**62, (), generator=generator, device=images.device)
        # v2 draws from PyTorch's global generators, from which layers such as dropout draw too.
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            torch.manual_seed(int(seed))
            groups = list(images.split(self.images_per_draw))
            for number, group in enumerate(groups):
                for transform in self.transforms:
                    group = transform(group)
                groups[number] = group
        return torch.cat(groups)
