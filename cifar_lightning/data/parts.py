"""What every source of images gives."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Labelled images of one part of a data set.

    Attributes:
        images: uint8 [N, 3, H, W], RGB.
        labels: int64 [N], positions in the list of class names.
    """

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Part":
        """The same on a device."""
        return Part(self.images.to(device), self.labels.to(device))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A whole batch by one indexing: images, labels, and `index` [N] itself."""
        return self.images[index], self.labels[index], index


@dataclass(frozen=True)
class Parts:
    """A data set: the official train and test parts and the class names."""

    train: Part
    test: Part
    classes: tuple[str, ...]
