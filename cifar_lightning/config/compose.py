"""Composes configurations with Hydra."""

import contextlib
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from cifar_lightning.config.paths import sets_path

PACKAGE = Path(__file__).resolve().parents[1]
# Inside the package if it is installed, beside it in a checkout.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

# Overrides that a run's title leaves out: it has them in another form, they do not change what is
# trained, or all trials of a search have them.
NOT_IN_TITLE = (
    *("data", "experiment", "seed", "trainer", "trainer.gpus", "trainer.num_nodes"),
    *("target_accuracy", "trainer.limit_test_batches"),
)
LONGEST_TITLE = 100  # characters; W&B allows 128


def run_name(experiment: Any, model: Any, *, _root_: DictConfig) -> str:
    """A run's name in its folder's: that of its experiment, or else of its model."""
    name = experiment or name_of_part("model", model, OmegaConf.select(_root_, "model._target_"))
    return re.sub(r"[^\w.-]+", "-", str(name))


OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def name_of_part(group: str, option: Any, target: Any) -> Any:
    """The option of a group, or the name of its class if that is not the option's."""
    file = CONF / group / f"{option}.yaml"
    is_read = target and file.is_file()
    written = OmegaConf.select(OmegaConf.load(file), "_target_") if is_read else None
    return option if written in (None, target) else str(target).rpartition(".")[2]


def title(choices: Mapping[str, Any], seed: int, overrides: Sequence[str]) -> str:
    """A run's name on W&B: experiment or model, overrides that change the training, and seed."""
    experiment, model = choices.get("experiment"), str(choices.get("model"))
    words = [experiment or model]
    for override in overrides:
        key = key_of(override)
        left_out = key in NOT_IN_TITLE or (key == "model" and not experiment)
        if not left_out and not key.startswith("hydra") and not sets_path(override):
            words.append(override.lstrip("+"))
    name, ending = " ".join(words), f" seed {seed}"
    room = LONGEST_TITLE - len(ending)
    return (name if len(name) <= room else f"{name[: room - 1]}…") + ending


OmegaConf.register_new_resolver("title", title, replace=True)


def compose(
    overrides: Sequence[str] = (),
    run_dir: str | Path | None = None,
    config_name: str = "train",
    sweep: str | None = None,
) -> DictConfig:
    """Compose a configuration as the command line does, for notebooks and tests.

    Args:
        overrides: as on the command line.
        run_dir: the run's folder; by default a new one where the command line has its runs.
        config_name: the file in conf/.
        sweep: name of the sweep or search that the run belongs to.
    """
    running = GlobalHydra.instance().is_initialized()  # within a command, such as search
    with (
        contextlib.nullcontext()
        if running
        else hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF))
    ):
        config = hydra.compose(config_name, list(overrides), return_hydra_config=True)
    hydra_config = config.hydra
    if run_dir is None:
        state = HydraConfig.instance()
        before = state.cfg
        state.set_config(config)  # for ${hydra:…} in the folder's name
        try:
            folder = Path(hydra_config.run.dir).parent
        finally:
            state.cfg = before
        name = f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}_composed"
        run_dir = folder / name
    with open_dict(config):
        del config["hydra"]
    complete(config, hydra_config, run_dir, sweep)
    return config


def complete(config: DictConfig, hydra_config: Any, run_dir: str | Path, sweep: str | None) -> None:
    """Add what only Hydra knows: choices, overrides, the run's folder and id.

    Where a part's class is not that of the option, its name takes the option's place in `choices`.

    Args:
        config: changed in place.
        hydra_config: Hydra's own part of the configuration.
        run_dir: the run's folder.
        sweep: name of the sweep or search that the run belongs to, if any.
    """
    choices = hydra_config.runtime.choices
    with open_dict(config):
        config.choices = {
            group: name_of_part(group, option, OmegaConf.select(config, f"{group}._target_"))
            for group, option in choices.items()
            if not group.startswith("hydra/")
        }
        config.overrides = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
        config.sweep = sweep
        folder = Path(run_dir).absolute()
        config.run_dir = str(folder)
        # The run's name elsewhere, as on W&B; jobs in a sweep's folder have only numbers.
        name = f"{folder.parent.name}-{folder.name}" if folder.name.isdigit() else folder.name
        # A folder may be used twice, an id on W&B may not.
        config.run_id = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}-{secrets.token_hex(3)}"


def typed_config_dir() -> str | None:
    """The `--config-dir` of this command line; None if there is none."""
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    return next((str(s.path) for s in sources if s.provider == "command-line"), None)


def overrides_of(config: DictConfig) -> list[str]:
    """The overrides of a configuration, with interpolations unresolved.

    `seed=${hydra:job.num}`, for example, can be resolved only within its job.
    """
    overrides: Any = OmegaConf.to_container(config.overrides)
    return list(overrides)


def key_of(override: str) -> str:
    """The key that an override sets."""
    return override.lstrip("+~").partition("=")[0]
