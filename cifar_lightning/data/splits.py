"""Splits of a data set, and the draw of a balanced validation split."""

from dataclasses import dataclass

import torch
from torch import Tensor


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


@dataclass(frozen=True)
class Splits:
    """A data set: its official train and test splits, and its class names."""

    train: ImageSplit
    test: ImageSplit
    classes: tuple[str, ...]


def split_balanced(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` positions, balanced over the classes as `labels` are.

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
