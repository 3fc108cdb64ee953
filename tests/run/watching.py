"""Classes for the configurations of tests with several processes: `watching.CLASS`."""

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


def digest_of_weights(module: Any) -> str:
    digest = hashlib.sha256()
    for name, value in module.network.state_dict().items():
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


class Spy(pl.Callback):
    """Writes what its process saw and has to a file of its own."""

    def __init__(self, folder: str) -> None:
        self.file = folder
        self.seen: dict[str, Any] = {"epochs": [], "val/acc": []}

    def on_train_epoch_start(self, *_: Any) -> None:
        self.seen["epochs"].append([])

    def on_train_batch_end(self, *arguments: Any) -> None:
        _, _, _, (_, _, index), _ = arguments
        self.seen["epochs"][-1].append(index.tolist())

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.seen["val/acc"].append(trainer.callback_metrics["val/acc"].item())

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.seen["trained"] = digest_of_weights(module)
        self.seen["best"] = trainer.checkpoint_callback.best_model_path

    def on_test_end(self, trainer: Any, module: Any) -> None:
        self.seen["tested"] = digest_of_weights(module)
        self.seen["test/acc"] = trainer.callback_metrics["test/acc"].item()
        self.seen["tested images"] = module.test_predictions.index.tolist()
        self.seen["predictions"] = module.test_predictions.predictions.tolist()
        Path(f"{self.file}-{trainer.global_rank}.json").write_text(json.dumps(self.seen))


class Plan(pl.Callback):
    """Rank 1 is right about all its images from the first epoch on, rank 0 from the second."""

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        right = trainer.current_epoch + trainer.global_rank >= 1
        labels = torch.arange(10) if right else (torch.arange(10) + 1) % 10
        module.val_scores.accuracy.reset()
        module.val_scores.accuracy.update(torch.eye(10), labels)


class Late(pl.Callback):
    """Tells rank 1 to stop after its last step of two epochs."""

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)


class WithoutNorm(nn.Module):
    """A network without batch norm, which takes no batch of no images."""

    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 5, stride=4)
        self.linear = nn.Linear(8 * 7 * 7, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.convolution(images).relu()
        logits: Tensor = self.linear(maps.reshape(len(maps), -1))
        return logits
