"""What a training step asks of a GPU, shown on tensors that only pretend to be on one.

Fake tensors know their shapes and devices and nothing else: whoever reads a value of theirs, for
which a GPU would have to be waited for, gets an error.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from cifar_lightning.data import ShapesData
from cifar_lightning.data.sampler import TrainSampler
from cifar_lightning.data.splits import ImageSplit
from cifar_lightning.models import DilatedDW
from cifar_lightning.training.augment import Augment
from cifar_lightning.training.callbacks import TerminateOnNaN, Throughput
from cifar_lightning.training.callbacks.grad_norm import GradientNorm
from cifar_lightning.training.callbacks.hard_examples import HardExampleReplay
from cifar_lightning.training.callbacks.mirror import MirrorSymmetry
from cifar_lightning.training.callbacks.progressive_resizing import ProgressiveResizing
from cifar_lightning.training.module import Classifier
from cifar_lightning.training.optim import Muon, linear_schedule


class Copies(TorchDispatchMode):
    """Notes every operation that has tensors on the host and on the device."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor)]
        if len({t.device.type for t in leaves}) > 1:
            self.found.append(str(func))
        return result


TRAINER = cast(
    pl.Trainer,
    SimpleNamespace(
        world_size=1,
        current_epoch=0,
        num_training_batches=100,
        global_step=0,
        estimated_stepping_batches=100,
    ),
)


def train_an_epoch(
    classifier: Classifier, part: ImageSplit, optimizer: torch.optim.Optimizer
) -> int:
    """What the Trainer has done in the steps of an epoch, without Lightning's own part."""
    mirror, norm, revisit = MirrorSymmetry(), GradientNorm(), HardExampleReplay(0.5)
    mirror._partners, mirror._index = _partners_and_index(classifier)
    nan = TerminateOnNaN(every_n_steps=2)
    watching = [revisit, Throughput(), nan]
    scheduler = linear_schedule(optimizer, 100)
    index = torch.arange(len(part))
    losses = torch.zeros(len(part))
    TRAINER.datamodule = SimpleNamespace(losses=losses)  # type: ignore[attr-defined]
    TRAINER.callbacks, TRAINER.optimizers = [norm], [optimizer]  # type: ignore[attr-defined]
    order = iter(TrainSampler(index, 16, seed=0, replay=0.5, losses=losses))
    chosen: Tensor | None = next(order)  # the epoch's permutations are copied before its first step
    with Copies() as copies:
        steps = 0
        while chosen is not None:
            batch = part[chosen]
            ProgressiveResizing(24, 0.5).on_train_batch_start(TRAINER, classifier, batch, steps)
            nan.on_train_batch_start(TRAINER, classifier, batch, steps)
            outputs = classifier.training_step(batch, steps)
            assert isinstance(outputs["loss"], Tensor)
            # Instead of `loss.backward()`, which is PyTorch's own and wants a real GPU.
            for weight in classifier.network.parameters():
                weight.grad = torch.empty_like(weight)
            mirror.on_before_optimizer_step(TRAINER, classifier, optimizer)
            norm.on_before_optimizer_step(TRAINER, classifier, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            for callback in watching:
                callback.on_train_batch_end(TRAINER, classifier, outputs, batch, steps)
            steps += 1
            chosen = next(order, None)
    assert copies.found == []
    return steps


def _partners_and_index(classifier: Classifier) -> tuple[Tensor, Tensor]:
    count = sum(p.numel() for p in classifier.network.parameters())
    return torch.arange(32), torch.arange(count)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "muon": Muon,
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
}


def pretend_to_be_on_a_gpu(classifier: Classifier) -> None:
    """`classifier.to("cuda")` inside of a FakeTensorMode, which modules cannot do themselves."""

    def fake(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")

    for module in classifier.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(fake(parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake(buffer)
        for name in module._defaults if isinstance(module, Metric) else ():
            state = getattr(module, name)
            if isinstance(state, Tensor):  # else a list, empty before the first update
                setattr(module, name, fake(state))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_copies_nothing_from_the_host_and_reads_nothing_back(name: str) -> None:
    classifier = Classifier(
        DilatedDW(),
        classes=[str(n) for n in range(10)],
        image_size=32,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        optimizer=OPTIMIZERS[name],
        scheduler=linear_schedule,
        augment=Augment(shift=2, flip="alternating", cutout=8),
        label_smoothing=0.1,
    )
    with FakeTensorMode(), torch.device("cuda"):
        pretend_to_be_on_a_gpu(classifier)
        optimizer = OPTIMIZERS[name](classifier.network.parameters())
        images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
        part = ImageSplit(images, torch.zeros(64, dtype=torch.int64))
        # 64 images, then the hardest 32 again.
        assert train_an_epoch(classifier, part, optimizer) == 6


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
