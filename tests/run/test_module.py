"""Losses and LightningModules of one's own, named by `_target_`."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from conftest import Compose
from omegaconf import DictConfig
from programs import read_json
from torch import Tensor, nn

from cifar_lightning.errors import UserError
from cifar_lightning.run import build_data, build_module, check_config, rebuild
from cifar_lightning.run.build import build_loss
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import train
from cifar_lightning.training.module import Classifier

HERE = __name__


def mean_of_margins(logits: Tensor, labels: Tensor, margin: float = 1.0) -> Tensor:
    return F.multi_margin_loss(logits.float(), labels, margin=margin)


def sum_of_losses(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.0).mul(len(labels))


def by_class(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.mean(0)


class Scaled(nn.Module):
    """A loss with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits * self.scale, labels, reduction="none")


class TwoOptimizers(Classifier):
    """SGD for the last layer, the configured optimizer for the others."""

    def __init__(self, head_lr: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.automatic_optimization = False
        self.head_lr = head_lr

    def configure_optimizers(self) -> Any:
        *body, head = self.network.parameters()
        return [self.make_optimizer(body), torch.optim.SGD([head], lr=self.head_lr)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output: Any = super().training_step(batch, batch_idx)
        self.manual_backward(output["loss"])
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return output


class Plain(pl.LightningModule):
    """A LightningModule as people have them, with nothing of the template's but its network."""

    def __init__(self, network: nn.Module, mean: list[float], std: list[float], lr: float) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"])
        self.network = network
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (mean, std))
        self.unused_head = nn.Linear(3, 3)

    def scores(self, batch: Any) -> tuple[Tensor, Tensor]:
        images, labels, _ = batch
        logits = self.network((images / 255 - self.mean) / self.std)
        return F.cross_entropy(logits, labels), (logits.argmax(1) == labels).float().mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, _ = self.scores(batch)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/acc", self.scores(batch)[1])

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/acc", self.scores(batch)[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.network.parameters(), lr=self.hparams["lr"])


class Silent(Plain):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass


class Forgetful(Classifier):
    def __init__(self, network: nn.Module, **arguments: Any) -> None:
        super().__init__(network, **arguments)
        self.network = nn.Identity()


def own(name: str, *options: str, group: str = "module") -> list[str]:
    removed = ["~loss.label_smoothing"] if group == "loss" else []
    return [f"{group}._target_={HERE}.{name}", *removed, *options]


def trained(config: DictConfig) -> dict[str, Tensor]:
    train(config)
    file = f"{config.run_dir}/checkpoints/last.ckpt"
    return dict(torch.load(file, weights_only=True)["state_dict"])


@pytest.mark.parametrize(
    "options",
    [
        ["loss=focal", "cutmix=0.5"],
        ["loss=bce"],
        own("mean_of_margins", "+loss._partial_=true", "+loss.margin=0.5", group="loss"),
        ["loss._target_=torch.nn.MultiMarginLoss", "~loss.label_smoothing", "cutmix=0.5"],
    ],
    ids=lambda options: options[0],
)
def test_a_loss_is_trained_with(tiny: Compose, options: list[str]) -> None:
    config = tiny(*options)
    check_config(config)
    before = build_module(config, build_data(config))[0].state_dict()
    after = trained(config)
    assert any(not torch.equal(after[name], before[name]) for name in before)


def test_a_teacher_refuses_a_mean_loss(tiny: Compose) -> None:
    mean = own("mean_of_margins", "+loss._partial_=true", "teacher=a.ckpt", group="loss")
    with pytest.raises(UserError, match=r"teacher=a\.ckpt needs the loss of each image"):
        build_loss(tiny(*mean), 10)


def test_a_losss_own_weights_are_trained(tiny: Compose) -> None:
    assert trained(tiny(*own("Scaled", group="loss")))["loss.scale"] != 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            own("mean_of_margins", "+loss._partial_=true", "cutmix=0.5", group="loss"),
            "cutmix=0.5 needs the loss of each image, but .*mean_of_margins returns their mean",
        ),
        (
            own("by_class", "+loss._partial_=true", group="loss"),
            r"by_class returns \[10\] for logits \[11, 10\]",
        ),
        (own("sum_of_losses", "+loss._partial_=true", group="loss"), "returns the sum"),
        (own("by_class", group="loss"), "With _partial_: true a run gives it later"),
        (own("Plain", "+module.lr=0.1", "loss=focal"), "has no argument loss"),
        (own("Plain", "+module.lr=0.1", "cutmix=0.5"), "has no argument cutmix"),
        (own("Plain"), r"module\.lr is missing"),
        (
            own("TwoOptimizers", "+module.head_lr=0.1", "+module.seed=1"),
            r"module\.seed is what a run gives to the module: set seed= instead",
        ),
        (own("Forgetful"), "has to keep the network .* self.network = network"),
        (["module._target_=pathlib.Path"], "returns a PosixPath, no LightningModule"),
        (own("Silent", "+module.lr=0.1"), "target_accuracy=0.8 is judged by val/acc, which Silent"),
        (
            own("Silent", "+module.lr=0.1", "target_accuracy=null"),
            "callbacks.best.monitor=val/acc chooses the best checkpoint, but Silent",
        ),
        (
            own("Plain", "+module.lr=0.1", "callbacks=hard_examples"),
            "needs the loss of each image",
        ),
        (
            own("Plain", "+module.lr=0.1", "callbacks=progressive_resizing"),
            "sets train_image_size, .* Plain has none",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused_before_an_epoch(
    tiny: Compose, options: list[str], message: str
) -> None:
    config = tiny(*options)
    with pytest.raises(UserError, match=message):
        train(config)
    assert read_rows(config.run_dir) == []


@pytest.mark.parametrize(
    ("module", "step"),
    [(own("TwoOptimizers", "+module.head_lr=0.1"), 2), (own("Plain", "+module.lr=0.01"), 1)],
    ids=["two optimizers", "a plain module"],
)
def test_a_module_of_ones_own_is_resumed_to_the_bit(
    tiny: Compose, module: list[str], step: int
) -> None:
    options = [*module, "target_accuracy=null", "trainer.max_epochs=2"]
    whole = trained(tiny(*options))
    trained(tiny(*options, f"trainer.max_steps={8 * step}", run_dir="resumed"))
    last = "resumed/checkpoints/last.ckpt"
    options += ["trainer.max_steps=-1", f"resume={last}"]
    resumed = trained(tiny(*options, run_dir="resumed"))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    steps = [row["step"] for row in read_rows("resumed") if "val/acc" in row]
    assert steps == [5, 11]


def test_both_optimizers_of_a_module_step(tiny: Compose) -> None:
    config = tiny(*own("TwoOptimizers", "+module.head_lr=0.1"))
    before = build_module(config, build_data(config))[0].state_dict()
    after = trained(config)
    assert all(not torch.equal(after[n], before[n]) for n in before if n.endswith("weight"))


def test_a_plain_module_leaves_what_it_offers(
    tiny: Compose, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(*own("Plain", "+module.lr=0.01"), "plots=true")
    train(config)
    printed = capsys.readouterr().out
    assert "Plain, which takes no augment, cutmix, loss, optimizer, scheduler" in printed
    assert "Plain has no test_predictions" in printed
    metrics = read_json(Path(config.run_dir) / "metrics.json")
    assert metrics["test/acc"] is not None
    assert metrics["test/loss"] is None
    assert [row["epoch"] for row in read_rows(config.run_dir) if "train/loss" in row] == [1.0]
    best = f"{config.run_dir}/checkpoints/best.ckpt"
    classifier, _ = rebuild(best)
    weights = torch.load(best, weights_only=True)["state_dict"]
    rebuilt = classifier.network.state_dict()
    assert all(torch.equal(rebuilt[name], weights[f"network.{name}"]) for name in rebuilt)


def test_a_metric_of_a_module_that_returns_no_logits_is_refused(tiny: Compose) -> None:
    of_metric = "cifar_lightning.training.callbacks.extra_metric.ExtraMetric"
    f1 = "{_target_: torchmetrics.classification.MulticlassF1Score, _partial_: true}"
    metric = [f"+callbacks.f1={{_target_: {of_metric}, name: f1, metric: {f1}}}"]
    config = tiny(*own("Plain", "+module.lr=0.01"), *metric)
    with pytest.raises(UserError, match=r"needs the logits \[N, classes\]"):
        train(config)
