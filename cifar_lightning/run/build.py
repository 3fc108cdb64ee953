"""Checks a configuration; builds data, network and LightningModule from it."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from rich import get_console
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from cifar_lightning._version import __version__
from cifar_lightning.checkpoints.io import ModelInfo
from cifar_lightning.config.compose import CONF
from cifar_lightning.config.messages import FAULTS
from cifar_lightning.config.validate import ADDED, takes, target_of
from cifar_lightning.data import ImageData
from cifar_lightning.data.datamodule import Expected
from cifar_lightning.data.splits import ImageSplit, Splits, check_images
from cifar_lightning.errors import DataUnavailable, UserError
from cifar_lightning.models.blocks import normalise
from cifar_lightning.models.budget import NetworkCounts, check_budget, count_network
from cifar_lightning.system.memory import check_memory
from cifar_lightning.tracking.console import REHEARSAL, banner, note
from cifar_lightning.training.module import Classifier

CIFAR_SIZE = 32  # pixels
# Whitening filters are computed from as many pixels as 5,000 CIFAR images have. So the patches of
# larger images fit into memory too.
PIXELS_FOR_INITIALISATION = 5000 * CIFAR_SIZE**2
MAX_TENSORS = 10_000  # weights and biases of a network; building billions would never end


@contextmanager
def config_errors(key: str) -> Iterator[None]:
    """Turn errors of a constructor or function into a UserError that names the configuration's key.

    Raises:
        UserError: for a wrong value or argument, for which PyTorch raises many kinds of exceptions;
            or if there is not enough memory.
    """
    try:
        yield
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise UserError(f"{key}: {_reason(error.__cause__ or error)}") from error
    except (*FAULTS, MemoryError) as error:
        raise UserError(f"{key}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__  # MemoryError has no message


def instantiate_part(config: Any, key: str, kind: type = object, /, **arguments: Any) -> Any:
    """Call Hydra's `instantiate`, with errors that name the key.

    Args:
        config: a `_target_` and its arguments.
        key: of the part in the configuration.
        kind: class of the object that the target has to return.
        **arguments: further arguments.

    Raises:
        UserError: if the target raises an error, or returns something else.
    """
    with config_errors(key):
        # With plain lists and dictionaries, not OmegaConf's: Lightning's Timer needs them.
        made = instantiate(config, _convert_="all", **arguments)
    if not isinstance(made, kind):
        raise UserError(
            f"{key}: {config['_target_']} returns a {type(made).__name__}, not a "
            f"{kind.__module__.partition('.')[0]} {kind.__name__}."
        )
    return made


def build_data(config: DictConfig) -> ImageData:
    """Build the data, prepared, loaded and split.

    Raises:
        DataUnavailable: if it is not on this machine and cannot be downloaded.
        UserError: if it is damaged or does not fit the configuration.
    """
    data: ImageData = instantiate_part(config.data, "data", ImageData, seed=config.seed)
    if (expected := data.expected()) is not None:
        data.check_sizes(expected.classes, expected.train_images)
        if "model" in config:  # a training's configuration
            _try_out(config, expected)
    elif data.batch_size < 1:
        raise UserError(f"data.batch_size={data.batch_size} must be at least 1.")
    data.prepare_data()
    with config_errors("data"):
        data.setup()
    _check_limits(config, data)
    return data


def _try_out(config: DictConfig, expected: Expected) -> None:
    """Build the module for random images, to find mistakes before the data is read."""
    with config_errors("data"):
        images = StandIn(expected)
        images.setup()
    with torch.random.fork_rng(devices=[]), get_console().capture():
        build_module(config, images)


class StandIn(ImageData):
    """Random images of the expected classes and size."""

    def __init__(self, expected: Expected) -> None:
        super().__init__(batch_size=1, val_size=0)
        self.expected_data = expected

    def load(self) -> Splits:
        classes, size = self.expected_data.classes, self.expected_data.image_size
        images = torch.randint(
            256, (classes, 3, size, size), dtype=torch.uint8, generator=torch.Generator()
        )
        split = ImageSplit(images, torch.arange(classes))
        return Splits(split, split, tuple(map(str, range(classes))))


def _check_limits(config: DictConfig, data: ImageData) -> None:
    """Refuse a limit that is less than one batch; Lightning would find it only when it tests.

    Only a training's configuration has such limits.
    """
    batches = {
        "train": len(data.train_index) // data.batch_size,
        "val": 0 if data.val is None else math.ceil(len(data.val) / data.batch_size),
        "test": math.ceil(len(data.test) / data.batch_size),
    }
    for split, number in batches.items():
        limit = OmegaConf.select(config, f"trainer.limit_{split}_batches")
        if isinstance(limit, float) and 0 < limit * number < 1:
            raise UserError(
                f"trainer.limit_{split}_batches={limit} of {number} batches is less than one "
                "batch: give a larger fraction, or a number of batches."
            )


def build_data_or_rehearse(config: DictConfig) -> tuple[DictConfig, ImageData]:
    """Build the data, or data=shapes if it is unavailable and `rehearse_without_data` is true.

    Returns:
        The configuration of the data that was built, and the data.

    Raises:
        DataUnavailable: if the data is unavailable, and `rehearse_without_data` is false.
        UserError: see `build_data`.
    """
    try:
        return config, build_data(config)
    except DataUnavailable as error:
        if not config.rehearse_without_data:
            raise
        with_make = 'With make: make train ARGS="data=folder data.path=DIR_OR_ARCHIVE"'
        banner(f"{error}\n{with_make}\n\n{REHEARSAL}", "CIFAR-10 is not available")
    config = copy.deepcopy(config)
    with open_dict(config):
        config.data = OmegaConf.load(CONF / "data" / "shapes.yaml")
        config.choices.data = "shapes"
    return config, build_data(config)


def build_network(config: DictConfig, num_classes: int, image_size: int) -> nn.Module:
    """Build the network.

    Args:
        config: `num_classes` and `image_size` of `model` are replaced if it has these keys.
        num_classes: number of classes in the data.
        image_size: height and width of the data's images in pixels.

    Raises:
        UserError: if the target of `model` raises an error, or does not return a network.
    """
    return make_network(_network_arguments(config, num_classes, image_size))


def _network_arguments(config: DictConfig, num_classes: int, image_size: int) -> dict[str, Any]:
    """The network's `_target_` and arguments, as primitives."""
    of_data = {"num_classes": num_classes, "image_size": image_size}
    fitting = {key: value for key, value in of_data.items() if key in config.model}
    arguments: Any = OmegaConf.to_container(config.model, resolve=True)
    return dict(arguments | fitting)


