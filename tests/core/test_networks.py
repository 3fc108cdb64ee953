"""What every network of conf/model/ has to do: a new one is tested without a line here.

The first comment of its file may say three things, which are tested too: `N parameters`, `images of
N x N pixels or more` or `images of any size`, and that it is `outside the budget`.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY
from torch import Tensor

from cifar_lightning import run
from cifar_lightning.config.comments import read_option
from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.data.datamodule import Expected
from cifar_lightning.errors import UserError
from cifar_lightning.models.budget import check_budget, count_network
from cifar_lightning.run.build import StandIn
from cifar_lightning.train import train
from cifar_lightning.training.module import Classifier

NETWORKS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
LIFTED = [f"budget.{key}=null" for key in ("max_params", "min_dilated", "min_separable")]


def about(option: str) -> str:
    """The comment that the network's file begins with."""
    return read_option("model", option).about


def smallest(option: str) -> int | None:
    """Height and width of the smallest images in pixels, if the file says it."""
    said = re.search(r"images of (?:(\d+) x \1 pixels or more|any size)", about(option))
    return int(said[1] or 1) if said else None


class Watch(pl.Callback):
    """Keeps the weights from before the first step, and the classifier."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}
        self.classifier = pl_module


@dataclass
class Trained:
    """What two steps have made of a network."""

    checkpoint: Path
    metrics: dict[str, Any]
    watch: Watch


@pytest.fixture(scope="module", params=NETWORKS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, watch = tmp_path_factory.mktemp(request.param) / "run", Watch()
    typed = [f"model={request.param}", "trainer.limit_train_batches=2", "target_accuracy=null"]
    metrics = train(compose([*TINY, *LIFTED, *typed], folder), {"watch": watch})
    return Trained(folder / "checkpoints" / "best.ckpt", metrics, watch)


def test_two_steps_change_every_matrix_and_kernel(trained: Trained) -> None:
    assert torch.isfinite(torch.tensor(trained.metrics["test/loss"]))
    unchanged = [
        name
        for name, weights in trained.watch.classifier.named_parameters()
        # A bias in front of a batch norm has no effect, so it does not change.
        if weights.requires_grad and weights.ndim > 1
        if torch.equal(weights, trained.watch.before[name])
    ]
    assert not unchanged, "forward does not use these, or no gradient reaches them"


def test_a_checkpoint_gives_back_the_network(trained: Trained) -> None:
    rebuilt, info = run.rebuild(trained.checkpoint)
    assert info.model == trained.metrics["model"]
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        expected = trained.watch.classifier.eval()(images)
        assert torch.allclose(rebuilt(images), expected, atol=1e-4)
        # No image depends on the others of its batch.
        assert torch.allclose(rebuilt(images[:1]), expected[:1], atol=1e-4)


def build(option: str, size: int) -> Classifier:
    """Built as a run does it, for images of three classes."""
    images = StandIn(Expected(classes=3, image_size=size, train_images=3))
    images.setup()
    # The default augmentation and initialisation refuse the smallest images, whatever the network.
    config = compose([f"model={option}", *LIFTED, "augment=none", "init=random"])
    return run.build_classifier(config, images)[0]


SIZES = [(option, size) for option in NETWORKS for size in sorted({smallest(option) or 32, 32, 48})]


@pytest.mark.parametrize(("option", "size"), SIZES)
def test_images_of_other_sizes_are_classified_or_refused(option: str, size: int) -> None:
    images: Tensor = torch.randint(256, (2, 3, size, size), dtype=torch.uint8)
    try:
        classifier = build(option, size)
    except UserError as error:
        if size == 32 or smallest(option) is not None or f"{size} x {size}" not in str(error):
            raise
    else:
        assert classifier.eval()(images).shape == (2, 3)


@pytest.mark.parametrize("option", [option for option in NETWORKS if (smallest(option) or 0) > 1])
def test_images_that_are_too_small_are_refused(option: str) -> None:
    size = (smallest(option) or 0) - 1
    with pytest.raises(UserError, match=rf"{size} x {size}.*data\.image_size="):
        build(option, size)


@pytest.mark.parametrize("option", NETWORKS)
def test_a_network_keeps_the_budget_or_its_file_says_that_it_does_not(option: str) -> None:
    config = compose([f"model={option}"])
    counts = count_network(run.build_network(config, num_classes=10, image_size=32))
    said = re.search(r"([\d,]+) parameters", about(option))
    assert said is None or said[1] == f"{counts.parameters:,}"
    try:
        check_budget(counts, **config.budget)
    except UserError as error:
        if "outside the budget" not in about(option):
            pytest.fail(
                f"{error}; or say that it is outside the budget in the comment that "
                f"conf/model/{option}.yaml begins with.",
                pytrace=False,
            )
