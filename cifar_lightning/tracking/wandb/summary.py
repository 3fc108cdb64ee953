"""What the board gets of a run beside its metrics: what it is, and what came out on the test."""

import dataclasses
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger

from cifar_lightning.data import ImageData
from cifar_lightning.models.budget import Budget
from cifar_lightning.tracking.wandb import BoardLogger
from cifar_lightning.training import measures
from cifar_lightning.training.callbacks import TargetReached
from cifar_lightning.training.metrics import Tested
from cifar_lightning.training.module import Classifier

MISTAKES = 100  # in the table, the most confident ones
ENLARGED = 4  # times: 32 pixels are a small cell of a table


def introduce(
    config: DictConfig, budget: Budget, callbacks: dict[str, Callback], loggers: list[Logger]
) -> None:
    """Put the configuration, the network's counts, the code and the target on the board.

    Args:
        config: the run's.
        budget: of the network.
        callbacks: by name; `target` is read.
        loggers: the boards among them are told.
    """
    target = callbacks.get("target")
    settings: Any = OmegaConf.to_container(config, resolve=True)
    for board in loggers:
        if not isinstance(board, BoardLogger):
            continue
        board.log_hyperparams(settings | {"network": dataclasses.asdict(budget)})
        board.log_code()
        if (
            isinstance(target, TargetReached)
            and target.target is not None
            and target.threshold is not None
        ):
            board.log_reference(
                {"target_accuracy": target.target, "target_val_acc": target.threshold}
            )


def conclude(
    classifier: Classifier,
    data: ImageData,
    checkpoint: Callback,
    metrics: dict[str, Any],
    figures: dict[str, Path],
    loggers: list[Logger],
) -> None:
    """Put the figures, what the test found by class and by image, and the weights on the board.

    Args:
        classifier: after the test, if there was one.
        data: that it was tested on.
        checkpoint: the ModelCheckpoint that kept the best weights.
        metrics: the run's, as in `metrics.json`.
        figures: the run's pictures, by name.
        loggers: the boards among them are told.
    """
    assert isinstance(checkpoint, ModelCheckpoint)
    for board in loggers:
        if not isinstance(board, BoardLogger):
            continue
        board.log_summary(metrics)
        tested = classifier.tested
        if tested is not None:
            labels = data.test.labels[tested.index]
            matrix = measures.confusion_matrix(tested.guesses, labels, len(data.classes))
            by_class = zip(data.classes, measures.class_accuracies(matrix), strict=True)
            board.log_summary({f"test/acc_by_class/{name}": acc for name, acc in by_class})
        board.log_pictures(figures)
        # From here on W&B asks its server, and waits where there is none.
        if tested is not None:
            _show_mistakes(tested, data, board)
        if checkpoint.best_model_path:
            board.log_checkpoint(Path(checkpoint.best_model_path), metrics)


def _show_mistakes(tested: Tested, data: ImageData, board: BoardLogger) -> None:
    """A table of the most confident ones, with their images."""
    labels = data.test.labels[tested.index]  # [N]
    wrong = measures.confident_mistakes(tested.guesses, tested.confidences, labels, MISTAKES)
    if not len(wrong.index):
        return
    places = tested.index[wrong.index]  # [M], among the test images
    rows = [
        [data.classes[label], data.classes[guess], round(confidence, 4), number]
        for label, guess, confidence, number in zip(
            labels[wrong.index].tolist(),
            wrong.guesses.tolist(),
            wrong.confidences.tolist(),
            places.tolist(),
            strict=True,
        )
    ]
    images = data.test.images[places].permute(0, 2, 3, 1)  # [M, H, W, 3]
    large = images.repeat_interleave(ENLARGED, 1).repeat_interleave(ENLARGED, 2)
    columns = ("label", "prediction", "confidence", "test image")
    board.log_images("mistakes", large.numpy(), columns, rows)
