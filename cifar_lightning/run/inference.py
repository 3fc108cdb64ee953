"""Computes a classifier's logits on the device and in the precision of its training."""

import math
from collections.abc import Callable
from typing import Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from cifar_lightning.errors import UserError
from cifar_lightning.run.devices import choose_devices, choose_precision, keep_freed_memory
from cifar_lightning.training.module import Classifier

ONE_DEVICE = (
    "This command uses one device: trainer.gpus=1, or a GPU by its number, as trainer.gpus=[0]."
)


class Inference:
    """Runs a classifier as the Trainer does in a test, so that it gives the same logits.

    Args:
        classifier: moved to the device, converted to the precision, and put into evaluation mode.
        gpus: see `run.devices.choose_devices`; one device.
        precision: `auto` or a name of Lightning's.
        deterministic: of the Trainer.

    Attributes:
        classifier: as given.
        device: of the classifier.
        precision: Lightning's name.

    Raises:
        UserError: if there is no such device or precision.
    """

    def __init__(
        self,
        classifier: Classifier,
        gpus: str | int | list[int],
        precision: str | int | None,
        deterministic: bool | Literal["warn"] | None = False,
    ) -> None:
        accelerator, devices = choose_devices(gpus, torch.cuda.device_count(), 1, ONE_DEVICE)
        if precision == "auto":
            precision = choose_precision(accelerator, devices)
        try:
            trainer = pl.Trainer(
                accelerator=accelerator,
                devices=devices,
                precision=precision,  # type: ignore[arg-type]
                # As in `run.build_trainer`, because other kernels would round differently.
                deterministic=deterministic,
                benchmark=not deterministic,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
        except (ValueError, MisconfigurationException) as error:
            raise UserError(f"trainer.precision={precision}: {error}") from error
        self.device = trainer.strategy.root_device
        self.precision = str(trainer.precision)
        if accelerator == "cpu":
            keep_freed_memory()
        self._plugin = trainer.precision_plugin
        self.classifier = classifier.eval().to(self.device)
        self._plugin.convert_module(self.classifier)

    @torch.inference_mode()
    def logits(
        self,
        images: Tensor,
        batch_size: int,
        flip: bool = False,
        advance: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Compute the logits of images.

        Args:
            images: uint8 [N, 3, H, W], on any device, with N from 1.
            batch_size: images at a time; the last digits of logits depend on it.
            flip: whether to average the softmax outputs of each image and its mirror image
                (test-time augmentation); the result is then log probabilities.
            advance: called after each batch with its number of images.

        Returns:
            float32 [N, classes], on the CPU.
        """
        found = []
        for batch in images.split(batch_size):
            found.append(self._logits(batch.to(self.device), flip))
            if advance is not None:
                advance(len(batch))
        return torch.cat(found).cpu()

    def _logits(self, images: Tensor, flip: bool) -> Tensor:
        with self._plugin.forward_context():
            logits: Tensor = self.classifier(images).float()  # [N, classes]
            if not flip:
                return logits
            mirrored = self.classifier(images.flip(-1)).float()
        both = torch.stack([logits.log_softmax(1), mirrored.log_softmax(1)])  # [2, N, classes]
        return both.logsumexp(0) - math.log(2)
