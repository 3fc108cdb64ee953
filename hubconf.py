"""The networks for torch.hub: `torch.hub.load("OWNER/cifar-lightning", "best_1m")`.

Each function below is an entry point. The package need not be installed: torch.hub imports it from
the folder of this file. All networks give logits [N, classes].
"""

# Modules alone: a class or a function that is imported here would be an entry point too.
import pathlib
import typing

if typing.TYPE_CHECKING:
    from torch import nn

    from cifar_lightning.checkpoints.pretrained import Pretrained

dependencies = ["torch", "safetensors", "yaml"]  # torch.hub looks for them before it calls anything


def best_1m() -> "Pretrained":
    """The trained `residual_dw_1m`; takes images uint8 RGB [N, 3, 32, 32].

    Its card is cifar_lightning/checkpoints/weights/best_1m.md.
    """
    return _trained("best_1m")


def best_257k() -> "Pretrained":
    """The trained `residual_dw_257k`; takes images uint8 RGB [N, 3, 32, 32].

    Its card is cifar_lightning/checkpoints/weights/best_257k.md.
    """
    return _trained("best_257k")


def best_dilated_dw() -> "Pretrained":
    """The trained `dilated_dw`; takes images uint8 RGB [N, 3, 32, 32].

    Its card is cifar_lightning/checkpoints/weights/best_dilated_dw.md.
    """
    return _trained("best_dilated_dw")


def dilated_dw(**arguments: typing.Any) -> "nn.Module":
    """The default network, untrained; takes normalised images [N, 3, H, W].

    Args:
        **arguments: `num_classes` and `image_size`, if they are not 10 and 32.
    """
    return _untrained("dilated_dw", arguments)


def residual_dw_257k(**arguments: typing.Any) -> "nn.Module":
    """The network of `best_257k`, untrained; takes normalised images [N, 3, H, W].

    Args:
        **arguments: `num_classes`, if it is not 10.
    """
    return _untrained("residual_dw_257k", arguments)


def residual_dw_1m(**arguments: typing.Any) -> "nn.Module":
    """The network of `best_1m`, untrained; takes normalised images [N, 3, H, W].

    Args:
        **arguments: `num_classes`, if it is not 10.
    """
    return _untrained("residual_dw_1m", arguments)


def resnet20(**arguments: typing.Any) -> "nn.Module":
    """ResNet-20, untrained; takes normalised images [N, 3, H, W].

    Args:
        **arguments: `num_classes`, if it is not 10.
    """
    return _untrained("resnet20", arguments)


def airbench94(**arguments: typing.Any) -> "nn.Module":
    """The network of airbench94, untrained; takes normalised images [N, 3, H, W].

    Args:
        **arguments: `num_classes`, if it is not 10.
    """
    return _untrained("airbench94", arguments)


def _trained(name: str) -> "Pretrained":
    from cifar_lightning.checkpoints.pretrained import load

    return load(name)


def _untrained(name: str, arguments: dict[str, typing.Any]) -> "nn.Module":
    """The network of conf/model/NAME.yaml, with some arguments replaced."""
    import yaml  # type: ignore[import-untyped]

    from cifar_lightning import models

    file = pathlib.Path(__file__).parent / "conf" / "model" / f"{name}.yaml"
    settings = yaml.safe_load(file.read_text(encoding="utf-8")) | arguments
    network: nn.Module = getattr(models, settings.pop("_target_").rpartition(".")[2])(**settings)
    return network
