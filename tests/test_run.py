from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from cifar_lightning import run
from cifar_lightning.errors import UserError
from cifar_lightning.train import train

Compose = Callable[..., DictConfig]


@pytest.mark.parametrize(
    ("gpus", "available", "expected"),
    [
        ("auto", 0, ("cpu", 1)),
        ("auto", 3, ("gpu", 3)),
        (0, 2, ("cpu", 1)),
        (1, 2, ("gpu", 1)),
        (2, 2, ("gpu", 2)),
        ([0, 2], 3, ("gpu", [0, 2])),
    ],
)
def test_devices(gpus: str | int | list[int], available: int, expected: object) -> None:
    assert run.choose_devices(gpus, available) == expected


def test_one_gpu_where_there_is_none_is_a_warning_that_cannot_be_missed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run.choose_devices(1, 0) == ("cpu", 1)
    assert "has no GPU: training on the CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gpus", "available", "message"),
    [
        (2, 1, "machine has 1 GPU"),
        (2, 0, "machine has 0 GPUs"),
        ([0, 2], 2, r"has 2, counted from 0"),
        ([1, 1], 2, "names a GPU twice"),
        ([], 2, "names a GPU twice or one that does not exist"),
        (-1, 2, "not auto, a count from 0"),
        ("many", 2, "not auto, a count from 0"),
        (1.5, 2, "not auto, a count from 0"),
        (True, 2, "not auto, a count from 0"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    gpus: str | int | list[int], available: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run.choose_devices(gpus, available)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("fpu avx512_bf16 amx_tile", "bf16-mixed"),
        ("fpu amx_bf16", "bf16-mixed"),
        ("fpu avx512f avx512bw", "32-true"),
        ("", "32-true"),
    ],
)
def test_precision_on_a_cpu_asks_the_chip(
    flags: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_cpu_info", lambda: {"flags": flags})
    assert run.choose_precision("cpu") == precision


@pytest.mark.parametrize(
    ("capability", "precision"), [((9, 0), "bf16-mixed"), ((7, 5), "16-mixed")]
)
def test_precision_on_a_gpu_asks_the_chip(
    capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert run.choose_precision("gpu") == precision


def test_class_count_and_image_size_travel_from_the_data_to_the_network(tiny: Compose) -> None:
    config = tiny("data.image_size=40")
    data = run.build_data(config)
    classifier, budget = run.build_classifier(config, data)
    assert classifier(data.test.images[:2]).shape == (2, 10)
    assert budget.multiply_adds > 44_167_744
    assert (
        run.build_network(config, num_classes=3, image_size=40)(torch.zeros(1, 3, 40, 40)).shape[1]
        == 3
    )


def test_images_too_small_for_the_network_are_named(tiny: Compose) -> None:
    config = tiny("data.image_size=20")
    with pytest.raises(UserError, match="model: dilated_dw needs images of at least 24 x 24"):
        run.build_classifier(config, run.build_data(config))


def test_compiling_keeps_the_checkpoints_keys(tiny: Compose) -> None:
    plain = run.build_classifier(config := tiny(), data := run.build_data(config))[0]
    compiled = run.build_classifier(tiny("trainer.compile=true"), data)[0]
    assert list(compiled.state_dict()) == list(plain.state_dict())


def test_a_checkpoint_rebuilds_itself_without_pickle(tiny: Compose, tmp_path: Path) -> None:
    metrics = train(tiny("optimizer=sgd", "seed=3"))
    classifier, config = run.rebuild(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert config.optimizer._target_ == "torch.optim.SGD"
    assert classifier.classes[0] == "bar"
    data = run.build_data(config)
    with torch.no_grad():
        guesses = classifier.eval()(data.test.images).argmax(1)
    accuracy = (guesses == data.test.labels).float().mean().item()
    assert accuracy == pytest.approx(metrics["test/acc"], abs=1.5 / len(data.test))  # bf16


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"hello")
    torch.save({"weights": torch.ones(1)}, tmp_path / "y.ckpt")
    for name, message in (
        ("x.ckpt", "is not a checkpoint of cifar-lightning"),
        ("y.ckpt", "is not a checkpoint of cifar-lightning"),
        ("z.ckpt", "there is no such file"),
    ):
        with pytest.raises(UserError, match=message):
            run.rebuild(tmp_path / name)


def test_a_resumed_configuration_is_the_checkpoints_with_overrides_on_top(
    tiny: Compose, tmp_path: Path
) -> None:
    train(tiny("optimizer.lr=0.07", "seed=5"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    overrides = ["trainer.max_epochs=9", "scheduler=cosine", f"resume={last}"]
    config = run.resumed(tiny(*overrides, run_dir="other"), overrides)
    assert (config.optimizer.lr, config.seed) == (0.07, 5)
    assert config.trainer.max_epochs == 9
    assert config.scheduler._target_ == "cifar_lightning.optim.cosine_schedule"
    assert config.choices.scheduler == "cosine"
    assert config.run_id == "run"  # the same run on W&B
    assert config.run_dir == str(tmp_path / "other")
    with pytest.raises(UserError, match="leave experiment= out"):
        run.resumed(config, ["experiment=sgd"])
