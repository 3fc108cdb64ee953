"""A small, honest CIFAR-10 research template on PyTorch Lightning, Hydra and W&B.

The public names load what they need when they are first used, so that importing the package, as
the command line does, costs nothing. A whole run: `cifar_lightning.train.train(compose([...]))`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cifar_lightning.augment import Augment
    from cifar_lightning.budget import Budget, check, count
    from cifar_lightning.classifier import Classifier
    from cifar_lightning.cli import compose
    from cifar_lightning.data import Cifar10Data, FolderData, ImageData, ShapesData
    from cifar_lightning.errors import UserError
    from cifar_lightning.models import DilatedDW
    from cifar_lightning.optim import Muon
    from cifar_lightning.pretrained import load
    from cifar_lightning.run import rebuild

__version__ = "0.1.0"

_HOMES = {
    "Augment": "augment",
    "Budget": "budget",
    "check": "budget",
    "count": "budget",
    "Classifier": "classifier",
    "compose": "cli",
    "Cifar10Data": "data",
    "FolderData": "data",
    "ImageData": "data",
    "ShapesData": "data",
    "UserError": "errors",
    "DilatedDW": "models",
    "Muon": "optim",
    "load": "pretrained",
    "rebuild": "run",
}

__all__ = [
    "Augment",
    "Budget",
    "Cifar10Data",
    "Classifier",
    "DilatedDW",
    "FolderData",
    "ImageData",
    "Muon",
    "ShapesData",
    "UserError",
    "check",
    "compose",
    "count",
    "load",
    "rebuild",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
