"""The pretrained networks in the package."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cifar_lightning import models
from cifar_lightning.errors import UserError
from cifar_lightning.models.blocks import normalise

WEIGHTS = Path(__file__).parent / "weights"


class Pretrained(nn.Module):
    """A trained network with its normalisation.

    Args:
        network: takes normalised images.
        classes: class names, in the order of the logits.
        mean, std: of the training images per channel, on the scale 0 to 1.

    Attributes:
        classes: class names.
    """

    def __init__(
        self, network: nn.Module, classes: list[str], mean: list[float], std: list[float]
    ) -> None:
        super().__init__()
        self.network = network
        self.classes = tuple(classes)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images uint8 RGB [N, 3, H, W]."""
        logits: Tensor = self.network(normalise(images, self.mean, self.std))
        return logits


def load(name: str) -> Pretrained:
    """Load a pretrained network, in evaluation mode, on the CPU, in float32.

    Args:
        name: of a file in `checkpoints/weights/`, such as `best_dilated_dw`; the card beside it
            has its training data and accuracy.

    Raises:
        UserError: if there is no file of that name, or it is damaged.
    """
    file = WEIGHTS / f"{name}.safetensors"
    names = sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))
    if name not in names:
        raise UserError(
            f"There are no weights {name!r}. Available are: {', '.join(names) or 'none'}."
        )
    try:
        weights, facts = read_weights(file)
    except SafetensorError as error:
        raise UserError(f"{file} is damaged: install the package again. {error}") from error
    arguments = facts["network"]
    network = getattr(models, arguments.pop("_target_").rpartition(".")[2])(**arguments)
    return with_weights(network, weights, facts)


def read_weights(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of weights.

    Args:
        file: as export writes it with format=safetensors.

    Returns:
        The weights by name, and the metadata `classes`, `mean`, `std` and `network`.

    Raises:
        SafetensorError: if the file is damaged.
    """
    with safe_open(file, framework="pt") as opened:
        weights = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    facts = {key: json.loads(metadata[key]) for key in ("classes", "mean", "std", "network")}
    return weights, facts


def with_weights(
    network: nn.Module, weights: dict[str, Tensor], facts: dict[str, Any]
) -> Pretrained:
    """Load weights into a network, and add its normalisation.

    Args:
        network: changed in place.
        weights: by name, from `read_weights`.
        facts: metadata, from `read_weights`.
    """
    network.load_state_dict(weights)
    return Pretrained(network, facts["classes"], facts["mean"], facts["std"]).eval()
