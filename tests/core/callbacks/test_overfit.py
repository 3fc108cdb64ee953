"""Overfit: training on the same few batches, which a working network learns perfectly."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY
from data_sets import png, write_folder
from torch import Tensor, nn

from cifar_lightning import compose
from cifar_lightning.errors import UserError
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import train

# As TINY, but for what the options under test say themselves, the logger too.
SMALL = [o for o in TINY if o not in ("logger=csv", "trainer.max_epochs=1")]


class Noting(pl.Callback):
    """Notes which images come in training with their labels, and how many in validation."""

    trained: ClassVar[dict[int, int]] = {}
    validated: ClassVar[list[int]] = []

    def __init__(self) -> None:
        self.trained.clear()
        self.validated.clear()

    def on_train_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, _: Any
    ) -> None:
        self.trained.update(zip(batch[2].tolist(), batch[1].tolist(), strict=True))

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.validated.append(len(batch[1]))


def test_the_few_images_are_of_all_classes(tmp_path: Path) -> None:
    files = {
        # In the order of the names, class after class.
        f"{part}/{kind}/{kind}_{i:02d}.png": png((10 * i, 0, 60 * label))
        for part, count in (("train", 20), ("test", 1))
        for label, kind in enumerate(("bird", "cat", "dog"))
        for i in range(count)
    }
    folder = write_folder(tmp_path / "set", files)
    data = ("data=folder", f"data.path={folder}", "data.val_size=6", "data.batch_size=3")
    small = [o for o in SMALL if not o.startswith("data")]
    note = "+callbacks.noting._target_=test_overfit.Noting"
    train(compose([*small, *data, "debug=overfit", "trainer.max_epochs=1", note], tmp_path / "run"))
    assert Counter(Noting.trained.values()) == {0: 4, 1: 4, 2: 4}


class PlainAdam(torch.optim.Adam):
    """An optimizer without weight decay."""

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, lr)


class Blackens(nn.Module):
    """An augmentation of one's own that leaves nothing to learn."""

    def forward(self, images: Tensor, index: Tensor, epoch: int, generator: Any) -> Tensor:
        return torch.zeros_like(images)


MINE = {
    "optimizer": "_target_: test_overfit.PlainAdam\n_partial_: true\nlr: 0.005\n",
    "augment": "_target_: test_overfit.Blackens\n",
    "experiment": """# @package _global_
defaults:
  - override /optimizer: mine
  - override /augment: mine
teacher: none.ckpt
""",
}


def test_a_network_learns_a_few_batches_by_heart_with_parts_of_ones_own(tmp_path: Path) -> None:
    write_folder(tmp_path, {f"conf/{group}/mine.yaml": MINE[group].encode() for group in MINE})
    searched = f"hydra.searchpath=[{tmp_path}/conf]"
    note = "+callbacks.noting._target_=test_overfit.Noting"
    small = ("trainer.max_epochs=15", "data.batch_size=10")
    config = compose(
        [*SMALL, "debug=overfit", "experiment=mine", searched, note, *small], tmp_path / "run"
    )
    assert (config.choices.optimizer, config.choices.augment) == ("mine", "mine")
    metrics = train(config)
    assert len(Noting.trained) == 4 * 10  # of 150
    assert sum(Noting.validated) == metrics["train_images"] == 15 * 4 * 10
    assert metrics["test/acc"] is None
    last = read_rows(tmp_path / "run")[-1]
    assert last["train/acc"] >= 0.99
    assert last["val/acc"] >= 0.99  # the same images, not blackened


@pytest.mark.parametrize("limit", ["7", "0.5"])
def test_batches_that_are_not_there_cannot_be_the_same_ones(limit: str, tmp_path: Path) -> None:
    # Of 150 training images.
    with pytest.raises(
        UserError, match=rf"limit_train_batches={limit} is not a whole number from 1 to 6"
    ):
        train(compose([*SMALL, "debug=overfit", f"trainer.limit_train_batches={limit}"], tmp_path))
