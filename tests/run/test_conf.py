import re
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from cifar_lightning import run
from cifar_lightning.config.comments import read_option
from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.data import ShapesData
from cifar_lightning.train import train

Compose = Callable[..., DictConfig]

GROUPS = ("augment", "data", "init", "loss", "model", "optimizer", "scheduler")
OPTIONS = sorted(
    (path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name in GROUPS
)


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def test_every_group_is_looked_at_here() -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    others = {"callbacks", "debug", "experiment", "hydra", "logger", "search", "trainer"}
    others |= {"module", "shared"}  # a LightningModule needs a network; parts of other files
    assert {*GROUPS} <= groups <= {*GROUPS, *others}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_instantiates_by_itself(group: str, option: str) -> None:
    config = OmegaConf.load(CONF / group / f"{option}.yaml")
    assert instantiate(config) is not None


@pytest.mark.parametrize("option", names("callbacks"))
def test_every_set_of_callbacks_builds(option: str, tiny: Compose, shapes: ShapesData) -> None:
    assert run.build_callbacks(tiny(f"callbacks={option}"), shapes)


def test_a_callback_can_be_taken_out(tiny: Compose) -> None:
    assert train(tiny("callbacks.nan=null", "~callbacks.target"))["stopped_by"] == "max_epochs"


@pytest.mark.parametrize("option", names("trainer"))
def test_every_trainer_builds(option: str, tiny: Compose, shapes: ShapesData) -> None:
    config = tiny(f"trainer={option}", "data.batch_size=24")
    trainer = run.build_trainer(config, run.build_callbacks(config, shapes))
    assert trainer.max_epochs == 1


@pytest.mark.parametrize("option", names("experiment"))
def test_every_experiment_runs_two_steps(option: str, tiny: Compose) -> None:
    metrics = train(
        tiny(
            f"experiment={option}",
            # An experiment may choose its own; a test of two steps has the last word.
            "trainer.max_epochs=1",
            "data.batch_size=25",
            "trainer.limit_train_batches=2",
            "target_accuracy=null",
        )
    )
    assert metrics["test/acc"] is not None


@pytest.mark.parametrize("option", names("experiment"))
def test_every_experiment_begins_with_its_command_and_its_result(option: str) -> None:
    experiment = read_option("experiment", option)
    assert experiment.examples == [f"python -m cifar_lightning.train experiment={option}"]
    assert re.search(r"\d\d\.\d+ (± \d\.\d+ )?%.*seed", experiment.about)


OPTIMIZERS, SCHEDULERS = names("optimizer"), names("scheduler")


@pytest.mark.parametrize("number", range(max(len(OPTIMIZERS), len(SCHEDULERS))))
def test_every_optimizer_and_every_scheduler_trains(number: int, tiny: Compose) -> None:
    config = tiny(
        f"optimizer={OPTIMIZERS[number % len(OPTIMIZERS)]}",
        f"scheduler={SCHEDULERS[number % len(SCHEDULERS)]}",
        "trainer.limit_train_batches=2",
    )
    assert train(config)["test/loss"] > 0


@pytest.mark.parametrize("option", names("data"))
def test_data_options_take_their_places_from_the_environment(
    option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFAR10_ROOT", "/official")
    monkeypatch.setenv("CIFAR10_FOLDER", "/copy")
    config = compose([f"data={option}"])
    expected = {"cifar10": ("root", "/official"), "folder": ("path", "/copy")}
    if option in expected:
        key, value = expected[option]
        assert config.data[key] == value
    assert config.choices.data == option


def test_no_run_folder_name_needs_quoting() -> None:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        for override, name in (([], "dilated_dw"), (["experiment=sgd"], "sgd")):
            config = hydra.compose("train", override, return_hydra_config=True)
            folder = Path(config.hydra.run.dir)
            assert folder.parent == Path("runs/train")
            assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{{6}}_{name}", folder.name)
