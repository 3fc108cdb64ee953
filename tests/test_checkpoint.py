from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from cifar_lightning import checkpoint, run
from cifar_lightning.errors import UserError
from cifar_lightning.train import train

Compose = Callable[..., DictConfig]


def test_a_resumed_configuration_is_the_checkpoints_with_overrides_on_top(
    tiny: Compose, tmp_path: Path
) -> None:
    train(tiny("optimizer.lr=0.07", "seed=5"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    typed = ["trainer.max_epochs=9", "scheduler=cosine", "target_accuracy=0.5", f"resume={last}"]
    config = checkpoint.resumed(compose_only(tiny, typed))
    assert (config.optimizer.lr, config.seed, config.data.train_size) == (0.07, 5, 200)
    assert config.trainer.max_epochs == 9
    assert config.scheduler._target_ == "cifar_lightning.optim.cosine_schedule"
    assert config.choices.scheduler == "cosine"
    before = run.rebuild(last)[1]
    assert config.run_id == before.run_id != compose_only(tiny, typed).run_id  # one run on W&B
    # What depends on an override follows it.
    assert config.run_dir == str(tmp_path / "other")
    assert config.callbacks.best.dirpath == str(tmp_path / "other" / "checkpoints")
    assert config.callbacks.target.target == 0.5


def compose_only(tiny: Compose, typed: list[str]) -> DictConfig:
    """As typed after the command, without the options that make the tests' runs tiny."""
    config = tiny(*typed, run_dir="other")
    config.overrides = typed
    return config


@pytest.mark.parametrize(
    "key",
    [
        "experiment=sgd",
        "optimizer=sgd",
        "optimizer.lr=1",
        "seed=1",
        "data=shapes",
        "data.split_seed=1",
        "data.val_size=60",
        "trainer=ddp",
        "~callbacks.target",
    ],
)
def test_what_a_checkpoint_decides_cannot_be_overridden(
    tiny: Compose, tmp_path: Path, key: str
) -> None:
    train(tiny())
    typed = [f"resume={tmp_path}/run/checkpoints/last.ckpt", key]
    with pytest.raises(UserError, match=f"leave {key.partition('=')[0]}= out"):
        checkpoint.resumed(compose_only(tiny, typed))


def test_a_checkpoint_of_the_middle_of_an_epoch_is_refused(tiny: Compose, tmp_path: Path) -> None:
    train(tiny("trainer.val_check_interval=0.5", "target_accuracy=0.0"))
    typed = [f"resume={tmp_path}/run/checkpoints/best.ckpt"]
    with pytest.raises(UserError, match=r"saved in the middle of an epoch.*Take last\.ckpt"):
        checkpoint.resumed(compose_only(tiny, typed))


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"hello")
    torch.save({"weights": torch.ones(1)}, tmp_path / "y.ckpt")
    for name, message in (
        ("x.ckpt", "is not a checkpoint of cifar-lightning"),
        ("y.ckpt", "is not a checkpoint of cifar-lightning"),
        ("z.ckpt", "there is no such file"),
    ):
        with pytest.raises(UserError, match=message):
            checkpoint.read_checkpoint(tmp_path / name)
