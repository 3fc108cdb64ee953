"""Data, network and classifier of a configuration."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cifar_lightning._version import __version__
from cifar_lightning.checkpoints.io import ModelInfo
from cifar_lightning.config.compose import CONF
from cifar_lightning.data import ImageData
from cifar_lightning.errors import DataUnavailable, UserError
from cifar_lightning.models.budget import Budget, check, count
from cifar_lightning.system.memory import check_memory
from cifar_lightning.tracking.console import REHEARSAL, banner
from cifar_lightning.training.module import Classifier

CIFAR_SIZE = 32  # pixels
# The first layer's starting filters come from as many pixels as 5,000 CIFAR images have; larger
# images are fewer, so that their patches fit into memory.
PIXELS_FOR_INITIALISATION = 5000 * CIFAR_SIZE**2
# Weights and biases: a network of thousands of layers. One of a billion would never be built.
MOST_TENSORS = 10_000


@contextmanager
def config_errors(key: str) -> Iterator[None]:
    """Turn errors of a constructor or function into a message that names the configuration's key.

    Raises:
        UserError: for a refused value or argument, for which PyTorch raises any of these
            exceptions; or if memory does not suffice.
    """
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(f"{key}: {_reason(error.__cause__ or error)}") from error
    except (TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise UserError(f"{key}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__  # some, as MemoryError, say nothing


def instantiate_part(config: Any, key: str, **arguments: Any) -> Any:
    """Hydra's `instantiate`, with an error that names the key.

    Raises:
        UserError: if the target refuses its arguments.
    """
    with config_errors(key):
        return instantiate(config, **arguments)


def build_data(config: DictConfig) -> ImageData:
    """The data, prepared, loaded and split.

    Raises:
        DataUnavailable: if it is nowhere to be had.
        UserError: if it is damaged or does not suit the configuration.
    """
    data: ImageData = instantiate_part(config.data, "data", seed=config.seed)
    data.prepare_data()
    with config_errors("data"):
        data.setup()
    return data


def build_data_or_rehearse(config: DictConfig) -> tuple[DictConfig, ImageData]:
    """The data, and the configuration with it: data=shapes where another one is not to be had.

    Raises:
        DataUnavailable: if it is not to be had, and `rehearse_without_data` is false.
        UserError: as `build_data` does.
    """
    try:
        return config, build_data(config)
    except DataUnavailable as error:
        if not config.rehearse_without_data:
            raise
        banner(f"{error}\n\n{REHEARSAL}", "CIFAR-10 could not be had")
    config = copy.deepcopy(config)
    with open_dict(config):
        config.data = OmegaConf.load(CONF / "data" / "shapes.yaml")
        config.choices.data = "shapes"
    return config, build_data(config)


def build_network(config: DictConfig, num_classes: int, image_size: int) -> nn.Module:
    """The network; the data's class count and image size go into the keys that its options have.

    Raises:
        UserError: if what `model` names refuses its arguments, or makes no network.
    """
    return make_network(_network_arguments(config, num_classes, image_size))


def _network_arguments(config: DictConfig, num_classes: int, image_size: int) -> dict[str, Any]:
    """The network's `_target_` and arguments, as primitives."""
    facts = {"num_classes": num_classes, "image_size": image_size}
    fitting = {key: value for key, value in facts.items() if key in config.model}
    arguments: Any = OmegaConf.to_container(config.model, resolve=True)
    return dict(arguments | fitting)


def make_network(arguments: dict[str, Any]) -> nn.Module:
    """The network of a `_target_` and its arguments.

    Raises:
        UserError: if the target refuses the arguments, or makes no network.
    """
    with _bounded_networks():
        network = instantiate_part(arguments, "model")
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise UserError(f"model: {arguments['_target_']} makes a {kind}, not a torch.nn.Module.")
    return network


@contextmanager
def _bounded_networks() -> Iterator[None]:
    """Refuse a network while it is being built, before its weights fill the memory.

    Raises:
        UserError: if memory does not hold it, or it would be built for ever.
    """
    tensors = size = 0

    def look_at(module: nn.Module, name: str, weights: Any) -> None:
        nonlocal tensors, size
        if weights is None:
            return
        tensors, size = tensors + 1, size + weights.nbytes
        if tensors > MOST_TENSORS:
            raise UserError(
                f"model: the network has more than {MOST_TENSORS:,} weight tensors. Make it less "
                "deep."
            )
        check_memory("model: the network's weights", size, "Make it less wide or less deep.")

    # Called when a layer has allocated its weights and not yet filled them.
    hook = register_module_parameter_registration_hook(look_at)
    try:
        yield
    finally:
        hook.remove()


def build_classifier(config: DictConfig, data: ImageData) -> tuple[Classifier, Budget]:
    """The classifier with its starting weights, and what the budget counted.

    Raises:
        UserError: if the network breaks the budget.
    """
    network = build_network(config, len(data.classes), data.image_size)
    with config_errors("model"), hint_image_size(data.image_size):
        budget = count(network, data.image_size)
    with config_errors("budget"):
        check(budget, **config.budget)
    classifier = _make_classifier(config, network, data)
    images = PIXELS_FOR_INITIALISATION // data.image_size**2
    sample = data.train.images[data.train_index[:images]]
    initialise = instantiate_part(config.init, "init")
    with config_errors("init"):
        initialise(network, classifier.normalise(sample))
    dry_run(classifier, data)
    return classifier, budget


@contextmanager
def hint_image_size(size: int) -> Iterator[None]:
    """Add to a network's error on images of this size how to scale them to CIFAR's."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if size == CIFAR_SIZE:
            raise
        raise RuntimeError(
            f"it does not take images of {size} x {size} pixels: {_reason(error)}. "
            f"data.image_size={CIFAR_SIZE} scales them to {CIFAR_SIZE} x {CIFAR_SIZE}."
        ) from error


def dry_run(classifier: Classifier, data: ImageData) -> None:
    """Make optimizer and scheduler and augment two images, to find mistakes before the training."""
    with config_errors("optimizer"):
        optimizer = classifier.make_optimizer(classifier.network.parameters())
    with config_errors("scheduler"):
        classifier.make_scheduler(optimizer, 100)
    with config_errors("augment"):
        index = torch.arange(2)
        classifier.augment(data.test.images[index], index, 0, torch.Generator())


def _make_classifier(config: DictConfig, network: nn.Module, data: ImageData) -> Classifier:
    """The classifier of a network, its weights as they are, and what its checkpoints will say."""
    optimizer = instantiate_part(config.optimizer, "optimizer")
    scheduler = instantiate_part(config.scheduler, "scheduler")
    augment = instantiate_part(config.augment, "augment")
    with config_errors("label_smoothing"):
        classifier = Classifier(
            network,
            classes=data.classes,
            image_size=data.image_size,
            mean=data.mean,
            std=data.std,
            optimizer=optimizer,
            scheduler=scheduler,
            augment=augment,
            label_smoothing=config.label_smoothing,
            cutmix=config.cutmix,
            seed=config.seed,
        )
    info = ModelInfo(
        version=__version__,
        model=config.choices.model,
        network=_network_arguments(config, len(data.classes), data.image_size),
        data=config.choices.data,
        classes=list(data.classes),
        image_size=data.image_size,
        mean=data.mean,
        std=data.std,
        precision=config.trainer.precision,
        deterministic=config.trainer.deterministic,
    )
    classifier.save_hyperparameters(dataclasses.asdict(info), logger=False)
    return classifier
