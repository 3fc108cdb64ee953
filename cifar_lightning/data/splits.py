"""Splits of a data set: a balanced validation split, and label shift between train and test."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar_lightning.errors import UserError

# Floats outside of these limits are no pixels from 0 to 1: bicubic resizing oversteps by less.
LOWEST_PIXEL, HIGHEST_PIXEL = -0.25, 1.25
# Train and test have a label shift if the total variation distance of their classes' shares is at
# least SMALLEST_SHIFT, about the margin of a target, and larger than in each of DIVISIONS random
# divisions of the images.
SMALLEST_SHIFT, DIVISIONS = 0.01, 2000


@dataclass(frozen=True)
class ImageSplit:
    """Labelled images of one split of a data set: train, validation or test.

    Attributes:
        images: uint8 [N, 3, H, W], RGB.
        labels: int64 [N], positions in the list of class names.
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "ImageSplit":
        """Copy the split to a device."""
        return ImageSplit(self.images.to(device), self.labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the batch of the positions `index` [N]: images, labels, and `index` itself."""
        return self.images[index], self.labels[index], index


def check_images(what: str, images: Any) -> None:
    """Refuse what is no batch of images.

    Args:
        what: subject of the message.
        images: should be uint8, or floats from 0 to 1, [N, 3, H, W], with H = W.

    Raises:
        UserError: says what they are instead.
    """
    if not isinstance(images, Tensor):
        raise UserError(f"{what} are a {type(images).__name__}, not a tensor.")
    shape = f"[{', '.join(map(str, images.shape))}]"
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(
            f"{what} {shape} are not [N, 3, H, W]. torchvision.transforms.v2.RGB() makes three "
            "channels of one."
        )
    if images.shape[2] != images.shape[3]:
        raise UserError(
            f"{what} {shape} are not square. torchvision.transforms.v2 has CenterCrop and Resize."
        )
    if images.dtype == torch.uint8:
        return
    if not images.is_floating_point():
        raise UserError(f"{what} are {images.dtype}; uint8 or floats from 0 to 1 are needed.")
    low, high = images.min().item(), images.max().item()
    if not LOWEST_PIXEL <= low <= high <= HIGHEST_PIXEL:
        raise UserError(
            f"{what} are floats from {low:.3g} to {high:.3g}; uint8 or floats from 0 to 1 are "
            "needed. Leave Normalize out: the network's images are normalised after augmentation, "
            "and in predict and export too."
        )


@dataclass(frozen=True)
class Splits:
    """A data set: its official train and test splits, and its class names."""

    train: ImageSplit
    test: ImageSplit
    classes: tuple[str, ...]


def split_balanced(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` positions, in which every class has the same share as in `labels`.

    Args:
        labels: int64 [N].
        count: number of positions to draw, from 0 to N.
        seed: equal seeds draw equal positions.

    Returns:
        The drawn positions, int64 [count], and the others, int64 [N - count], both ascending.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    members = [shuffled[labels[shuffled] == c] for c in labels.unique()]
    shares = [count * len(m) / len(labels) for m in members]
    counts = [int(share) for share in shares]
    # The largest remainders are rounded up, so that the counts add up to `count`.
    by_remainder = sorted(range(len(shares)), key=lambda c: counts[c] - shares[c])
    for c in by_remainder[: count - sum(counts)]:
        counts[c] += 1
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for positions, n in zip(members, counts, strict=True):
        drawn[positions[:n]] = True
    return drawn.nonzero().flatten(), (~drawn).nonzero().flatten()


@dataclass(frozen=True)
class LabelShift:
    """A difference between the classes' shares in train and in test.

    Attributes:
        distance: total variation distance of the shares, from 0 to 1. It is the most by which the
            difference can change the test accuracy.
        label: position of the class whose shares differ most.
        train_share: its share of the train split, from which validation is drawn.
        test_share: its share of the test split.
    """

    distance: float
    label: int
    train_share: float
    test_share: float


def find_label_shift(train: Tensor, test: Tensor) -> LabelShift | None:
    """Find out whether the classes' shares in train and in test differ by more than chance.

    Args:
        train: labels of the train split, int64 [N].
        test: labels of the test split, int64 [M].

    Returns:
        None if their total variation distance is below 0.01, or no larger than that of one of 2,000
        random divisions of the images.
    """
    classes = 1 + int(max(train.max(), test.max()))
    in_train, in_test = (labels.bincount(minlength=classes).numpy() for labels in (train, test))
    train_shares, test_shares = in_train / len(train), in_test / len(test)
    distance = np.abs(train_shares - test_shares).sum() / 2
    if distance < SMALLEST_SHIFT:
        return None
    both = in_train + in_test
    generator = np.random.default_rng(0)
    drawn = generator.multivariate_hypergeometric(both, len(test), DIVISIONS, method="marginals")
    by_chance = np.abs((both - drawn) / len(train) - drawn / len(test)).sum(axis=1) / 2
    if distance <= by_chance.max():
        return None
    label = int(np.abs(train_shares - test_shares).argmax())
    return LabelShift(float(distance), label, float(train_shares[label]), float(test_shares[label]))
