"""The operations of a training step on a GPU, tested with fake tensors."""

from types import SimpleNamespace
from typing import cast

import pytest
import pytorch_lightning as pl
import torch
from fake_gpu import copies_of_an_epoch

from cifar_lightning.data import ShapesData
from cifar_lightning.training.callbacks import TerminateOnNaN, Throughput


def test_a_step_copies_nothing_from_the_host_and_reads_nothing_back() -> None:
    callbacks = (Throughput(), TerminateOnNaN(every_n_steps=2))
    assert copies_of_an_epoch(*callbacks) == ([], 4)


def test_batches_come_from_where_the_work_is_done() -> None:
    data = ShapesData(train_size=100, test_size=20, val_size=20, batch_size=10)
    data.setup()
    here = next(iter(data.train_dataloader()))
    elsewhere = torch.device("meta")
    strategy = SimpleNamespace(root_device=elsewhere)
    data.trainer = cast(pl.Trainer, SimpleNamespace(strategy=strategy, global_rank=0, world_size=1))
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        assert [t.device for t in batch] == [elsewhere] * 3
        assert [t.shape for t in batch] == [t.shape for t in here]
    assert data.train.images.device.type == "cpu"


def test_images_that_would_fill_a_gpu_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    data = ShapesData(train_size=100, test_size=20, val_size=20, batch_size=10)
    data.setup()
    strategy = SimpleNamespace(root_device=torch.device("cuda"))
    data.trainer = cast(pl.Trainer, SimpleNamespace(strategy=strategy, global_rank=0, world_size=1))
    size = data.train.images.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (size, 10 * size))
    assert next(iter(data.train_dataloader()))[0].device.type == "cpu"