def make_network(arguments: dict[str, Any]) -> nn.Module:
    """Build a network from its `_target_` and arguments.

    Raises:
        UserError: if the target raises an error, or does not return a network.
    """
    with _limited_size():
        network: nn.Module = instantiate_part(arguments, "model", nn.Module)
    return network


@contextmanager
def _limited_size() -> Iterator[None]:
    """Stop building a network before it fills the memory: a checkpoint may ask for any size."""
    tensors = size = 0

    def add(module: nn.Module, name: str, weights: Any) -> None:
        nonlocal tensors, size
        if weights is None:
            return
        tensors, size = tensors + 1, size + weights.nbytes
        if tensors > MAX_TENSORS:
            raise UserError(
                f"model: the network has more than {MAX_TENSORS:,} weight tensors. Make it less "
                "deep."
            )
        check_memory("model: the network's weights", size, "Make it less wide or less deep.")

    # The hook is called once a layer has allocated its weights, before they are filled.
    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()


def build_module(config: DictConfig, data: ImageData) -> tuple[pl.LightningModule, NetworkCounts]:
    """Build the LightningModule of a network with initialised weights, and count the network.

    docs/extend.md says what a run relies on in a LightningModule of your own.

    Raises:
        UserError: if the network breaks the budget, a part of the configuration raises an error, or
            the module does not keep the network as its attribute `network`.
    """
    network = build_network(config, len(data.classes), data.image_size)
    with config_errors("model"), hint_image_size(data.image_size):
        counts = count_network(network, data.image_size)
        _check_logits(network, data)
    with config_errors("budget"):
        check_budget(counts, **config.budget)
    images = PIXELS_FOR_INITIALISATION // data.image_size**2
    sample = data.train.images[data.train_index[:images]]  # uint8 [N, 3, H, W]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
    initialise = instantiate_part(config.init, "init")
    with config_errors("init"):
        normalised = normalise(sample, mean, std).to(memory_format=torch.channels_last)
        initialise(network.to(memory_format=torch.channels_last), normalised)
    module = _make_module(config, network, data)
    if isinstance(module, Classifier):
        dry_run(module, data)
    return module, counts


