"""Evaluates a checkpoint on the test images: accuracy, calibration, robustness, mistakes.

python -m cifar_lightning.evaluate checkpoint=runs/train/…/checkpoints/best.ckpt

This takes 86 s on two cores: benchmarks/results/2026-11-24-evaluation.md. Most of it is the
robustness, which robustness=false leaves out.
"""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_lightning.cli import entry


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Evaluate a checkpoint on the test images.

    Args:
        config: of conf/evaluate.yaml, as `config.compose.compose` gives it.

    Returns:
        The content of `evaluation.json`, written to `output` or `evaluation.default_folder`.

    Raises:
        UserError: for a mistake that the user can fix.
    """
    # Imported here, so that `--help` and a mistyped option are answered at once.
    from pathlib import Path

    from cifar_lightning import run
    from cifar_lightning.checkpoints.io import find_checkpoint
    from cifar_lightning.config import validate
    from cifar_lightning.evaluate import evaluation
    from cifar_lightning.run.inference import Inference

    validate.check_keys(config, "evaluate")
    validate.check_values("", {"robustness": bool}, config)
    if "data" in config:
        validate.check_part("data", OmegaConf.to_container(config.data, resolve=True))
    checkpoint = find_checkpoint(config.checkpoint)
    folder = Path(config.output or evaluation.default_folder(checkpoint)).expanduser()
    validate.check_folder(f"output={folder}", folder)
    if config.output is not None:
        evaluation.check_output(folder)
    classifier, info = run.rebuild(checkpoint)
    data, option, batch_size = run.rebuild_data(config, checkpoint, info)
    precision = config.trainer.precision or info.precision
    inference = Inference(classifier, config.trainer.gpus, precision, info.deterministic)

    measured, logits = evaluation.measure(inference, data, batch_size, config.robustness)
    results = {
        "checkpoint": str(checkpoint.absolute()),
        "model": info.model,
        "data": option,
        **measured,
    }
    evaluation.save(folder, results, logits, data)
    evaluation.show(results, folder)
    return results


main = entry("evaluate", evaluate)
