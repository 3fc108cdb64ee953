"""A training step on fake tensors of a GPU.

Fake tensors have shapes and devices but no values. Reading a value, which on a GPU would wait for
the computation, raises an error.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from cifar_lightning.data.sampler import TrainSampler
from cifar_lightning.data.splits import ImageSplit
from cifar_lightning.models import DilatedDW
from cifar_lightning.training.augment import Augment
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


def copies_of_an_epoch(*callbacks: pl.Callback, replay: float = 0.0) -> tuple[list[str], int]:
    """Take the steps of an epoch as the Trainer does, without Lightning's own part.

    Args:
        *callbacks: those whose hooks of a step are called.
        replay: the share of the images that comes a second time.

    Returns:
        The operations on tensors of the host and the device together, and the number of steps.
    """
    classifier = Classifier(
        DilatedDW(),
        classes=[str(n) for n in range(10)],
        image_size=32,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        optimizer=Muon,
        scheduler=linear_schedule,
        augment=Augment(shift=2, flip="alternating", cutout=8),
        loss=nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none"),
    )
    with FakeTensorMode(), torch.device("cuda"):
        pretend_to_be_on_a_gpu(classifier)
        made = Muon(classifier.network.parameters())
        images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
        split = ImageSplit(images, torch.zeros(64, dtype=torch.int64))
        return _train_an_epoch(classifier, split, made, callbacks, replay)


def _train_an_epoch(
    classifier: Classifier,
    split: ImageSplit,
    optimizer: torch.optim.Optimizer,
    callbacks: Sequence[pl.Callback],
    replay: float,
) -> tuple[list[str], int]:
    scheduler = linear_schedule(optimizer, 100)
    index = torch.arange(len(split))
    losses = torch.zeros(len(split))
    TRAINER.datamodule = SimpleNamespace(losses=losses)  # type: ignore[attr-defined]
    TRAINER.callbacks, TRAINER.optimizers = [*callbacks], [optimizer]  # type: ignore[attr-defined]
    order = iter(TrainSampler(index, 16, seed=0, replay=replay, losses=losses))
    chosen: Tensor | None = next(order)  # the epoch's permutations are copied before its first step
    with Copies() as copies:
        steps = 0
        while chosen is not None:
            batch = split[chosen]
            for callback in callbacks:
                callback.on_train_batch_start(TRAINER, classifier, batch, steps)
            outputs = classifier.training_step(batch, steps)
            assert isinstance(outputs["loss"], Tensor)
            # Instead of `loss.backward()`, which is PyTorch's own and wants a real GPU.
            for weight in classifier.network.parameters():
                weight.grad = torch.empty_like(weight)
            for callback in callbacks:
                callback.on_before_optimizer_step(TRAINER, classifier, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            for callback in callbacks:
                callback.on_train_batch_end(TRAINER, classifier, outputs, batch, steps)
            steps += 1
            chosen = next(order, None)
    return copies.found, steps
