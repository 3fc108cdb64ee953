"""Refuses what makes no sense in a training's configuration, before anything is built."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from cifar_lightning.config.compose import CONF, key_of
from cifar_lightning.config.habits import near, question, suggestion
from cifar_lightning.config.messages import OF_A_RUN, names_in
from cifar_lightning.config.refused import FIXED_ARGUMENTS, UNSUPPORTED_CALLBACKS, refusal
from cifar_lightning.config.validate import (
    ADDED,
    OF_A_MODULE,
    check_part,
    check_values,
    in_yaml,
    parameters_of,
    takes,
    target_of,
)
from cifar_lightning.errors import UserError

PARTS = ("data", "augment", "init", "loss", "model", "module", "optimizer", "scheduler")
# The keys of trainer that the run itself reads, and those that it converts for the Trainer.
TRAINER_KEYS = ("compile", "deterministic", "gpus", "max_epochs", "precision")
CONVERTED = ("compile", "gpus", "precision")
# Keys whose values a run replaces by the data's.
OF_THE_DATA = (
    *("callbacks.target.test_images", "callbacks.target.val_images"),
    *("model.image_size", "model.num_classes"),
)
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
# Types of the values at the configuration's top level; the others' are in signatures.
SETTINGS: dict[str, Any] = {
    "seed": int,
    "target_accuracy": Share | None,
    "target_confidence": Annotated[float, Field(ge=0.5, lt=1)],
    "cutmix": Share,
    "plots": bool,
    "rehearse_without_data": bool,
}
SETTINGS_OF_BUDGET: dict[str, Any] = {
    "max_params": Annotated[float, Field(ge=0)] | None,
    "min_dilated": NotNegative | None,
    "min_separable": NotNegative | None,
}
# What PyTorch does not check before the first step, or at all.
SETTINGS_OF_LOSS: dict[str, Any] = {
    "label_smoothing": Annotated[float, Field(ge=0, lt=1)],  # 1 would hide the labels
}
SETTINGS_OF_OPTIMIZER: dict[str, Any] = {"momentum": Annotated[float, Field(ge=0, lt=1)]}
SETTINGS_OF_TRAINER: dict[str, Any] = {
    "accumulate_grad_batches": Count,
    "check_val_every_n_epoch": Count | None,
    "compile": bool,
    "gradient_clip_val": Annotated[float, Field(ge=0)] | None,
    "limit_test_batches": NotNegative | Share | None,  # a number of batches, or a fraction
    "limit_train_batches": Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, le=1)] | None,
    "limit_val_batches": NotNegative | Share | None,
    "log_every_n_steps": NotNegative | None,
    "max_epochs": Count,
    "max_steps": Literal[-1] | Count,
    "min_epochs": NotNegative | None,
    "min_steps": NotNegative | None,
    "num_nodes": Count,
    "num_sanity_val_steps": Annotated[int, Field(ge=-1)] | None,
}
# What a run logs that a callback may monitor.
METRICS = (
    *("train/loss", "train/acc", "val/loss", "val/acc", "lr", "epoch"),
    *("throughput/images_per_s", "throughput/train_seconds"),
)
# A run logs once per validation; values are read at no step.
NO_STEP = 1_000_000_000


def check_config(config: DictConfig) -> None:
    """Check all that can be checked without the data and the machine, but for the budget's limits.

    Raises:
        UserError: names the key, its value, and what would fit.
    """
    values: Any = OmegaConf.to_container(config, resolve=True)
    _check_presence(values)
    if values.get("resume") is None:  # a resume continues what has trained before
        _check_that_all_is_read(config)
    _check_finite("", values)
    check_values("", SETTINGS | {"teacher": str | None}, values)
    check_values("budget.", SETTINGS_OF_BUDGET, values["budget"])
    _check_trainer(values["trainer"])
    if "seed" in values["data"]:
        raise UserError("data.seed would be ignored: seed= also sets the order of the images.")
    check_values("loss.", SETTINGS_OF_LOSS, values["loss"])
    check_values("optimizer.", SETTINGS_OF_OPTIMIZER, values["optimizer"])
    _check_scheduler(values["scheduler"])
    for key in PARTS:
        check_part(key, values[key])
    _check_module(values["module"], config.overrides)
    if values.get("teacher") is not None or "distillation" in values:
        check_part("distillation", values.get("distillation"))
    trainer = {k: v for k, v in values["trainer"].items() if k not in CONVERTED}
    check_part("trainer", trainer)
    for name, part in values["logger"].items():
        if part is not None:  # null removes it
            check_part(f"logger.{name}", part)
    _check_callbacks(values)
    if values["target_accuracy"] is not None and (reason := why_no_validation(values)):
        raise UserError(
            f"{reason} leaves no validation to judge the target by: set target_accuracy=null too."
        )


def why_no_validation(values: Any) -> str | None:
    """The setting by which a training never validates; None if none is known here."""
    trainer = values["trainer"]
    if values["data"].get("val_size") == 0:
        return "data.val_size=0"
    if trainer.get("limit_val_batches") == 0:
        return "trainer.limit_val_batches=0"
    every = trainer.get("check_val_every_n_epoch")
    if isinstance(every, int) and every > trainer["max_epochs"]:
        return f"trainer.check_val_every_n_epoch={every}, of {trainer['max_epochs']} epochs,"
    return None


def _check_presence(values: Any) -> None:
    """Refuse a configuration that lacks a key, or has a value where a group is needed."""
    groups = (*PARTS, "budget", "callbacks", "logger", "trainer")
    _refuse_missing("", values, (*sorted(SETTINGS), *groups))
    for key in groups:
        if not isinstance(values[key], dict):
            raise UserError(
                f"{key}={in_yaml(values[key])} is neither an option nor a group of keys."
            )
    _refuse_missing("trainer.", values["trainer"], TRAINER_KEYS)
    for name in ("best", "throughput"):
        if values["callbacks"].get(name) is None:
            raise UserError(f"callbacks.{name} cannot be removed: the results need it.")


def _refuse_missing(prefix: str, values: Mapping[str, Any], keys: Iterable[str]) -> None:
    missing = ", ".join(f"{prefix}{key}" for key in keys if key not in values)
    if missing:
        raise UserError(f"{missing} cannot be removed. Set it to another value.")


def _check_that_all_is_read(config: DictConfig) -> None:
    """Refuse a key at the top level that nothing reads, and one that the data has set anyway."""
    known = {*keys_of_a_training(), *config.choices}
    texts = str(OmegaConf.to_container(config))
    for key in map(str, config):
        is_named = re.search(r"\$\{" + re.escape(key) + r"[.}\[]", texts) is not None
        if key not in known and key not in OF_A_RUN and not is_named:
            if refused := refusal(key):
                raise UserError(refused)
            raise UserError(
                f"There is no setting {key}, and no value refers to it by ${{{key}}}."
                f"{suggestion(key, names_in(config))}"
            )
    for override in config.overrides:
        # A network that has no such argument is given none.
        if (key := key_of(override)) in OF_THE_DATA and not override.startswith("~"):
            raise UserError(f"{override}: a run takes it from the data. Leave it out.")


@cache
def keys_of_a_training() -> list[str]:
    """The settings and groups of conf/train.yaml."""
    file: Any = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"))
    groups = [group for entry in file["defaults"] if isinstance(entry, dict) for group in entry]
    return [*file, *groups]


def _check_finite(key: str, value: Any) -> None:
    """Refuse NaN, and infinity in what is trained with."""
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_finite(f"{key}.{name}" if key else str(name), part)
    elif isinstance(value, float) and (
        math.isnan(value)
        or (math.isinf(value) and key.partition(".")[0] in (*PARTS, "distillation", "trainer"))
    ):
        raise UserError(f"{key}={value} should be a finite number.")


def _check_trainer(values: Mapping[str, Any]) -> None:
    """Refuse arguments of the Trainer that a run sets itself, and values that make no sense."""
    for name, (fixed, _) in FIXED_ARGUMENTS.items():
        if values.get(name, fixed) != fixed:
            raise UserError(refusal(f"trainer.{name}"))
    check_values("trainer.", SETTINGS_OF_TRAINER, values)
    interval = values.get("val_check_interval")
    if isinstance(interval, int | float) and not interval > 0:
        raise UserError(f"trainer.val_check_interval={interval} is not above 0.")
    for unit in ("epochs", "steps"):
        least, most = values.get(f"min_{unit}") or 0, values.get(f"max_{unit}", -1)
        if -1 < most < least:
            raise UserError(
                f"trainer.min_{unit}={least} is more than trainer.max_{unit}={most}, where the "
                "training ends."
            )
    algorithm = values.get("gradient_clip_algorithm")
    if algorithm is not None and not values.get("gradient_clip_val"):
        raise UserError(
            f"trainer.gradient_clip_algorithm={algorithm} clips nothing without "
            "trainer.gradient_clip_val."
        )


def _check_scheduler(part: Mapping[str, Any]) -> None:
    """Refuse a schedule of PyTorch's that cannot be called with the optimizer and the steps."""
    target = target_of("scheduler", part)
    if not str(getattr(target, "__module__", "")).startswith("torch."):
        return
    _, second, *_ = [*(parameters_of(target) or {}), "", ""]
    if second not in ("T_max", "total_iters", "total_steps"):
        raise UserError(
            f"scheduler._target_={target.__qualname__}: a schedule is called with the optimizer "
            f"and the number of steps, which is not {second}. CosineAnnealingLR fits, and any "
            "function (optimizer, steps) of your own that returns a schedule."
        )
    if second in part:
        raise UserError(f"scheduler.{second}: a run gives it the number of steps. Leave it out.")


