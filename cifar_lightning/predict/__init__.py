"""Classifies image files: `python -m cifar_lightning.predict checkpoint=PATH images=PATH`.

On two cores, 10,000 CIFAR-10 files take 10 s, and 10,000 photographs of 1200 x 900 pixels 22 s:
benchmarks/results/2026-11-24-predict.md.
"""

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cifar_lightning.cli import entry


def predict(config: DictConfig) -> dict[str, Any]:
    """Classify images of any format and size; write a table and a contact sheet.

    Args:
        config: of conf/predict.yaml, as `config.compose.compose` gives it.

    Returns:
        `images`: number of images that were classified. `broken`: why images could not be read, by
        path. `left_out`: number of files that are not images. `images_per_s`. `output` and
        `contact_sheet`: paths of the files that were written.

    Raises:
        UserError: for a mistake that the user can fix, or if no image could be read. Nothing is
            written then.
    """
    # Imported here, so that `--help` and a mistyped option are answered at once.
    from cifar_lightning import run
    from cifar_lightning.checkpoints.io import find_checkpoint
    from cifar_lightning.config import validate
    from cifar_lightning.data.decode import find_images
    from cifar_lightning.errors import UserError
    from cifar_lightning.predict import classify, predictions
    from cifar_lightning.run.inference import Inference

    validate.check_keys(config, "predict")
    kinds = {"images": str | None, "output": str | None, "batch_size": int}
    validate.check_values("", kinds, config)
    if config.batch_size < 1:
        raise UserError(f"batch_size={config.batch_size} is invalid: it must be at least 1.")
    found = find_checkpoint(config.checkpoint)
    if config.images is None:
        raise UserError(
            "No images given. Type images=PATH, such as images=photos or images='photos/*.jpg'."
        )
    # Not pathlib's expanduser, which refuses a name such as ~copy.png.
    images = os.path.expanduser(config.images)  # noqa: PTH111
    paths, left_out = find_images(images)
    if not paths:
        raise UserError(predictions.nothing_found(images, left_out))
    output = None
    if config.output is not None:
        output = predictions.check_output(os.path.expanduser(config.output), paths)  # noqa: PTH111

    classifier, info = run.rebuild(found)
    precision = config.trainer.precision or info.precision
    inference = Inference(classifier, config.trainer.gpus, precision, info.deterministic)
    predicted = classify.classify(paths, inference, config.batch_size)
    if not predicted.rows:
        why = "\n".join(predictions.reasons(predicted.broken))
        raise UserError(f"No image could be read (0 of {len(paths):,}).\n{why}")
    if output is None:
        model = re.sub(r"[^\w.-]+", "-", info.model)  # a checkpoint may hold any text
        folder = f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_{model}"
        output = Path("runs", "predict", folder, "predictions.csv")
    sheet = predictions.save(predicted, output)
    predictions.show(predicted, left_out, output, sheet)
    return {
        "images": len(predicted.rows),
        "broken": {str(path): reason for path, reason in predicted.broken.items()},
        "left_out": left_out.total(),
        "images_per_s": round(len(predicted.rows) / predicted.seconds, 1),
        "output": str(output),
        "contact_sheet": str(sheet),
    }


main = entry("predict", predict)