def build_classifier(config: DictConfig, data: ImageData) -> tuple[Classifier, NetworkCounts]:
    """`build_module`, for what needs a Classifier, such as a benchmark of its training step.

    Raises:
        UserError: see `build_module`; or if the module is none.
    """
    module, counts = build_module(config, data)
    if not isinstance(module, Classifier):
        raise UserError(f"module: a {type(module).__name__} is no Classifier, which this needs.")
    return module, counts


def _check_logits(network: nn.Module, data: ImageData) -> None:
    """Refuse a network whose output is not logits [N, classes], in training or evaluation."""
    size, classes, before = data.image_size, len(data.classes), network.training
    images = next(network.parameters()).new_zeros(2, 3, size, size)
    for training in (False, True):
        network.train(training)
        # Copies, because a forward pass changes the statistics of batch norms.
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            logits = torch.func.functional_call(network, buffers, images)
        is_tensor = isinstance(logits, torch.Tensor)
        if not is_tensor or logits.shape != (2, classes):
            shape = f"[{', '.join(map(str, logits.shape))}]" if is_tensor else ""
            shown = shape or f"a {type(logits).__name__}"
            raise UserError(
                f"model: {type(network).__name__} returns {shown} for two images in "
                f"{'training' if training else 'evaluation'} mode; it has to return logits "
                f"[2, {classes}], because the data has {classes} classes."
            )
    network.train(before)