def _check_module(part: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Refuse what a run itself gives to the module, and overrides that the module does not read."""
    for key in (key for key in part if key in ADDED["module"]):
        where = f": set {key}= instead" if key in (*OF_A_MODULE, "seed") else ""
        raise UserError(f"module.{key} is what a run gives to the module{where}. Leave it out.")
    unused = unused_by(part)
    for override in overrides:
        if (group := key_of(override).partition(".")[0]) in unused:
            raise UserError(
                f"{override}: module._target_={part['_target_']} has no argument {group}, so this "
                "would have no effect. Leave it out."
            )


def unused_by(module: Mapping[str, Any]) -> list[str]:
    """The settings and groups that a module would take, if its constructor had such arguments.

    Args:
        module: its `_target_` and arguments.
    """
    taken = takes(target_of("module", module), OF_A_MODULE)
    return [name for name in OF_A_MODULE if name not in taken]


def _check_callbacks(values: Any) -> None:
    """Refuse a callback that does not work here, or would not do what is meant."""
    parts = {name: part for name, part in values["callbacks"].items() if part is not None}
    for name, part in parts.items():
        _check_class(f"callbacks.{name}", part)
        check_part(f"callbacks.{name}", part)
        if part.get("save_weights_only"):
            raise UserError(
                f"callbacks.{name}: a checkpoint of the weights alone could be "
                "neither resumed nor evaluated. Leave it out; the tool export writes the weights "
                "alone."
            )
    # Another's class may log metrics of its own.
    own = ("cifar_lightning.", "pytorch_lightning.")
    all_known = not any(
        not part["_target_"].startswith(own) or "extra_metric" in part["_target_"]
        for part in parts.values()
    )
    logged = [
        *METRICS,
        *["train/grad_norm"] * any("GradientNorm" in str(p) for p in parts.values()),
    ]
    for name, part in parts.items():
        _check_logging(f"callbacks.{name}", part, values["trainer"].get("log_every_n_steps"))
        _check_monitor(
            f"callbacks.{name}", part, logged if all_known else None, why_no_validation(values)
        )
    _check_checkpoint_folders(parts, values["run_dir"])


def _check_class(key: str, part: Any) -> None:
    """Refuse a class of Lightning's that does not work here."""
    target = str(part.get("_target_")) if isinstance(part, dict) else ""
    name = target.rpartition(".")[2]
    if target.startswith("pytorch_lightning.callbacks.") and name in UNSUPPORTED_CALLBACKS:
        raise UserError(f"{key}: {name} does not work here: {UNSUPPORTED_CALLBACKS[name]}.")


def _check_logging(key: str, part: Mapping[str, Any], log_every_n_steps: Any) -> None:
    """Refuse a callback of Lightning's that logs at steps, if a run logs at none."""
    target = target_of(key, part)
    of_lightning = str(getattr(target, "__module__", "")).startswith("pytorch_lightning.")
    name = getattr(target, "__name__", "")
    by_step = name in ("DeviceStatsMonitor", "ThroughputMonitor") or (
        name == "LearningRateMonitor" and part.get("logging_interval") != "epoch"
    )
    never = log_every_n_steps == 0 or (log_every_n_steps or 0) >= NO_STEP
    if of_lightning and by_step and never:
        raise UserError(
            f"{key}: {name} logs every trainer.log_every_n_steps steps, of which a run has none. "
            "Set trainer.log_every_n_steps=50 too."
        )


def _check_monitor(
    key: str, part: Mapping[str, Any], logged: Sequence[str] | None, no_validation: str | None
) -> None:
    """Refuse a callback's monitor that nothing logs, or a mode that takes the worst for the best.

    Args:
        key: of the callback.
        part: its `_target_` and arguments, which were checked.
        logged: what a run logs; None if a class of another's may log more.
        no_validation: why there is no validation; None if there is one.
    """
    monitor = part.get("monitor")
    if not isinstance(monitor, str):
        return
    mode = (parameters_of(target_of(key, part)) or {}).get("mode")
    chosen = part.get("mode", mode and mode.default)
    for ending, right in (("acc", "max"), ("loss", "min")):
        if monitor.endswith(ending) and chosen in ("max", "min") and chosen != right:
            raise UserError(
                f"{key}: with monitor={monitor} and mode={chosen} the worst would count as the "
                f"best. Set {key}.mode={right}."
            )
    if logged is not None and monitor not in logged:
        hint = question(near(monitor, logged))
        raise UserError(f"{key}.monitor={monitor}: no such metric is logged.{hint}")
    stops = part["_target_"].endswith(".EarlyStopping")
    if stops and monitor.startswith("val/") and no_validation:
        raise UserError(f"{key}: {no_validation} leaves no validation to monitor {monitor} by.")


def _check_checkpoint_folders(callbacks: Mapping[str, Any], run_dir: str) -> None:
    """Refuse checkpoints in another run's folder, and others' among a run's best and last one."""
    own = Path(run_dir, "checkpoints").resolve()
    for name, part in callbacks.items():
        if "dirpath" not in part:
            continue
        output = part["dirpath"]
        folder = Path(str(output)).expanduser().resolve()
        is_own = folder == own
        if name in ("best", "last") and not is_own:
            raise UserError(
                f"callbacks.{name}.dirpath={in_yaml(output)} is not {own}, where the run's "
                "checkpoints are: leave it out. hydra.run.dir=FOLDER puts the whole run elsewhere."
            )
        if not is_own and folder.name == own.name and (folder.parent / "config.yaml").exists():
            raise UserError(
                f"callbacks.{name}.dirpath={output} has the checkpoints of another run."
            )
        taken = part.get("save_last") or part.get("filename") in ("best", "last")
        if name not in ("best", "last") and is_own and taken:
            raise UserError(
                f"callbacks.{name} would overwrite the run's best.ckpt or last.ckpt: leave its "
                f"dirpath out for checkpoints/{name}, or name another folder."
            )
