"""Samplers of whole batches, whose training order can be resumed within an epoch.

With a sampler that yields whole batches of positions, a DataLoader indexes the data once per batch,
not once per image.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cifar_lightning.data.splits import ImageSplit
from cifar_lightning.system.derive_seed import derive_seed


class TrainSampler(Sampler[Tensor]):
    """Batches of positions (int64 [N]) in a new order each epoch, without an incomplete last one.

    Several devices divide each batch among them: it has the same images on any number of devices.

    Args:
        index: int64 [M], positions of the training images; batches are on its device.
        batch_size: images per batch, over all devices together.
        seed: determines the order together with the epoch.
        rank: of this process, from 0 to `world_size` - 1.
        world_size: number of processes.
        replay: fraction of the images that an epoch repeats at its end: those with the largest
            losses.
        losses: float [images], by position. A callback that sets `replay` stores each batch's
            losses here.
    """

    def __init__(
        self,
        index: Tensor,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        replay: float = 0.0,
        losses: Tensor | None = None,
    ) -> None:
        self.index = index
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.replayed = int(replay * len(index)) // batch_size  # number of batches
        self.losses = losses
        self.epoch = 0
        self._served = 0  # batches of this epoch so far
        self._skip = 0  # batches that were served before a resume
        self._replay_index: Tensor | None = None  # positions to repeat, once chosen

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning's Trainer calls this before each one, after a resume too."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.index) // self.batch_size + self.replayed

    def __iter__(self) -> Iterator[Tensor]:
        skip, self._skip = self._skip, 0
        if not skip:
            self._replay_index = None
            if self.losses is not None:
                self.losses.fill_(math.inf)
        for number, batch in enumerate(self._batches_of_epoch(), start=1):
            if number > skip:
                self._served = number
                yield batch

    def _batches_of_epoch(self) -> Iterator[Tensor]:
        # Seeded by seed and epoch alone, so that a resumed run has an uninterrupted run's order.
        generator = torch.Generator().manual_seed(derive_seed(self.seed, self.epoch))
        replayed = self.replayed * self.batch_size
        # Both orders are copied before the first batch, because a GPU waits for every copy.
        order, replay_order = (
            torch.randperm(count, generator=generator).to(self.index.device)
            for count in (len(self.index), replayed)
        )
        yield from self._batches(self.index[order])
        if replayed and self.losses is not None:
            if self._replay_index is None:
                hardest_first = self.losses[self.index].argsort(descending=True, stable=True)
                self._replay_index = self.index[hardest_first[:replayed][replay_order]]
            yield from self._batches(self._replay_index)

    def _batches(self, index: Tensor) -> Iterator[Tensor]:
        for batch in index.split(self.batch_size)[: len(index) // self.batch_size]:
            yield batch[self.rank :: self.world_size]

    def state_dict(self) -> dict[str, Any]:
        """The number of batches served in this epoch, 0 at its end; and the state of the replay."""
        if self._served == len(self):
            return {"served": 0}
        return {
            "served": self._served,
            "replay_index": self._replay_index,
            "losses": self.losses if self.replayed else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Begin the next iteration with the first batch that was not served."""
        self._served = self._skip = state_dict["served"]
        if not self._skip:
            return
        if state_dict["replay_index"] is not None:
            self._replay_index = state_dict["replay_index"].to(self.index.device)
        if state_dict["losses"] is not None and self.losses is not None:
            self.losses.copy_(state_dict["losses"])


class InOrderSampler(Sampler[Tensor]):
    """Batches of positions 0 to `count` - 1 (int64 [N]) in order; the last may be incomplete.

    Several devices get whole batches in turn. So each batch is as large as on one device: the last
    digits of logits depend on the number of images in a batch.

    Args:
        count: number of images.
        batch_size: images per batch.
        rank: of this process, from 0 to `world_size` - 1.
        world_size: number of processes.
        device: of the batches.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        self.batches = torch.arange(count, device=device).split(batch_size)
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return math.ceil(len(self.batches) / self.world_size)

    def __iter__(self) -> Iterator[Tensor]:
        for first in range(0, len(self.batches), self.world_size):
            # An empty batch if none is left: devices wait for each other at every batch.
            remaining = self.batches[first : first + self.world_size][self.rank :]
            yield remaining[0] if remaining else self.batches[0][:0]


class BatchLoader(DataLoader[tuple[Tensor, Tensor, Tensor]]):
    """A DataLoader of whole batches.

    Args:
        split: the images.
        sampler: yields whole batches of positions.
    """

    def __init__(self, split: ImageSplit, sampler: Sampler[Tensor]) -> None:
        # A DataLoader draws from its generator every epoch. From PyTorch's global generator, this
        # would change what layers such as dropout draw after a resume.
        own = torch.Generator()
        super().__init__(split, sampler=sampler, batch_size=None, generator=own)  # type: ignore[arg-type]


class TrainLoader(BatchLoader):
    """Training batches; Lightning saves and restores its position in an epoch."""

    sampler: TrainSampler

    def state_dict(self) -> dict[str, Any]:
        """The sampler's state."""
        return self.sampler.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the sampler's state."""
        self.sampler.load_state_dict(state_dict)
