"""The content of a checkpoint, and how a network is rebuilt from it."""

import dataclasses
import shutil
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from checkpoints import Bomb, Copies, changed, changed_record, in_network
from conftest import TINY, Compose
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf
from programs import hydra_restored

from cifar_lightning import run
from cifar_lightning.checkpoints import io, trusted
from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.errors import DataUnavailable, UserError
from cifar_lightning.tracking.run_folder import RunFolder
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
import torch
from pytorch_lightning.loggers import Logger
from cifar_lightning.training.augment import Augment
from cifar_lightning.training.optim import linear_schedule
class Adam(torch.optim.Adam): pass
class Trainer(pl.Trainer): pass
class Watch(pl.Callback):
    def state_dict(self): return {"seen": 1}
class Log(Logger):
    name = version = "mine"
    def log_metrics(self, metrics, step=None): pass
    def log_hyperparams(self, params): pass
"""
OWN = {
    "augment/mine.yaml": "_target_: mine.Augment",
    "callbacks/mine.yaml": "defaults: [default]\nmine: {_target_: mine.Watch}",
    "logger/mine.yaml": "mine: {_target_: mine.Log}",
    "optimizer/mine.yaml": "{_target_: mine.Adam, _partial_: true, lr: 0.001}",
    "scheduler/mine.yaml": "{_target_: mine.linear_schedule, _partial_: true}",
    "trainer/mine.yaml": "defaults: [default]\n_target_: mine.Trainer",
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose parts are of a module and a folder of configurations of its own."""
    place = tmp_path_factory.mktemp("own")
    (place / "mine.py").write_text(MINE)
    for name, content in OWN.items():
        file = place / "conf" / name
        file.parent.mkdir(parents=True)
        file.write_text(content)
    options = [name.replace("/", "=").removesuffix(".yaml") for name in OWN]
    with pytest.MonkeyPatch.context() as installed:
        installed.syspath_prepend(place)
        conf = f"hydra.searchpath=['file://{place}/conf']"
        train(compose([*TINY, *options, conf, "target_accuracy=null"], place / "run"))
    del sys.modules["mine"]
    (place / "mine.py").unlink()
    shutil.rmtree(place / "conf")
    return place / "run"


@pytest.fixture
def moved(own: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(own, tmp_path / "elsewhere"))


INFERENCE = OmegaConf.create({"overrides": []})


def test_inference_needs_nothing_of_a_training_but_the_network_and_the_data(moved: Path) -> None:
    best = moved / "checkpoints" / "best.ckpt"
    _, info = run.rebuild(best)
    data, option, _ = run.rebuild_data(INFERENCE, best, info)
    assert (option, len(data.test), info.image_size) == ("shapes", 60, 32)
    assert not RunFolder(moved).read().problems


def test_a_resume_lists_what_is_missing_and_what_to_type(moved: Path) -> None:
    resume = f"resume={moved}/checkpoints/last.ckpt"
    missing = {
        "augment": "Augment",
        "callbacks.mine": "Watch",
        "logger.mine": "Log",
        "optimizer": "Adam",
        "scheduler": "linear_schedule",
        "trainer": "Trainer",
    }
    typed = [f"{key}._target_=mine.{name}" for key, name in missing.items()]
    with pytest.raises(UserError) as raised:
        train(compose([resume]))
    assert f"has at that key: {', '.join(typed)}. Nothing was called. If it is your own" in str(
        raised.value
    )
    assert str(raised.value).endswith(
        "without it: augment=OPTION scheduler=OPTION ~callbacks.mine ~logger.mine."
    )
    added = [f"+{text}" if ".mine." in text else text for text in typed]
    with pytest.raises(UserError, match=r"_target_=mine.*: No module named 'mine'"):
        train(compose([resume, *added]))


