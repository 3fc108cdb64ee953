"""What a checkpoint holds, and how it is rebuilt."""

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Bomb, changed, in_network
from conftest import TINY
from hydra.utils import instantiate

from cifar_lightning import run
from cifar_lightning.checkpoints import io, trusted
from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.errors import UserError
from cifar_lightning.train import train


@pytest.fixture
def best(trained_run: Path, tmp_path: Path) -> Path:
    """A checkpoint, whose content `changed` changes."""
    return Path(shutil.copy(trained_run / "checkpoints" / "best.ckpt", tmp_path))


def test_a_checkpoint_says_what_inference_needs_and_nothing_of_the_rest(best: Path) -> None:
    said = torch.load(best, weights_only=True)["hyper_parameters"]
    assert set(said) == {field.name for field in dataclasses.fields(io.ModelInfo)}
    target = "cifar_lightning.models.DilatedDW"
    assert said["network"] == {"_target_": target, "num_classes": 10, "image_size": 32}
    assert dataclasses.asdict(run.rebuild(best)[1]) == said


MINE = """
import pytorch_lightning as pl
from cifar_lightning.training.augment import Augment
from cifar_lightning.training.optim import linear_schedule
class Watch(pl.Callback): pass
"""


def test_a_checkpoint_needs_nothing_of_its_training_but_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    with monkeypatch.context() as installed:
        installed.syspath_prepend(tmp_path)
        own = ["augment._target_=mine.Augment", "scheduler._target_=mine.linear_schedule"]
        train(compose([*TINY, *own, "+callbacks.mine._target_=mine.Watch"], tmp_path / "run"))
    (tmp_path / "mine.py").unlink()
    del sys.modules["mine"]
    assert run.rebuild(tmp_path / "run" / "checkpoints" / "best.ckpt")[0].image_size == 32


SHELL = {"_target_": "os.mkdir", "path": "was_called"}
MAKES_FOLDER = "{oc.create:{_target_:os.mkdir,path:was_called}}"


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (SHELL, r"wants to call 'os\.mkdir' in model"),
        ({"num_classes": [[SHELL]]}, r"wants to call 'os\.mkdir' in model"),
        ({"_target_": "cifar_lightning.config.compose.Path.mkdir"}, "wants to call"),
        # conf/ calls it, and not as a model.
        ({"_target_": "pytorch_lightning.callbacks.ModelCheckpoint"}, "wants to call"),
        ({"_target_": ["os.mkdir"]}, "wants to call"),
        ({"_target_": "${oc.decode:os.mkdir}"}, "wants to call"),
        ({"x": ((f"\\${MAKES_FOLDER}",),)}, "wants to evaluate"),
        ({"num_classes": "${oc.env:HOME}"}, "wants to evaluate"),
    ],
)
def test_what_a_checkpoint_wants_to_call_is_not_called(
    network: dict[str, Any], message: str, best: Path
) -> None:
    changed(best, in_network(lambda known: known.update(network)))
    with pytest.raises(UserError, match=message):
        run.rebuild(best)
    assert not Path("was_called").exists()
    instantiate(SHELL)  # it would have been
    assert Path("was_called").is_dir()


def test_code_in_a_checkpoint_is_not_run(best: Path) -> None:
    content = torch.load(best, weights_only=True)
    torch.save(content | {"more": Bomb()}, best)
    with pytest.raises(UserError, match="is not a checkpoint of cifar-lightning"):
        run.rebuild(best)
    assert not Path("was_called").exists()
    torch.load(best, weights_only=False)  # it would have been
    assert Path("was_called").is_dir()


def test_a_network_of_ones_own_is_rebuilt_once_a_configuration_names_it(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = "cifar_lightning.models.dilated_dw.DilatedDW"  # conf/ has a shorter name for it
    changed(best, in_network(lambda network: network.update(_target_=target)))
    with pytest.raises(UserError, match=r"name it there, as a network in conf/model/NAME\.yaml"):
        run.rebuild(best)
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(trusted, "CONF", tmp_path / "conf")
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(f"_target_: {target}\n")
    mine = tmp_path / "conf" / "experiment" / "mine.yaml"
    try:
        for content in ("# @package _global_\n", ""):
            mine.write_text(content)
            trusted.known_targets.cache_clear()
            assert run.rebuild(best)[0].image_size == 32
        mine.write_text("a: [")
        trusted.known_targets.cache_clear()
        with pytest.raises(UserError, match=r"mine\.yaml cannot be read"):
            run.rebuild(best)
    finally:
        trusted.known_targets.cache_clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["state_dict"].popitem(),
            r"its weights do not fit .*DilatedDW here .*Missing key",
        ),
        (
            lambda content: (
                content["hyper_parameters"].update(version="9.9.9")
                or content["hyper_parameters"]["network"].update(width=3)
            ),
            r"cannot be rebuilt \(written by cifar-lightning 9\.9\.9; this is .*unexpected keyword",
        ),
        (
            in_network(lambda network: network.pop("_target_")),
            "of a version that this one .* does not know",
        ),
        (
            lambda content: content["hyper_parameters"].update(std=[0, 1, 1]),
            "of a version that this one .* does not know",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named_in_one_message(
    change: Callable[[dict[str, Any]], object], message: str, best: Path
) -> None:
    changed(best, change)
    with pytest.raises(UserError, match=f"best.ckpt.*{message}"):
        run.rebuild(best)


@pytest.mark.parametrize("content", [None, [], {"weights": torch.ones(1)}, torch.ones(3)])
def test_a_file_that_is_no_checkpoint_is_named(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="is not a checkpoint of cifar-lightning"):
        io.read_checkpoint(tmp_path / "x.ckpt")
