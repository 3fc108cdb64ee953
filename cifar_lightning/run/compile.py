"""Compiles and warms up the network before the first step, outside of the training time."""

import time

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from cifar_lightning.data import ImageData
from cifar_lightning.tracking import console
from cifar_lightning.training.module import network_of

# CUDA graphs warm up in the first call, are recorded in the second and replayed in the third.
CALLS_TO_WARM_UP = 3


def compile_network(network: nn.Module, device: torch.device, graphs: bool = True) -> None:
    """Compile a network in place, so that the keys of its state dict stay the same.

    It is compiled at its next call, and again for every other input size.

    Args:
        network: to compile.
        device: of the network.
        graphs: whether to use CUDA graphs on a GPU. They launch all kernels at once, and need
            gradients to be cleared after every backward pass.
    """
    mode = "reduce-overhead" if graphs and device.type == "cuda" else "default"
    network.compile(mode=mode, dynamic=False)


class WarmUp(pl.Callback):
    """Compiles and warms up the network before the first step.

    If there is no working compiler, a warning is shown and the network is not compiled. On a GPU,
    the warm-up of a network that is not compiled lets cuDNN choose its kernels.

    Args:
        data: its batch size and image size are used.
        compiling: whether to compile.

    Attributes:
        compile_seconds: duration of compiling; None if the network was not compiled.
    """

    def __init__(self, data: ImageData, compiling: bool) -> None:
        self.data = data
        self.compiling = compiling
        self.compile_seconds: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compile, or only warm up on a GPU, for each image size of the training."""
        if self.compiling:
            self._compile(trainer, pl_module)
        elif pl_module.device.type == "cuda":
            self._run(trainer, pl_module)

    def _compile(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        network, start = network_of(pl_module), time.perf_counter()
        torch.compiler.reset()  # a process may recompile only a limited number of times
        graphs = trainer.accumulate_grad_batches == 1 and not any(
            isinstance(callback, GradientAccumulationScheduler)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
        )
        compile_network(network, pl_module.device, graphs)
        try:
            self._run(trainer, pl_module)
        except TorchDynamoException as error:
            network._compiled_call_impl = None
            lines = [line for line in str(error).splitlines() if line.strip()]
            # The first line may only be the name of the backend that failed.
            reason = next((line for line in lines if not line.startswith("backend=")), "")
            hint = " On Debian and Ubuntu: apt-get install g++." if "compiler" in reason else ""
            console.banner(
                f"trainer.compile=true failed: {reason}\n\nThe network is not compiled.{hint}",
                "Not compiled",
            )
            return
        self.compile_seconds = time.perf_counter() - start
        console.note("compiled", f"in {self.compile_seconds:.1f} s, not part of the seconds below")

    def _run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Run the network forward and backward on zeros, then restore its state."""
        network = network_of(pl_module)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        batch = self.data.batch_size // trainer.world_size
        sizes = {self.data.image_size}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            sizes.update(getattr(callback, "train_image_sizes", ()))
        try:
            for size in sizes:
                weight = next(network.parameters())
                images = torch.zeros(batch, 3, size, size, dtype=weight.dtype, device=weight.device)
                inputs = images.to(memory_format=torch.channels_last)
                for _ in range(CALLS_TO_WARM_UP):
                    with trainer.precision_plugin.train_step_context():
                        logits = network(inputs)
                    logits.float().sum().backward()
                    network.zero_grad()
        finally:
            network.zero_grad()
            network.load_state_dict(before)
