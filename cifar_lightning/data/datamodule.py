"""The LightningDataModule: splits and batches, for whatever source of images."""

import math
from abc import abstractmethod

import pytorch_lightning as pl
import torch
from torch import Tensor

from cifar_lightning.data.sampler import Batches, BatchOrder
from cifar_lightning.data.splits import Part, Parts
from cifar_lightning.errors import UserError

# Of what is free on a GPU, for the images; the rest is the training's. Where they do not fit, each
# batch is copied to it.
LARGEST_SHARE_OF_MEMORY = 0.5


class ImageData(pl.LightningDataModule):
    """Train, validation and test batches of a source that keeps all its images in memory.

    A batch is (images uint8 [N, 3, H, W], labels int64 [N], index int64 [N]), where `index` is each
    image's position in its official part. Nothing is augmented here: the training step does that,
    on whole batches, on the device.

    Validation is cut from the official train part, balanced over the classes; the official test
    part is the test set.

    Args:
        batch_size: images a step, over all devices together.
        val_size: validation images, as a count (int) or a fraction (float) of the train part.
            With 0 there is no validation and training sees the whole train part.
        split_seed: decides which images validate. Not the run's seed, so that runs with different
            seeds are judged on the same images.
        seed: of the order of the training images.

    Attributes, after `setup`:
        classes: class names.
        image_size: height and width in pixels.
        mean, std: of the training images by channel, on the scale 0 to 1.
        train: the official train part; `train_index` (int64) are the positions that are trained on.
        val: the images that validate, or None with `val_size=0`.
        revisit: fraction of the training images that come again at the end of each epoch: those
            with the largest `losses`, before them what had no place in a whole batch. 0 unless
            something sets it before training.
        losses: float [images of the official train part], where the batches are; for whoever has
            set `revisit` to keep up to date. An epoch begins with infinite ones.
        test: the official test part.

    Raises:
        UserError: from `setup`, if the images are not square, the validation part or the training
            part would be empty, or a batch is larger than the training part.
    """

    def __init__(
        self,
        batch_size: int = 256,
        val_size: int | float = 5000,
        split_seed: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.seed = seed
        self.val: Part | None = None
        self.revisit = 0.0
        self._loaded = False

    def prepare_data(self) -> None:
        """Put the files in place; Lightning calls this again before every fit and test."""
        if not self._loaded:
            self.fetch()

    def fetch(self) -> None:
        """Put the files that `load` reads in place, where a source has any."""

    @abstractmethod
    def load(self) -> Parts:
        """The official parts, from files that `fetch` has put in place."""

    def setup(self, stage: str | None = None) -> None:
        """Load and split once; Lightning calls this before every fit, validate and test."""
        if self._loaded:
            return
        parts = self.load()
        self.classes = parts.classes
        self.test: Part = parts.test
        height, width = parts.train.images.shape[2:]
        if height != width:
            raise UserError(
                f"The images are {width} x {height} pixels; they must be square. "
                f"data.image_size={min(height, width)} cuts each to the square in its middle."
            )
        self.image_size = height

        val_count = self._val_count(len(parts.train))
        val_index, train_index = split_balanced(parts.train.labels, val_count, self.split_seed)
        self.train: Part = parts.train
        self.train_index = train_index
        if val_count:
            self.val = Part(parts.train.images[val_index], parts.train.labels[val_index])
        if not isinstance(self.batch_size, int) or not 1 <= self.batch_size <= len(train_index):
            raise UserError(
                f"data.batch_size={self.batch_size} is not from 1 to {len(train_index)}, the "
                "number of training images."
            )
        self.mean, deviations = channel_statistics(parts.train.images[train_index])
        # A channel that never changes has no deviation to divide by.
        self.std = [deviation or 1.0 for deviation in deviations]
        self._loaded = True

    def _val_count(self, available: int) -> int:
        size = self.val_size
        known = isinstance(size, int | float)
        count = round(size * available) if isinstance(size, float) else size
        too_few = size != 0 and known and count < len(self.classes)
        if not known or too_few or not 0 <= count < available:
            raise UserError(
                f"data.val_size={size} of {available} training images cannot be. It is a "
                f"count from {len(self.classes)} (one a class) to {available - 1}, a fraction such "
                "as 0.1, or 0 for no validation."
            )
        return count

    def train_dataloader(self) -> Batches:
        """Batches in a new order every epoch; incomplete ones are left out."""
        rank, world_size = self._rank_and_world_size()
        train = self._placed(self.train)
        index = self.train_index.to(train.labels.device)
        self.losses = torch.full((len(train),), math.inf, device=index.device)
        order = BatchOrder(
            index, self.batch_size, self.seed, rank, world_size, self.revisit, self.losses
        )
        return Batches(train, order)

    def val_dataloader(self) -> Batches | list[Tensor]:
        """All validation images in order; an empty list with `val_size=0`."""
        return [] if self.val is None else self._in_order(self.val)

    def test_dataloader(self) -> Batches:
        """All official test images in order."""
        return self._in_order(self.test)

    def _in_order(self, part: Part) -> Batches:
        part = self._placed(part)
        index = torch.arange(len(part), device=part.labels.device)
        order = BatchOrder(index, self.batch_size, None, *self._rank_and_world_size())
        return Batches(part, order)

    def _placed(self, part: Part) -> Part:
        """A part on the device that works on it, so that no step copies anything from the host."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if part.images.nbytes > free * LARGEST_SHARE_OF_MEMORY:
                return part
        return part.to(device)

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def split_balanced(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` positions with each class's share as in `labels`, and the remaining ones.

    Args:
        labels: int64 [N].
        count: from 0 to N.
        seed: equal seeds draw equal positions.

    Returns:
        Two ascending int64 tensors, [count] and [N - count].
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    members = [shuffled[labels[shuffled] == c] for c in labels.unique()]
    shares = [count * len(m) / len(labels) for m in members]
    counts = [int(share) for share in shares]
    # The largest remainders round up, so that the counts add up to `count`.
    by_remainder = sorted(range(len(shares)), key=lambda c: counts[c] - shares[c])
    for c in by_remainder[: count - sum(counts)]:
        counts[c] += 1
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for positions, n in zip(members, counts, strict=True):
        drawn[positions[:n]] = True
    return drawn.nonzero().flatten(), (~drawn).nonzero().flatten()


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by channel of uint8 images [N, C, H, W], on the scale 0 to 1."""
    means, deviations = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for channel in images.unbind(1):
        # A histogram is exact and needs no float copy of the data set.
        share = torch.bincount(channel.reshape(-1), minlength=256).double() / channel.numel()
        mean = (share * levels).sum()
        means.append(mean.item())
        deviations.append((share * (levels - mean) ** 2).sum().sqrt().item())
    return means, deviations
