import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import Bomb
from conftest import Compose
from programs import read_json
from test_classifier import classifier, images, smoothed
from torch import Tensor, nn

from cifar_lightning import run
from cifar_lightning.config.compose import compose
from cifar_lightning.errors import UserError
from cifar_lightning.models import ResidualDW
from cifar_lightning.models.budget import train_tflop
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import train
from cifar_lightning.training.distillation import Distillation


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def test_the_teachers_share_is_the_divergence_from_its_answers() -> None:
    student, taught = classifier(linear(), loss=smoothed(0.3)), classifier(linear())
    student.augment = lambda images, index, epoch, generator: images
    labels = torch.arange(16) % 3
    batch = (images(), labels, torch.arange(16))
    alone = student.training_step(batch, 0)["losses"]
    student.distillation = Distillation(taught, "linear", weight=0.25, temperature=2.0)
    together = student.training_step(batch, 0)["losses"]
    p = (taught(images()) / 2).softmax(1)
    divergence = (p * (p.log() - (student(images()) / 2).log_softmax(1))).sum(1)
    assert isinstance(alone, Tensor)
    assert isinstance(together, Tensor)
    assert torch.allclose(together, 0.75 * alone + 0.25 * 4 * divergence, atol=1e-6)


def test_a_student_with_its_teachers_weights_has_nothing_to_learn_from_it() -> None:
    network = linear()
    student, taught = classifier(network), classifier(network)
    student.augment = lambda images, index, epoch, generator: images
    student.distillation = Distillation(taught, "linear", weight=1.0, temperature=4.0)
    loss = student.training_step((images(), torch.arange(16) % 3, torch.arange(16)), 0)["loss"]
    assert isinstance(loss, Tensor)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_a_teacher_sees_the_augmented_images_and_stays_as_it_is() -> None:
    student, taught = classifier(linear()), classifier(nn.Sequential(nn.BatchNorm2d(3), linear()))
    student.augment = lambda images, index, epoch, generator: images.flip(-1)
    seen = []
    taught.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    student.distillation = Distillation(taught, "linear", weight=0.5, temperature=1.0)
    before = {name: tensor.clone() for name, tensor in taught.state_dict().items()}
    loss = student.training_step((images(), torch.arange(16) % 3, torch.arange(16)), 0)["loss"]
    assert isinstance(loss, Tensor)
    loss.backward()
    assert torch.equal(seen[0], taught.normalise(images().flip(-1)))
    assert all(torch.equal(before[name], now) for name, now in taught.state_dict().items())
    assert all(weight.grad is None for weight in taught.parameters())
    assert "teacher" not in str([*student.state_dict()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 1.1, "temperature": 1.0}, "weight must be from 0 to 1, not 1.1"),
        ({"weight": 0.5, "temperature": 0.0}, "temperature must be above 0, not 0.0"),
    ],
)
def test_a_teacher_refuses(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(classifier(linear()), "linear", **arguments)


def test_a_teacher_trains_another_network_whose_checkpoint_needs_it_no_more(
    trained_run: Path, tiny: Compose, tmp_path: Path
) -> None:
    of_teacher = read_json(trained_run / "metrics.json")
    shutil.copytree(trained_run, tmp_path / "teacher")
    taught_by = f"teacher={tmp_path}/teacher/checkpoints/best.ckpt"
    options = ["model=residual_dw_257k", "distillation.weight=1"]
    metrics = train(tiny(taught_by, *options, run_dir="student"))
    assert (of_teacher["teacher"], metrics["teacher"]) == (None, "dilated_dw")
    alone = train_tflop(ResidualDW(), {32: 150})
    assert metrics["train_tflop"] == pytest.approx(alone + of_teacher["train_tflop"] / 3, rel=1e-4)
    # The divergence of two hardly trained networks, where the labels' loss is about log(10).
    assert read_rows(tmp_path / "student")[0]["train/loss"] < 1

    with pytest.raises(UserError, match=r"at 32 x 32 pixels, but the data has .* at 28 x 28"):
        train(tiny(taught_by, "data.image_size=28", run_dir="other"))
    shutil.rmtree(tmp_path / "teacher")
    last = tmp_path / "student" / "checkpoints" / "last.ckpt"
    assert run.rebuild(last)[0].distillation is None
    with pytest.raises(UserError, match=r"best\.ckpt: there is no such file"):
        train(compose([f"resume={last}", "trainer.max_epochs=2"], tmp_path / "student"))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["teacher=nowhere.ckpt"], "nowhere.ckpt: there is no such file."),
        (["teacher=bomb.ckpt"], "is not a checkpoint of cifar-lightning"),
        (["distillation.weight=some"], "distillation.weight=some should be a valid number"),
        (["+distillation.wight=1"], "no such argument. Did you mean distillation.weight"),
    ],
)
def test_a_mistake_of_a_teacher_is_named(tiny: Compose, typed: list[str], message: str) -> None:
    torch.save({"state_dict": Bomb()}, "bomb.ckpt")
    with pytest.raises(UserError, match=message):
        train(tiny(*typed))
