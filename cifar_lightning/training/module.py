"""The LightningModule: network, loss, training step, optimizer."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cifar_lightning.errors import UserError
from cifar_lightning.models.blocks import normalise
from cifar_lightning.system.derive_seed import derive_seed
from cifar_lightning.training.augment import cutmix, scale
from cifar_lightning.training.metrics import Predictions, Scores, TestPredictions

Batch = tuple[Tensor, Tensor, Tensor]
"""Images uint8 [N, 3, H, W], labels int64 [N], index int64 [N]."""


class DistillationLoss(Protocol):
    """The interface of `training.distillation.Distillation`, which can be deleted."""

    teacher: nn.Module
    name: str  # of the teacher's network

    def losses(self, images: Tensor, logits: Tensor, losses: Tensor) -> Tensor:
        """Combine the losses on the labels with the teacher's part, [N]."""


def network_of(module: pl.LightningModule) -> nn.Module:
    """The network of a LightningModule: what evaluate, predict and export read of a checkpoint."""
    return cast(nn.Module, module.network)


def test_predictions_of(module: pl.LightningModule) -> TestPredictions | None:
    """The predictions of the last test; None before it, or if a module does not offer them."""
    found = getattr(module, "test_predictions", None)
    return found if isinstance(found, TestPredictions) else None


