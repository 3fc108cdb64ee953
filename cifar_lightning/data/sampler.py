"""Which images make up which batch, also for a training that goes on within an epoch."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cifar_lightning.data.splits import Part


class BatchOrder(Sampler[Tensor]):
    """Which images make up which batch: yields whole batches of indices (int64 [N]).

    A DataLoader that gets batches from its sampler asks the data set once a batch, not once an
    image. Several devices get each their share of every batch, so a batch is the same batch on any
    number of them. Without a seed they get whole batches in turn instead: each is then worked on as
    one device would, for the last digits of logits depend on how many images are a batch.

    Args:
        index: int64 [M], the images to go through; the batches are on its device.
        batch_size: over all devices; without a seed, of each.
        seed: of the order, new in each epoch, the incomplete last batch left out; with None the
            images come as in `index`, all of them.
        rank: this process, from 0 to `world_size` - 1.
        world_size: number of processes.
        revisit: fraction of the images that come again in an epoch, chosen when all have come once:
            those with the largest losses. With a seed only.
        losses: float, by position; those of an epoch are filled in while it goes on.
    """

    def __init__(
        self,
        index: Tensor,
        batch_size: int,
        seed: int | None,
        rank: int = 0,
        world_size: int = 1,
        revisit: float = 0.0,
        losses: Tensor | None = None,
    ) -> None:
        self.index = index
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.revisited = int(revisit * len(index)) // batch_size  # batches
        self.losses = losses
        self.epoch = 0
        self._given = 0  # batches of this epoch
        self._to_skip = 0
        self._again: Tensor | None = None  # images that come again, once they are chosen

    def set_epoch(self, epoch: int) -> None:
        """Lightning's Trainer says which epoch comes next, after a resume too."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.seed is None:
            return math.ceil(len(self.index) / self.batch_size / self.world_size)
        return len(self.index) // self.batch_size + self.revisited

    def __iter__(self) -> Iterator[Tensor]:
        if self.seed is None:
            yield from self._whole_batches()
            return
        to_skip, self._to_skip = self._to_skip, 0
        if not to_skip:
            self._again = None
            if self.losses is not None:
                self.losses.fill_(math.inf)
        for number, batch in enumerate(self._batches_of_epoch(self.seed), start=1):
            if number > to_skip:
                self._given = number
                yield batch

    def _batches_of_epoch(self, seed: int) -> Iterator[Tensor]:
        # From seed and epoch alone: a resumed run sees what the unbroken one would have seen.
        generator = torch.Generator().manual_seed(hash((seed % 2**32, self.epoch)))
        again = self.revisited * self.batch_size
        # Both at once: a GPU waits whenever something is copied to it.
        first, second = (
            torch.randperm(count, generator=generator).to(self.index.device)
            for count in (len(self.index), again)
        )
        yield from self._batches(self.index[first])
        if again and self.losses is not None:
            if self._again is None:
                hardest_first = self.losses[self.index].argsort(descending=True, stable=True)
                self._again = self.index[hardest_first[:again][second]]
            yield from self._batches(self._again)

    def state_dict(self) -> dict[str, Any]:
        """Where in its epoch it is; of an epoch's end nothing is needed."""
        if self._given == len(self):
            return {"given": 0}
        # The losses of an epoch are of use in it if something comes again.
        return {
            "given": self._given,
            "again": self._again,
            "losses": self.losses if self.revisited else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Have the next epoch begin with the batch after those that were given."""
        self._given = self._to_skip = state_dict["given"]
        if not self._to_skip:
            return
        if state_dict["again"] is not None:
            self._again = state_dict["again"].to(self.index.device)
        if state_dict["losses"] is not None and self.losses is not None:
            self.losses.copy_(state_dict["losses"])

    def _batches(self, index: Tensor) -> Iterator[Tensor]:
        for batch in index.split(self.batch_size)[: len(index) // self.batch_size]:
            yield batch[self.rank :: self.world_size]

    def _whole_batches(self) -> Iterator[Tensor]:
        batches = self.index.split(self.batch_size)
        for first in range(0, len(batches), self.world_size):
            # Empty where none is left: devices wait for each other at every batch.
            mine = batches[first : first + self.world_size][self.rank :]
            yield mine[0] if mine else self.index[:0]


class Batches(DataLoader[tuple[Tensor, Tensor, Tensor]]):
    """A DataLoader of whole batches, which Lightning saves and resumes within an epoch.

    Args:
        part: the images.
        order: of the batches.
    """

    def __init__(self, part: Part, order: BatchOrder) -> None:
        # A generator of its own: each epoch draws from it, and if that were PyTorch's, layers that
        # draw from PyTorch's would get other numbers after a resume.
        own = torch.Generator()
        super().__init__(part, sampler=order, batch_size=None, generator=own)  # type: ignore[arg-type]
        self.order = order

    def state_dict(self) -> dict[str, Any]:
        """That of the order."""
        return self.order.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """That of the order."""
        self.order.load_state_dict(state_dict)
