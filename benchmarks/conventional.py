"""The usual input pipeline for CIFAR-10, for the benchmarks to compare with.

torchvision's transforms on one image at a time, in DataLoader workers.
"""

import os
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifar_lightning.data import ImageData

WORKERS = int(os.environ.get("WORKERS", str(os.cpu_count())))


class OneByOne(Dataset[tuple[Tensor, int]]):
    """Training images, each cropped after padding by 4 pixels, flipped and normalised by itself.

    Args:
        data: the images, with their mean and standard deviation.
        count: number of training images to use; None: all.
    """

    def __init__(self, data: ImageData, count: int | None = None) -> None:
        chosen = data.train_index[:count]
        images = data.train.images[chosen].permute(0, 2, 3, 1)  # [N, H, W, 3]
        self.images = images.contiguous().numpy()
        self.labels = data.train.labels[chosen].tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(data.image_size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def loader(images: OneByOne, batch_size: int, device: torch.device) -> DataLoader[Any]:
    """Load shuffled batches with WORKERS processes (environment; default: one per CPU core)."""
    return DataLoader(
        images,
        batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=WORKERS > 0,  # starting the workers is not measured
        pin_memory=device.type == "cuda",
    )
