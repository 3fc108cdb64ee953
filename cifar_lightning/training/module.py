"""The LightningModule: network, loss, optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cifar_lightning.training.augment import cutmix, scale
from cifar_lightning.training.distillation import Teacher
from cifar_lightning.training.metrics import Guesses, Scores, Tested

Batch = tuple[Tensor, Tensor, Tensor]
"""Images uint8 [N, 3, H, W], labels int64 [N], index int64 [N]."""


class Classifier(pl.LightningModule):
    """Classifies uint8 images; normalisation is part of it, so a checkpoint needs no preprocessing.

    Logs once a validation, or once an epoch where there is none: `train/loss` and `train/acc`
    (since the last time, on augmented images, the loss smoothed), `val/loss`, `val/acc` and `lr`;
    on the test images `test/loss` and `test/acc`.

    Args:
        network: maps normalised images [N, 3, H, W] to logits [N, classes].
        classes: class names.
        image_size: height and width, in pixels, of the images that it is for.
        mean, std: of the training images by channel, on the scale 0 to 1.
        optimizer: makes the optimizer from the network's parameters.
        scheduler: makes the schedule, stepped once an optimizer step, from the optimizer and the
            number of steps.
        augment: from images (uint8), index, epoch and a generator, to images; training only.
        label_smoothing: share of the target spread evenly over the classes in training.
        cutmix: probability that a training image gets a part of another one, see `cutmix`; its
            loss is the mean of those on both labels, by their shares of the pixels, and
            `train/acc` is that on its own.
        seed: of the augmentation.

    Attributes:
        train_size: pixels, height and width, that training steps scale their images to; None for
            no scaling.
        tested: what the last test took each image for; None before it.
        teacher: whose answers training learns too; None for the labels alone. Checkpoints are
            without it.

    Raises:
        ValueError: if `label_smoothing` or `cutmix` is not in [0, 1].
    """

    def __init__(
        self,
        network: nn.Module,
        classes: Sequence[str],
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        augment: Callable[[Tensor, Tensor, int, torch.Generator], Tensor],
        label_smoothing: float = 0.0,
        cutmix: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be from 0 to 1, not {label_smoothing}")
        if not 0 <= cutmix <= 1:
            raise ValueError(f"cutmix must be from 0 to 1, not {cutmix}")
        # Convolutions are about twice as fast in this layout, on CPUs and tensor cores alike.
        self.network = network.to(memory_format=torch.channels_last)
        self.classes = tuple(classes)
        self.image_size = image_size
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.augment = augment
        self.label_smoothing = label_smoothing
        self.cutmix = cutmix
        self.seed = seed
        self.train_size: int | None = None
        self.fit_scores = Scores(len(classes))
        self.val_scores = Scores(len(classes))
        self.test_scores = Scores(len(classes))
        self.test_guesses = Guesses()
        self.tested: Tested | None = None
        self.teacher: Teacher | None = None
        self._random_state: dict[str, Tensor] | None = None

    def on_fit_start(self) -> None:
        """Have the teacher, which is no part of this module, on the same device."""
        if self.teacher is not None:
            self.teacher.classifier.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what a training that goes on within an epoch needs beside Lightning's own."""
        checkpoint["fit_scores"] = self.fit_scores.counted()
        # For layers such as dropout; the steps' own randomness comes from their numbers.
        checkpoint["random_state"] = _random_state(self.device)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back; earlier versions have saved nothing of it."""
        if self.trainer.is_global_zero:  # of all devices together
            self.fit_scores.go_on_from(checkpoint.get("fit_scores", {}))
        self._random_state = checkpoint.get("random_state")

    def on_train_start(self) -> None:
        """Set the generators last: what comes before may have drawn from them."""
        if self._random_state is not None:
            _set_random_state(self._random_state, self.device)
            self._random_state = None

    def normalise(self, images: Tensor) -> Tensor:
        """From uint8 to zero mean and unit variance by channel; channels_last, in its dtype."""
        normalised = (images / 255 - self.mean) / self.std
        return normalised.to(self.mean.dtype, memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images uint8 [N, 3, H, W]."""
        logits: Tensor = self.network(self.normalise(images))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor | int]:
        """The loss of one augmented batch: smoothed cross-entropy, and the teacher's share.

        Returns:
            `loss`, its mean; `losses` [N]; and `image_size`, in pixels, that the network saw.
        """
        images, labels, index = batch
        generator = self._generator(batch_idx)
        images = self.augment(images, index, self.current_epoch, generator)
        others: Tensor | None = None
        if self.cutmix:
            images, others, kept = cutmix(images, self.cutmix, generator)
        inputs = self.normalise(images)
        if self.train_size is not None:
            inputs = scale(inputs, self.train_size)
        logits = self.network(inputs)
        losses = self._smoothed(logits, labels)
        if others is not None:
            losses = kept * losses + (1 - kept) * self._smoothed(logits, labels[others])
        if self.teacher is not None:
            losses = self.teacher.losses(images, logits, losses)
        loss = losses.mean()
        # Kept on the device: reading a value here would make the GPU wait at every step.
        self.fit_scores.update(loss.detach(), logits.detach(), labels)
        return {"loss": loss, "losses": losses.detach(), "image_size": inputs.shape[-1]}

    def _smoothed(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropies [N]."""
        return F.cross_entropy(
            logits, labels, label_smoothing=self.label_smoothing, reduction="none"
        )

    def _generator(self, batch_idx: int) -> torch.Generator:
        """The randomness of one step, from what the step is alone, so that it survives a resume."""
        step = (self.seed % 2**32, self.current_epoch, batch_idx, self.global_rank)
        return torch.Generator(self.device).manual_seed(hash(step))

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Count one validation batch; returns its logits [N, classes], for callbacks."""
        return self._evaluate(batch, self.val_scores)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Count one test batch; returns its logits [N, classes], for callbacks."""
        logits = self._evaluate(batch, self.test_scores)
        self.test_guesses.update(batch[2], logits)
        return logits

    def _evaluate(self, batch: Batch, scores: Scores) -> Tensor:
        """Count a batch; returns its logits [N, classes]."""
        images, labels, _ = batch
        if not len(images):
            # Other devices have the last batches, and some networks take no empty ones.
            return self.mean.new_empty(0, len(self.classes))
        # Compiling pays in training; each size of batch that comes here would be compiled anew.
        with torch.compiler.set_stance("force_eager"):
            logits: Tensor = self(images)
        scores.update(F.cross_entropy(logits.float(), labels, reduction="none"), logits, labels)
        return logits

    def on_validation_epoch_end(self) -> None:
        """Log training and validation together, so that they share a row and a step."""
        self._log("val", self.val_scores)
        # Not in a validation of its own, nor in Lightning's before the first step.
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._log_training()

    def on_train_epoch_end(self) -> None:
        """Log training alone where there is no validation to log it with."""
        if not self.trainer.enable_validation:
            self._log_training()

    def on_test_epoch_end(self) -> None:
        """Log the test figures."""
        self._log("test", self.test_scores)
        rows = self.test_guesses.compute().cpu()
        index, guesses, confidences = rows[rows[:, 0].argsort()].unbind(1)
        self.tested = Tested(index.long(), guesses.long(), confidences)
        self.test_guesses.reset()

    def _log_training(self) -> None:
        self._log("train", self.fit_scores)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def _log(self, part: str, scores: Scores) -> None:
        self.log(f"{part}/loss", scores.loss.compute())
        self.log(f"{part}/acc", scores.accuracy.compute())
        scores.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over the network's parameters and its schedule over the whole training."""
        optimizer = self.make_optimizer(self.network.parameters())
        scheduler = self.make_scheduler(optimizer, int(self.trainer.estimated_stepping_batches))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """Of PyTorch's own generators: the CPU's, and that of a GPU."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else state


def _set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
