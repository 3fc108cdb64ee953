"""A small, honest CIFAR-10 research template on PyTorch Lightning, Hydra and W&B.

The public names, listed in docs/reference/python.md, are imported when they are first used, so
that importing the package is fast.
"""

import signal
import sys
from importlib import import_module
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cifar_lightning._version import __version__ as __version__

# Ctrl-C ends a command at once during its imports; later, `cli.program` catches it. A command is
# recognised by sys.orig_argv, because a job process has the sys.argv of the one that started it.
_is_command = any(
    (option == "-m" and name.startswith(f"{__name__}."))
    or (number == 0 and name.rpartition("/")[2].startswith("cifar-"))
    for number, (option, name) in enumerate(pairwise(sys.orig_argv))
)
if _is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

__all__ = [
    "Airbench94",
    "Augment",
    "Cifar10Data",
    "Classifier",
    "DataUnavailable",
    "DilatedDW",
    "FolderData",
    "ImageData",
    "ImageSplit",
    "Muon",
    "NetworkCounts",
    "Pretrained",
    "ResNet20",
    "ResidualDW",
    "ShapesData",
    "UserError",
    "alternating_flip",
    "check_budget",
    "compose",
    "constant_schedule",
    "cosine_schedule",
    "count_network",
    "cutmix",
    "cutout",
    "decode_image",
    "flip",
    "initialise",
    "linear_schedule",
    "load",
    "random_flip",
    "random_shift",
    "rebuild",
    "scale",
    "train_tflop",
]

# `train` and `evaluate` are missing, because submodules have these names: call
# cifar_lightning.train.train(compose(…)).
_MODULES = {
    "training.augment": (
        *("Augment", "alternating_flip", "cutmix", "cutout"),
        *("flip", "random_flip", "random_shift", "scale"),
    ),
    "models.budget": ("NetworkCounts", "check_budget", "count_network", "train_tflop"),
    "training.module": ("Classifier",),
    "config.compose": ("compose",),
    "data": ("Cifar10Data", "FolderData", "ImageData", "ImageSplit", "ShapesData"),
    "data.decode": ("decode_image",),
    "errors": ("DataUnavailable", "UserError"),
    "models": ("Airbench94", "DilatedDW", "ResNet20", "ResidualDW", "initialise"),
    "training.optim": ("Muon", "constant_schedule", "cosine_schedule", "linear_schedule"),
    "checkpoints.pretrained": ("Pretrained", "load"),
    "run": ("rebuild",),
}

if TYPE_CHECKING:
    from cifar_lightning.checkpoints.pretrained import Pretrained, load
    from cifar_lightning.config.compose import compose
    from cifar_lightning.data import Cifar10Data, FolderData, ImageData, ImageSplit, ShapesData
    from cifar_lightning.data.decode import decode_image
    from cifar_lightning.errors import DataUnavailable, UserError
    from cifar_lightning.models import Airbench94, DilatedDW, ResidualDW, ResNet20, initialise
    from cifar_lightning.models.budget import (
        NetworkCounts,
        check_budget,
        count_network,
        train_tflop,
    )
    from cifar_lightning.run import rebuild
    from cifar_lightning.training.augment import (
        Augment,
        alternating_flip,
        cutmix,
        cutout,
        flip,
        random_flip,
        random_shift,
        scale,
    )
    from cifar_lightning.training.module import Classifier
    from cifar_lightning.training.optim import (
        Muon,
        constant_schedule,
        cosine_schedule,
        linear_schedule,
    )

else:  # hidden from type checkers, for which it would make every name valid

    def __getattr__(name: str) -> Any:
        for module, names in _MODULES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names for completion in notebooks and editors."""
    return [*globals(), *__all__]