def classifier_of(
    network: nn.Module,
    classes: Sequence[str],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> "Classifier":
    """A classifier of a network for inference; the arguments are those of `Classifier`."""
    return Classifier(
        *(network, classes, image_size, mean, std),
        optimizer=_not_for_training,
        scheduler=_not_for_training,
        augment=_not_for_training,
    )


def _not_for_training(*_: Any) -> NoReturn:
    raise UserError("A rebuilt classifier is for inference; resume=PATH trains it further.")


class Classifier(pl.LightningModule):
    """Trains and evaluates a network on uint8 images, which it normalises itself.

    At each validation, or at the end of each epoch if there is none, it logs `train/loss`, the loss
    that is minimised, `train/acc`, on augmented images (both as means since it last logged), and
    `lr`, the learning rate of the last step. A validation also logs `val/loss` and `val/acc`; a
    test logs `test/loss` and `test/acc`.

    Args:
        network: maps normalised images [N, 3, H, W] to logits [N, classes].
        classes: class names.
        image_size: height and width of the images in pixels.
        mean, std: of the training images per channel, on the scale 0 to 1.
        optimizer: makes the optimizer from the network's parameters.
        scheduler: makes the learning-rate schedule from the optimizer and the number of steps; it
            is stepped after every optimizer step.
        augment: maps images (uint8), index, epoch and a generator to images; used in training only.
        loss: maps logits [N, classes] and labels [N] to the loss of each image, [N], or to their
            mean; used in training only. None for the cross-entropy.
        cutmix: probability that a training image is mixed with another one, see `augment.cutmix`.
            Its loss is the mean of the losses on both labels, weighted by their fractions of the
            pixels, so `loss` has to be of each image; `train/acc` counts the image's own label.
        seed: of the augmentation.

    Attributes:
        train_image_size: height and width in pixels to which training steps scale the images;
            None for no scaling.
        test_predictions: predictions of the last test; None before it.
        distillation: adds a teacher's part to the loss; None to train on the labels alone.
            Checkpoints do not contain it.

    Raises:
        ValueError: if `cutmix` is not in [0, 1].
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
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        cutmix: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= cutmix <= 1:
            raise ValueError(f"cutmix must be from 0 to 1, not {cutmix}")
        # Convolutions are about twice as fast in this layout, on CPUs and on tensor cores.
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
        self.loss = nn.CrossEntropyLoss(reduction="none") if loss is None else loss
        self.cutmix = cutmix
        self.seed = seed
        self.train_image_size: int | None = None
        self.fit_scores = Scores(len(classes))
        self.val_scores = Scores(len(classes))
        self.test_scores = Scores(len(classes))
        self.test_outputs = Predictions()
        self.test_predictions: TestPredictions | None = None
        self.distillation: DistillationLoss | None = None
        self._step_lr = math.nan  # before the first step
        self.schedule_steps = 0  # length of the learning-rate schedule

    def on_fit_start(self) -> None:
        """Move the teacher, which is not a submodule, to the device."""
        if self.distillation is not None:
            self.distillation.teacher.to(self.device)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Store the learning rate of the step that was taken, and set that of the next one."""
        self._step_lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        super().lr_scheduler_step(scheduler, metric)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what a resume within an epoch needs."""
        checkpoint["fit_scores"] = self.fit_scores.counts()
        checkpoint["step_lr"] = self._step_lr
        checkpoint["schedule_steps"] = self.schedule_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the training scores and the learning rate."""
        if self.trainer.is_global_zero:  # the counts are already summed over all devices
            self.fit_scores.restore(checkpoint["fit_scores"])
        self._step_lr = checkpoint.get("step_lr", math.nan)

    def on_train_start(self) -> None:
        """Read the learning rate of the first step."""
        if math.isnan(self._step_lr):
            self._step_lr = self.trainer.optimizers[0].param_groups[0]["lr"]

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images uint8 [N, 3, H, W], to the module's dtype, in channels_last."""
        normalised = normalise(images, self.mean, self.std)
        return normalised.to(self.mean.dtype, memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images uint8 [N, 3, H, W]."""
        logits: Tensor = self.network(self.normalise(images))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor | int]:
        """Augment a batch and compute its loss, with a teacher's part if there is a teacher.

        Before this, the sampler chooses the indices of the batch, and `ImageSplit` takes the uint8
        images from memory. After this, Lightning calls in this order: `backward`, the callbacks
        that read or change gradients (`on_before_optimizer_step`), the optimizer, the schedule, and
        the callbacks' `on_train_batch_end`.

        Returns:
            `losses` [N]; `loss`, their mean; and `image_size`, of the network's inputs in pixels.
            `losses` is the mean alone if `loss` of the constructor returns no more.
        """
        images, labels, index = batch
        generator = self._generator(batch_idx)
        images = self.augment(images, index, self.current_epoch, generator)
        others: Tensor | None = None
        if self.cutmix:
            images, others, kept = cutmix(images, self.cutmix, generator)
        inputs = self.normalise(images)
        if self.train_image_size is not None:
            inputs = scale(inputs, self.train_image_size)
        logits = self.network(inputs)
        losses = self.loss(logits, labels)
        if others is not None:
            losses = kept * losses + (1 - kept) * self.loss(logits, labels[others])
        if self.distillation is not None:
            losses = self.distillation.losses(images, logits, losses)
        loss = losses.mean()
        # Kept on the device: reading a value here would make the GPU wait at every step.
        self.fit_scores.update(loss.detach(), logits.detach(), labels)
        return {"loss": loss, "losses": losses.detach(), "image_size": inputs.shape[-1]}

    def _generator(self, batch_idx: int) -> torch.Generator:
        """A generator seeded by the step alone, so that a resume draws the same numbers."""
        seed = derive_seed(self.seed, self.current_epoch, batch_idx, self.global_rank)
        return torch.Generator(self.device).manual_seed(seed)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Evaluate a validation batch; returns its logits [N, classes], for callbacks."""
        return self._evaluate(batch, self.val_scores)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Evaluate a test batch; returns its logits [N, classes], for callbacks."""
        logits = self._evaluate(batch, self.test_scores)
        self.test_outputs.update(batch[2], logits)
        return logits

    def _evaluate(self, batch: Batch, scores: Scores) -> Tensor:
        """Add a batch to the scores; returns its logits [N, classes]."""
        images, labels, _ = batch
        if not len(images):
            # Other devices have the last batches, and some networks refuse an empty one.
            return self.mean.new_empty(0, len(self.classes))
        # Not compiled, because the network would be compiled again for each batch size.
        with torch.compiler.set_stance("force_eager"):
            logits: Tensor = self(images)
        scores.update(F.cross_entropy(logits.float(), labels, reduction="none"), logits, labels)
        return logits

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of training and validation together, in one row of metrics.csv."""
        self._log("val", self.val_scores)
        # Neither in Trainer.validate nor in Lightning's validation before the first step.
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._log_training()

    def on_train_epoch_end(self) -> None:
        """Log the training metrics if there is no validation to log them with."""
        if not self.trainer.enable_validation:
            self._log_training()

    def on_test_epoch_end(self) -> None:
        """Log the test metrics and keep the predictions."""
        self._log("test", self.test_scores)
        rows = self.test_outputs.compute().cpu()
        index, predictions, confidences = rows[rows[:, 0].argsort()].unbind(1)
        self.test_predictions = TestPredictions(index.long(), predictions.long(), confidences)
        self.test_outputs.reset()

    def _log_training(self) -> None:
        self._log("train", self.fit_scores)
        self.log("lr", self._step_lr)

    def _log(self, split: str, scores: Scores) -> None:
        self.log(f"{split}/loss", scores.loss.compute())
        self.log(f"{split}/acc", scores.accuracy.compute())
        scores.reset()

    def trained_weights(self) -> list[nn.Parameter]:
        """The network's weights, and those of the loss, if it has any."""
        of_loss = self.loss.parameters() if isinstance(self.loss, nn.Module) else []
        return [*self.network.parameters(), *of_loss]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Make the optimizer of the trained weights and its learning-rate schedule.

        The schedule ends at `max_epochs`, even if another limit ends the training earlier. So a run
        that was ended by `max_steps` can be resumed with a higher limit.
        """
        optimizer = self.make_optimizer(self.trained_weights())
        trainer = self.trainer
        _ = trainer.estimated_stepping_batches  # reading it makes Lightning count the batches
        assert trainer.max_epochs is not None
        accumulated = [trainer.accumulate_grad_batches] * trainer.max_epochs  # by epoch
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                accumulated = [
                    callback.get_accumulate_grad_batches(epoch) for epoch in range(len(accumulated))
                ]
        steps = sum(math.ceil(trainer.num_training_batches / n) for n in accumulated)
        self.schedule_steps = steps
        scheduler = self.make_scheduler(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }
