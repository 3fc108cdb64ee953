"""What the board gets of a run beside its metrics: what it is, and what came out on the test."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from torch import Tensor

from cifar_lightning import measures, pictures
from cifar_lightning.board import BoardLogger
from cifar_lightning.board.source import code_state
from cifar_lightning.budget import Budget
from cifar_lightning.callbacks import TargetReached
from cifar_lightning.classifier import Classifier
from cifar_lightning.data import ImageData

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
    boards = [logger for logger in loggers if isinstance(logger, BoardLogger)]
    if not boards:
        return
    code = code_state()
    target = callbacks.get("target")
    for board in boards:
        board.log_hyperparams(OmegaConf.to_container(config, resolve=True))
        board.log_hyperparams({"network": dataclasses.asdict(budget)})
        board.log_code(code)
        if (
            isinstance(target, TargetReached)
            and target.target is not None
            and target.threshold is not None
        ):
            board.log_reference(
                {"target_accuracy": target.target, "target_val_acc": target.threshold}
            )


def conclude(
    config: DictConfig,
    classifier: Classifier,
    data: ImageData,
    checkpoint: Callback,
    metrics: dict[str, Any],
    loggers: list[Logger],
) -> None:
    """Put the figures, what the test found by class and by image, and the weights on the board.

    Args:
        config: the run's; the pictures in its folder are taken as they are.
        classifier: after the test, if there was one.
        data: that it was tested on.
        checkpoint: the ModelCheckpoint that kept the best weights.
        metrics: the run's, as in `metrics.json`.
        loggers: the boards among them are told.
    """
    assert isinstance(checkpoint, ModelCheckpoint)
    figures = Path(config.run_dir, "figures")
    title = f"{metrics['model']} on {metrics['data']}, seed {metrics['seed']}"
    for board in loggers:
        if isinstance(board, BoardLogger):
            board.log_summary(metrics)
            mistakes = None
            if classifier.tested is not None and len(classifier.tested):
                mistakes = _show_test(classifier.tested, data, figures, title, board)
            board.log_pictures({path.stem: path for path in sorted(figures.glob("*.png"))})
            # From here on W&B asks its server, and waits where there is none.
            if mistakes is not None:
                board.log_images("mistakes", *mistakes)
            if checkpoint.best_model_path:
                board.log_checkpoint(Path(checkpoint.best_model_path), metrics)


def _show_test(
    tested: Tensor, data: ImageData, figures: Path, title: str, board: BoardLogger
) -> tuple[NDArray[np.uint8], Sequence[str], list[list[Any]]] | None:
    """Draw and log what holds for classes; returns the mistakes for `BoardLogger.log_images`."""
    index, guesses = tested[:, 0].long(), tested[:, 1].long()  # [N], [N]
    confidences, labels = tested[:, 2], data.test.labels[index]
    matrix = measures.confusion_matrix(guesses, labels, len(data.classes))
    accuracies = measures.class_accuracies(matrix)
    by_class = dict(zip(data.classes, accuracies, strict=True))
    board.log_summary({f"test/acc_by_class/{name}": acc for name, acc in by_class.items()})
    title = f"{title}: {(guesses == labels).float().mean():.2%} test accuracy"
    for name, figure in (
        ("confusion_matrix", pictures.confusion_matrix(matrix.numpy(), data.classes, title)),
        ("class_accuracies", pictures.class_accuracies(by_class, title)),
    ):
        pictures.save_png(figure, figures / f"{name}.png")
    wrong = measures.confident_mistakes(guesses, confidences, labels, MISTAKES)
    rows = [
        [data.classes[label], data.classes[guess], round(confidence, 4), place]
        for label, guess, confidence, place in zip(
            labels[wrong.index].tolist(),
            wrong.guesses.tolist(),
            wrong.confidences.tolist(),
            index[wrong.index].tolist(),
            strict=True,
        )
    ]
    if not rows:
        return None
    images = data.test.images[index[wrong.index]].permute(0, 2, 3, 1)  # [M, H, W, 3]
    large = images.repeat_interleave(ENLARGED, 1).repeat_interleave(ENLARGED, 2)
    return large.numpy(), ("label", "prediction", "confidence", "test image"), rows
