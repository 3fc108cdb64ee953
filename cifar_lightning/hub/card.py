"""The model card: what a network is, what it was trained on, what it reaches."""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from torch import nn

from cifar_lightning.checkpoints.io import ModelInfo
from cifar_lightning.config.compose import key_of
from cifar_lightning.config.paths import sets_path
from cifar_lightning.models.budget import count_network
from cifar_lightning.tracking.run_folder import RunFolder, read_config_dir
from cifar_lightning.tracking.tables import percent

# The options of conf/data/: the id on the Hub or the kind of data, and words for people.
DATA = {
    "cifar10": ("uoft-cs/cifar10", "CIFAR-10, the official files"),
    "folder": ("imagefolder", "images in class folders"),
    "shapes": ("shapes", "generated images of shapes"),
}
# Metrics of metrics.json that the card shows, and its words for them.
SHOWN = {
    "epochs": "epochs",
    "seed": "seed",
    "teacher": "teacher",
    "train_tflop": "training compute in TFLOP",
    "precision": "precision",
    "device": "device",
    "world_size": "devices",
    "torch": "PyTorch",
}
CARD = """\
---
{metadata}
---

# {model}

An image classifier, `{model}`, trained with cifar-lightning {version}. It has {parameters:,}
parameters, and {multiply_adds:.1f} M multiply-adds for an image of {size} x {size} pixels.

Classes, in the order of the logits: {classes}.

## Use

```python
from cifar_lightning.hub import HubModel

model = HubModel.from_pretrained("{repo_id}")
logits = model(images)  # uint8 RGB [N, 3, {size}, {size}] -> [N, {number}]
```

This needs the package cifar-lightning with its extra `hub`, and a network `{model}` in it. No code
from this repository is executed: the weights are safetensors, the rest is JSON. The model
normalises the images itself.

## Training

{training}

## Test accuracy

{accuracy}

## Limitations

- It assigns one of the classes above to every image of {size} x {size} pixels, whatever the image
  shows. A high probability does not mean that it is right.
- Its accuracy on images from another source was not measured, and may be lower.
- It is made to study networks with, not to decide anything.
"""
NOT_RECORDED = "It is not recorded: the checkpoint was not in the folder of a finished run."
TRAIN = "python -m cifar_lightning.train"


@dataclass(frozen=True)
class Training:
    """What a card says of a training.

    Attributes:
        dataset: a name for the data; None for that of its option in conf/data/.
        parameters: number of the network's weights.
        multiply_adds: of a forward pass of one image.
        metrics: of the run's metrics.json; empty if they are not known, or not this checkpoint's.
        commands: the arguments of its start and of each resume, without paths of a machine.
    """

    dataset: str | None
    parameters: int
    multiply_adds: int
    metrics: dict[str, Any]
    commands: list[list[str]]


def read_training(
    checkpoint: Path, network: nn.Module, info: ModelInfo, dataset: str | None
) -> Training:
    """Read what the card of a checkpoint says of its training.

    Args:
        checkpoint: path of the file. Without its run's folder, or if the run is not finished or has
            tested another checkpoint, there are neither metrics nor commands.
        network: of the checkpoint.
        info: its description.
        dataset: see `Training`.
    """
    counts = count_network(network, info.image_size)
    folder = RunFolder.of(checkpoint)
    run = folder.read()
    metrics: dict[str, Any] = {}
    commands: list[list[str]] = []
    is_in_run = checkpoint.absolute().parent == folder.checkpoints
    if is_in_run and run.status == "finished" and run.metrics["checkpoint"] == checkpoint.name:
        # JSON has no NaN.
        lost = [k for k, v in run.metrics.items() if isinstance(v, float) and not math.isfinite(v)]
        metrics = run.metrics | dict.fromkeys(lost)
        options = ["--config-dir", "PATH"] if read_config_dir(folder.path) else []
        commands = [
            [
                *options,
                *(_without_path(o) for o in overrides if key_of(o).partition(".")[0] != "logger"),
            ]
            for overrides in (run.overrides, *run.resumed)
        ]
    return Training(dataset, counts.parameters, counts.multiply_adds, metrics, commands)


def _without_path(override: str) -> str:
    key, equals, _ = override.partition("=")
    return f"{key}{equals}PATH" if equals and sets_path(override) else override


def make_card(info: ModelInfo, training: Training, repo_id: str) -> ModelCard:
    """Make the card of a network.

    Args:
        info: the model's description.
        training: how it was trained.
        repo_id: OWNER/NAME, for the example.
    """
    kind, name = DATA.get(info.data, (info.data, info.data))
    dataset = training.dataset or name
    metadata = ModelCardData(
        library_name="cifar-lightning",
        pipeline_tag="image-classification",
        tags=["pytorch", "cifar-lightning", info.model],
        datasets=[kind] if "/" in kind else None,
        **_results(training.metrics.get("test/acc"), kind, dataset, info.model),
    )
    text = CARD.format(
        metadata=metadata.to_yaml(),
        model=info.model,
        parameters=training.parameters,
        multiply_adds=training.multiply_adds / 1e6,
        size=info.image_size,
        version=info.version,
        classes=", ".join(info.classes),
        number=len(info.classes),
        repo_id=repo_id,
        training=_describe_training(dataset, training) if training.metrics else NOT_RECORDED,
        accuracy=_describe_accuracy(dataset, training.metrics),
    )
    return ModelCard(text)


def _results(accuracy: float | None, kind: str, dataset: str, model: str) -> dict[str, Any]:
    """A test accuracy as the Hub's metadata has it; empty without one."""
    if accuracy is None:
        return {}
    result = EvalResult(
        task_type="image-classification",
        dataset_type=kind,
        dataset_name=dataset,
        dataset_split="test",
        metric_type="accuracy",
        metric_name="test accuracy",
        metric_value=accuracy,
    )
    return {"metrics": ["accuracy"], "model_name": model, "eval_results": [result]}


def _describe_training(dataset: str, training: Training) -> str:
    """A table, and the commands."""
    values = {words: training.metrics.get(key) for key, words in SHOWN.items()}
    rows = {"data": dataset, **{k: v for k, v in values.items() if v is not None}}
    table = "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])
    lines = [f"    {TRAIN} {shlex.join(arguments)}" for arguments in training.commands]
    return "\n".join([table, "", *lines])


def _describe_accuracy(dataset: str, metrics: dict[str, Any]) -> str:
    """What was measured, and how."""
    if metrics.get("test/acc") is None:
        return "It is not recorded."
    text = (
        f"**{percent(metrics['test/acc'])}** of the test images ({dataset}), with this checkpoint, "
        "after the training, without test-time augmentation. This is one training with one seed; "
        "another seed gives another accuracy."
    )
    if metrics.get("val/acc") is not None:
        text += f" Of the validation images it is right on {percent(metrics['val/acc'])}."
    return text