def test_of_a_record_inference_reads_its_data_alone(moved: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        del record["callbacks"], record["trainer"], record["cutmix"]
        record.update(later=[1], x="${oc.env:HOME}", optimizer={"lr": "${nowhere}"}, size=70)
        record["data"].update(test_size="${size}")

    best = moved / "checkpoints" / "best.ckpt"
    _, info = run.rebuild(best)
    changed_record(moved, change)
    assert len(run.rebuild_data(INFERENCE, best, info)[0].test) == 70
    changed_record(moved, lambda record: record.update(size=f"${MAKES_FOLDER}"))
    with pytest.raises(UserError, match=r"config\.yaml cannot be read: .*[Mm]issing"):
        run.rebuild_data(INFERENCE, best, info)
    changed_record(moved, lambda record: record["data"].update(test_size=60, later=1))
    with pytest.raises(
        UserError, match=r"(?s)'later'.*This is the data that the run was trained on\. data=OPTION"
    ):
        run.rebuild_data(INFERENCE, best, info)
    typed = compose(["data=shapes"])
    assert len(run.rebuild_data(typed, best, info)[0].test) == 60
    changed_record(moved, lambda record: record["data"].update(x=f"${MAKES_FOLDER}"))
    with pytest.raises(UserError, match="wants to evaluate"):
        run.rebuild_data(INFERENCE, best, info)
    changed_record(moved, lambda record: record.update(data=SHELL))
    with pytest.raises(
        DataUnavailable, match=r"data\._target_=os\.mkdir\. Nothing was called\. data=OPTION gives"
    ):
        run.rebuild_data(INFERENCE, best, info)
    assert not Path("was_called").exists()


SHELL = {"_target_": "os.mkdir", "path": "was_called"}
MAKES_FOLDER = "{oc.create:{_target_:os.mkdir,path:was_called}}"


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (SHELL, r"has at that key: model.*_target_=os\.mkdir\."),
        ({"num_classes": [[SHELL]]}, r"has at that key: model.*_target_=os\.mkdir\."),
        ({"_target_": "cifar_lightning.config.compose.Path.mkdir"}, "has a _target_ that"),
        # conf/ calls it, and not as a model.
        ({"_target_": "pytorch_lightning.callbacks.ModelCheckpoint"}, "has a _target_ that"),
        ({"_target_": ["os.mkdir"]}, "has a _target_ that"),
        ({"_target_": "${oc.decode:os.mkdir}"}, "has a _target_ that"),
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


class Keeps(pl.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"best": np.float64(0.5)}


def test_a_checkpoint_that_could_not_be_resumed_is_not_written(tiny: Compose) -> None:
    with pytest.raises(
        UserError,
        match=r"the state of the callback Keeps holds numpy.*float\(x\) instead of a NumPy",
    ):
        train(tiny(), {"mine": Keeps()})
    assert not list(Path("run").rglob("*.ckpt*"))


def test_a_checkpoint_of_another_lightning_is_rebuilt_but_not_resumed(moved: Path) -> None:
    last = changed(moved / "checkpoints" / "last.ckpt", lambda content: content["loops"].clear())
    assert run.rebuild(last)[1].image_size == 32
    with pytest.raises(UserError, match="its count of epochs and steps is damaged or from another"):
        train(compose([f"resume={last}"]))


@pytest.mark.parametrize("thing", [Bomb(), Copies(), deque([1])], ids=lambda t: type(t).__name__)
def test_code_in_a_checkpoint_is_not_run(thing: object, best: Path) -> None:
    content = torch.load(best, weights_only=True)
    torch.save(content | {"callbacks": {"mine": [thing]}}, best)
    refused = r"best\.ckpt is not a checkpoint of cifar-lightning: it is damaged, or holds objects"
    for read in (lambda: run.rebuild(best), lambda: train(compose([f"resume={best}"]))):
        with pytest.raises(UserError, match=refused):
            read()
    assert not Path("was_called").exists()
    torch.load(best, weights_only=False)  # it would have been
    assert Path("was_called").exists() == (not isinstance(thing, deque))


def test_a_network_of_ones_own_is_rebuilt_once_a_configuration_names_it(
    best: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = "cifar_lightning.models.dilated_dw.DilatedDW"  # conf/ has a shorter name for it
    changed(best, in_network(lambda network: network.update(_target_=target)))
    with pytest.raises(UserError, match=r"name it in conf/model/NAME\.yaml"):
        run.rebuild(best)
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.setattr(trusted, "CONF", tmp_path / "conf")
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(f"_target_: {target}\n")
    mine = tmp_path / "conf" / "experiment" / "mine.yaml"
    try:
        for content in ("# @package _global_\n", ""):
            mine.write_text(content)
            trusted.targets_of.cache_clear()
            assert run.rebuild(best)[0].image_size == 32
        mine.write_text("a: [")
        trusted.targets_of.cache_clear()
        with pytest.raises(UserError, match=r"mine\.yaml cannot be read"):
            run.rebuild(best)
    finally:
        trusted.targets_of.cache_clear()


def test_a_network_of_ones_own_may_be_in_a_folder_that_the_command_line_names(
    best: Path, tmp_path: Path
) -> None:
    target = "cifar_lightning.models.dilated_dw.DilatedDW"
    changed(best, in_network(lambda network: network.update(_target_=target)))
    mine = tmp_path / "mine" / "model" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text(f"_target_: {target}\n")
    (tmp_path / "mine" / "other").mkdir()
    (tmp_path / "mine" / "other" / "no_configuration.yaml").write_text("a: [")
    typed = [f"hydra.searchpath=['file://{tmp_path}/mine']"]
    with hydra_restored(), initialize_config_dir(str(CONF), version_base="1.3"):
        HydraConfig.instance().set_config(hydra_compose("train", typed, return_hydra_config=True))
        assert run.rebuild(best)[0].image_size == 32
    with pytest.raises(
        UserError, match=rf"model/NAME\.yaml \(_target_: {target}\)\. .*--config-dir conf"
    ):
        run.rebuild(best)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content["state_dict"].popitem(),
            r"its weights do not fit .*installed .*DilatedDW .*Missing key",
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
            "is from a version that this one .* cannot read",
        ),
        (
            lambda content: content["hyper_parameters"].update(std=[0, 1, 1]),
            "is from a version that this one .* cannot read",
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