@contextmanager
def hint_image_size(size: int) -> Iterator[None]:
    """Add to a network's error on images of this size how to resize them to CIFAR's size."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError) as error:
        if size == CIFAR_SIZE:
            raise
        raise RuntimeError(
            f"it does not take images of {size} x {size} pixels: {_reason(error)}. "
            f"data.image_size={CIFAR_SIZE} resizes them to {CIFAR_SIZE} x {CIFAR_SIZE}."
        ) from error


def dry_run(classifier: Classifier, data: ImageData) -> None:
    """Make the optimizer and the schedule, and augment two images, to find mistakes early."""
    with config_errors("optimizer"):
        optimizer = classifier.make_optimizer(classifier.trained_weights())
    with config_errors("scheduler"):
        classifier.make_scheduler(optimizer, 100)
    with config_errors("augment"):
        index = torch.arange(2)
        images = classifier.augment(data.test.images[index], index, 0, torch.Generator())
        check_images("augment: its images", images)
    if images.shape[-1] != data.image_size:
        with config_errors("augment"), torch.no_grad():
            classifier.eval()(images)
        classifier.train()


def _without_fused(config: DictConfig) -> Any:
    """The optimizer's configuration, without `fused` if gradients are clipped.

    In mixed precision a fused optimizer scales the gradients back itself, after the clipping.
    """
    if not config.trainer.get("gradient_clip_val") or not config.optimizer.get("fused"):
        return config.optimizer
    note("optimizer", "fused=false, because gradients are clipped (trainer.gradient_clip_val)")
    optimizer = copy.deepcopy(config.optimizer)
    optimizer.fused = False
    return optimizer


def _make_module(config: DictConfig, network: nn.Module, data: ImageData) -> pl.LightningModule:
    """Make the LightningModule, from those parts that its constructor takes."""
    made: dict[str, Callable[[], Any]] = {
        "network": lambda: network,
        "classes": lambda: data.classes,
        "image_size": lambda: data.image_size,
        "mean": lambda: data.mean,
        "std": lambda: data.std,
        "optimizer": lambda: instantiate_part(_without_fused(config), "optimizer"),
        "scheduler": lambda: instantiate_part(config.scheduler, "scheduler"),
        "augment": lambda: instantiate_part(config.augment, "augment"),
        "loss": lambda: build_loss(config, len(data.classes)),
        "cutmix": lambda: config.cutmix,
        "seed": lambda: config.seed,
    }
    part: Any = OmegaConf.to_container(config.module, resolve=True)
    target = target_of("module", part)
    arguments = {name: made[name]() for name in takes(target, ADDED["module"])}
    # Not through Hydra, which would copy the network.
    make = instantiate_part(part | {"_partial_": True}, "module")
    with config_errors("module"):
        module = make(**arguments)
    name = getattr(target, "__qualname__", str(target))
    if not isinstance(module, pl.LightningModule):
        raise UserError(f"module: {name} returns a {type(module).__name__}, no LightningModule.")
    if getattr(module, "network", None) is not network:
        raise UserError(
            f"module: {name} has to keep the network that it is given, as self.network = network: "
            "evaluate, predict and export read its weights from the checkpoint."
        )
    return module


def build_loss(config: DictConfig, classes: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the loss, which maps logits [N, classes] and labels [N] to losses [N] or their mean.

    If it has an argument `reduction` that is not set, it gets `none`: the loss of each image.

    Raises:
        UserError: if it returns something else, or the mean although cutmix or a teacher needs each
            image's.
    """
    part: Any = OmegaConf.to_container(config.loss, resolve=True)
    if takes(target_of("loss", part), ["reduction"]):
        part = {"reduction": "none"} | part
    loss = instantiate_part(part, "loss")
    count = classes + 1  # so that [N] is not [classes]
    logits, labels = torch.zeros(count, classes, requires_grad=True), torch.arange(count) % classes
    with config_errors("loss"), torch.random.fork_rng(devices=[]):
        losses, twice = loss(logits, labels), loss(logits.repeat(2, 1), labels.repeat(2))
    name, is_tensor = part["_target_"], isinstance(losses, Tensor)
    if not is_tensor or losses.shape not in ((count,), ()) or not losses.requires_grad:
        shown = f"[{', '.join(map(str, losses.shape))}]" if is_tensor else type(losses).__name__
        graph = " without a gradient" if is_tensor and not losses.requires_grad else ""
        raise UserError(
            f"loss: {name} returns {shown}{graph} for logits [{count}, {classes}] and labels "
            f"[{count}]; it has to return the losses [{count}], or their mean [], with a gradient."
        )
    if losses.ndim == 0 and losses != 0 and torch.isclose(twice, 2 * losses):
        raise UserError(f"loss: {name} returns the sum of the losses; it has to be their mean.")
    for key, off in (("cutmix", "0"), ("teacher", "null")):
        if losses.ndim == 0 and config.get(key):
            raise UserError(
                f"{key}={config[key]} needs the loss of each image, but {name} returns their mean. "
                f"Let it return the losses [N], or set {key}={off}."
            )
    return loss  # type: ignore[no-any-return]


def model_info(config: DictConfig, data: ImageData) -> ModelInfo:
    """The description of the model for its checkpoints."""
    return ModelInfo(
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
