"""Checks a configuration against the signatures of what it calls, before anything is built."""

import difflib
import inspect
import math
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from cifar_lightning.config.compose import CONF, key_of
from cifar_lightning.config.messages import OF_A_RUN
from cifar_lightning.config.refused import FIXED_ARGUMENTS, UNSUPPORTED_CALLBACKS, refusal
from cifar_lightning.errors import UserError
from cifar_lightning.system.atomic import is_writable

PARTS = ("data", "augment", "init", "model", "optimizer", "scheduler", "trainer")
# The keys of trainer that the run itself reads.
TRAINER_KEYS = ("compile", "deterministic", "gpus", "max_epochs", "precision")
# Keys whose values a run replaces by the data's.
OF_THE_DATA = (
    *("callbacks.target.test_images", "callbacks.target.val_images"),
    *("model.image_size", "model.num_classes"),
)
ONE_FOR_A_LIST = "Input should be a list, as in [a,b]"
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
MAX_SEED = 2**32 - 1  # seeds of NumPy and Optuna have 32 bits
# Types of the values at the configuration's top level; the others' are in signatures.
SETTINGS: dict[str, Any] = {
    "seed": int,
    "target_accuracy": Share | None,
    "target_confidence": Annotated[float, Field(ge=0.5, lt=1, allow_inf_nan=False)],
    "label_smoothing": Annotated[float, Field(ge=0, lt=1)],  # 1 would hide the labels
    "cutmix": Share,
    "plots": bool,
    "rehearse_without_data": bool,
}
NotNegative = Annotated[int, Field(ge=0)]
SETTINGS_OF_BUDGET: dict[str, Any] = {
    "max_params": Annotated[float, Field(ge=0)] | None,
    "min_dilated": NotNegative | None,
    "min_separable": NotNegative | None,
}
# What PyTorch's SGD does not check.
SETTINGS_OF_OPTIMIZER: dict[str, Any] = {"momentum": Annotated[float, Field(ge=0, lt=1)]}
SETTINGS_OF_TRAINER: dict[str, Any] = {
    "accumulate_grad_batches": Count,
    "check_val_every_n_epoch": Count | None,
    "compile": bool,
    "gradient_clip_val": Annotated[float, Field(ge=0, allow_inf_nan=False)] | None,
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
    target = values["target_accuracy"]
    if isinstance(target, int | float) and target > 1:
        raise UserError(f"target_accuracy={target} is not a fraction from 0 to 1, as 0.8, or null.")
    check_values("", SETTINGS | {"teacher": str | None}, values)
    check_values("budget.", SETTINGS_OF_BUDGET, values["budget"])
    _check_trainer(values["trainer"])
    if "seed" in values["data"]:
        raise UserError("data.seed would be ignored: the run's seed= orders the images too.")
    check_values("optimizer.", SETTINGS_OF_OPTIMIZER, values["optimizer"])
    for key in PARTS:
        check_part(key, values[key])
    if values.get("teacher") is not None or "distillation" in values:
        check_part("distillation", values.get("distillation"))
    for group in ("callbacks", "logger"):
        for name, part in values[group].items():
            if part is not None:  # null removes it
                _check_class(f"{group}.{name}", part)
                check_part(f"{group}.{name}", part)
    for name, part in values["callbacks"].items():
        if part is not None:
            _check_callback(f"callbacks.{name}", part, values["trainer"].get("log_every_n_steps"))
    _check_monitors(values)
    if target is not None and (reason := why_no_validation(values)):
        raise UserError(
            f"{reason} leaves no validation to judge the target by: set target_accuracy=null too."
        )
    _check_checkpoint_folders(values)


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


def _check_monitors(values: Any) -> None:
    """Refuse a callback's monitor that nothing logs, which would end the first epoch."""
    parts = {f"callbacks.{name}": part for name, part in values["callbacks"].items() if part}
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
    for key, part in parts.items():
        monitor = part.get("monitor")
        if isinstance(monitor, str) and monitor not in logged and all_known:
            near = _did_you_mean("", monitor, logged)
            raise UserError(f"{key}.monitor={monitor}: no such metric is logged.{near}")
        reason = why_no_validation(values)
        if (
            part["_target_"].endswith(".EarlyStopping")
            and str(monitor).startswith("val/")
            and reason
        ):
            raise UserError(f"{key}: {reason} leaves no validation to monitor {monitor} by.")


def _check_scheduler(target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Refuse a schedule of PyTorch's that cannot be called with the optimizer and the steps."""
    if not str(getattr(target, "__module__", "")).startswith("torch."):
        return
    _, second, *_ = [*inspect.signature(target).parameters, ""]
    if second not in ("T_max", "total_iters", "total_steps"):
        raise UserError(
            f"scheduler._target_={target.__qualname__}: a schedule is called with the optimizer "
            f"and the number of steps, which is not {second}. CosineAnnealingLR fits, and any "
            "function (optimizer, steps) of your own that returns a schedule."
        )
    if second in arguments:
        raise UserError(f"scheduler.{second}: a run gives it the number of steps. Leave it out.")


def _check_trainer(values: Mapping[str, Any]) -> None:
    """Refuse arguments of the Trainer that a run sets itself, and values that make no sense."""
    for name, (fixed, _) in FIXED_ARGUMENTS.items():
        if values.get(name, fixed) != fixed:
            raise UserError(refusal(f"trainer.{name}"))
    check_values("trainer.", SETTINGS_OF_TRAINER, values)
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches"):
        limit, least = values.get(name), 1 if name == "limit_train_batches" else 0
        is_number = type(limit) is int and limit >= least
        is_fraction = type(limit) is float and (limit > 0 or not least) and 0 <= limit <= 1
        if limit is not None and not is_number and not is_fraction:
            raise UserError(
                f"trainer.{name}={_in_yaml(limit)} is neither a number of batches from {least} nor "
                "a fraction of them, as 0.5."
            )
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


def _check_that_all_is_read(config: DictConfig) -> None:
    """Refuse a key at the top level that nothing reads, and one that the data has set anyway."""
    known = {*_keys_of_a_training(), *config.choices}
    texts = str(OmegaConf.to_container(config))
    for key in map(str, config):
        is_named = re.search(r"\$\{" + re.escape(key) + r"[.}\[]", texts) is not None
        if key not in known and key not in OF_A_RUN and not is_named:
            raise UserError(
                f"There is no setting {key}, and no value refers to it by ${{{key}}}."
                f"{_did_you_mean('', key, sorted(known))}"
            )
    for override in config.overrides:
        if (key := key_of(override)) in OF_THE_DATA:
            raise UserError(f"{override}: a run takes it from the data. Leave it out.")


@cache
def _keys_of_a_training() -> list[str]:
    """The settings and groups of conf/train.yaml."""
    file: Any = OmegaConf.to_container(OmegaConf.load(CONF / "train.yaml"))
    groups = [group for entry in file["defaults"] if isinstance(entry, dict) for group in entry]
    return [*file, *groups]


def check_keys(config: DictConfig, config_name: str) -> None:
    """Refuse keys of a command that its file in conf/ lacks, and that nothing reads.

    Args:
        config: of another command than train and search, whose keys `check_config` checks.
        config_name: the file in conf/.

    Raises:
        UserError: names the first.
    """
    known: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{config_name}.yaml"))
    values: Any = OmegaConf.to_container(config)
    groups = config.get("choices", {})
    for key, value in values.items():
        if key in groups or key in OF_A_RUN:  # a group's are checked with its class
            continue
        names = {f"{key}.{name}" for name in value} if isinstance(value, dict) else {key}
        of_file = known.get(key)
        there = {f"{key}.{name}" for name in of_file} if isinstance(of_file, dict) else {*known}
        if unknown := sorted(names - there):
            raise UserError(
                f"There is no setting {unknown[0]}.{_did_you_mean('', unknown[0], sorted(there))}"
            )


def _check_finite(key: str, value: Any) -> None:
    """Refuse NaN, and infinity in what is trained with."""
    if isinstance(value, dict | list):
        for name, part in value.items() if isinstance(value, dict) else enumerate(value):
            _check_finite(f"{key}.{name}" if key else str(name), part)
    elif isinstance(value, float) and (
        math.isnan(value)
        or (math.isinf(value) and key.partition(".")[0] in (*PARTS, "distillation"))
    ):
        raise UserError(f"{key}={value} should be a finite number.")


def _check_class(key: str, part: Any) -> None:
    """Refuse a class of Lightning's that does not work here."""
    target = str(part.get("_target_")) if isinstance(part, dict) else ""
    name = target.rpartition(".")[2]
    if target.startswith("pytorch_lightning.callbacks.") and name in UNSUPPORTED_CALLBACKS:
        raise UserError(f"{key}: {name} does not work here: {UNSUPPORTED_CALLBACKS[name]}.")


def _check_callback(key: str, part: Mapping[str, Any], log_every_n_steps: Any) -> None:
    """Refuse a callback that would not do what is meant.

    Args:
        key: of the callback.
        part: its `_target_` and arguments, which were checked.
        log_every_n_steps: the Trainer's.
    """
    target = pkgutil.resolve_name(part["_target_"])
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
    monitor, mode = part.get("monitor"), part.get("mode", _default(target, "mode"))
    for ending, right in (("acc", "max"), ("loss", "min")):
        if str(monitor).endswith(ending) and mode in ("max", "min") and mode != right:
            raise UserError(
                f"{key}: with monitor={monitor} and mode={mode} the worst would count as the best. "
                f"Set {key}.mode={right}."
            )


def _default(target: Callable[..., Any], name: str) -> Any:
    """The default of an argument; None if there is none."""
    try:
        parameter = inspect.signature(target).parameters.get(name)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return None
    return None if parameter is None else parameter.default


def _check_presence(values: Any) -> None:
    """Refuse a configuration that lacks a key, or has a value where a group is needed."""
    groups = (*PARTS, "budget", "callbacks", "logger")
    _refuse_missing("", values, (*sorted(SETTINGS), *groups))
    for key in groups:
        if not isinstance(values[key], dict):
            raise UserError(
                f"{key}={_in_yaml(values[key])} is neither an option nor a group of keys."
            )
    _refuse_missing("trainer.", values["trainer"], TRAINER_KEYS)
    for name in ("best", "throughput"):
        if values["callbacks"].get(name) is None:
            raise UserError(f"callbacks.{name} cannot be removed: the results come from it.")


def _refuse_missing(prefix: str, values: Mapping[str, Any], keys: Iterable[str]) -> None:
    missing = ", ".join(f"{prefix}{key}" for key in keys if key not in values)
    if missing:
        raise UserError(f"{missing} cannot be removed. Set it to another value.")


def _check_checkpoint_folders(values: Any) -> None:
    """Refuse checkpoints in another run's folder, and others' among a run's best and last one."""
    own = Path(values["run_dir"], "checkpoints").resolve()
    for name, part in values["callbacks"].items():
        if not part or "dirpath" not in part:
            continue
        output = part["dirpath"]
        is_own = isinstance(output, str) and Path(output).expanduser().resolve() == own
        if name in ("best", "last") and not is_own:
            raise UserError(
                f"callbacks.{name}.dirpath={_in_yaml(output)} is not {own}, where the run's "
                "checkpoints are: leave it out. hydra.run.dir=FOLDER puts the whole run elsewhere."
            )
        taken = part.get("save_last") or part.get("filename") in ("best", "last")
        if name not in ("best", "last") and is_own and taken:
            raise UserError(
                f"callbacks.{name} would overwrite the run's best.ckpt or last.ckpt: leave its "
                f"dirpath out for checkpoints/{name}, or name another folder."
            )


def check_part(key: str, part: Any) -> None:
    """Check a part of a configuration against the class or function that it calls.

    Args:
        key: of the part, for the message.
        part: its `_target_` and arguments, as a dictionary of primitives.

    Raises:
        UserError: if the target cannot be imported, or its arguments are wrong.
    """
    if not isinstance(part, dict) or not isinstance(part.get("_target_"), str):
        raise UserError(f"{key} has no _target_, the class or function to call: {_in_yaml(part)}.")
    ours = ("gpus", "compile", "precision") if key == "trainer" else ()  # which the run converts
    arguments = {k: v for k, v in part.items() if not k.startswith("_") and k not in ours}
    is_complete = not part.get("_partial_") and "_args_" not in part and key != "distillation"
    try:
        target = pkgutil.resolve_name(part["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}._target_={part['_target_']}: {error}.") from error
    if key == "scheduler":
        _check_scheduler(target, arguments)
    check_arguments(key, target, arguments)
    for name in _required(target) if is_complete else ():
        if name not in arguments and (key, name) != ("data", "seed"):  # which is the run's
            raise UserError(f"{key}.{name} is missing: {target.__qualname__} needs it.")


def _required(target: Callable[..., Any]) -> list[str]:
    """The names of a function's or class's arguments without a default."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named and p.default is p.empty]


def check_folder(key: str, folder: Path) -> None:
    """Check that files can be written to a folder, which need not exist yet.

    Args:
        key: the override that names it, for the message.
        folder: is not created.

    Raises:
        UserError: if a file is in the way, or permissions are missing.
    """
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{key}: {existing} is a file, where a folder is needed.")
    if not is_writable(existing):
        raise UserError(f"{key}: nothing can be written to {existing}.")


def check_arguments(key: str, target: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check the names and types of arguments against a class or function.

    Args:
        key: of the arguments in the configuration, for the message.
        target: the class or function; arguments without annotation may have any type.
        values: the arguments, by name.

    Raises:
        UserError: names the first that is wrong.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name in values:
        if name not in parameters and not takes_any:
            hint = _did_you_mean(f"{key}.", name, [*parameters])
            raise UserError(f"{key}.{name}: {target.__qualname__} has no such argument.{hint}")
    function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    try:
        hints = get_type_hints(function)
    except Exception:  # annotations may be any text, or names that only type checkers import
        return
    given = {
        name: value
        for name, value in values.items()
        if not _is_instantiated(value)
        and (value is not None or name not in parameters or parameters[name].default is not None)
    }
    check_values(f"{key}.", hints, given)


def _did_you_mean(prefix: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(f'{prefix}{c}' for c in close)}?" if close else ""


def _is_instantiated(value: Any) -> bool:
    """Whether Hydra instantiates an object from a value, and passes that on instead."""
    if isinstance(value, dict):
        return "_target_" in value or any(map(_is_instantiated, value.values()))
    return isinstance(value, list) and any(map(_is_instantiated, value))


def check_values(prefix: str, hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Check values against type hints.

    Args:
        prefix: of the names, in the message.
        hints: types, by name.
        values: by name.

    Raises:
        UserError: names the first of a wrong type, and what is right.
    """
    for name, value in values.items():
        if name not in hints:
            continue
        try:
            kind = TypeAdapter(hints[name], config=ConfigDict(arbitrary_types_allowed=True))
            try:
                # Lists not strictly, because YAML has them for tuples too.
                kind.validate_python(value, strict=not isinstance(value, list))
            except ValidationError:
                # Paths are texts in YAML.
                if not isinstance(value, str) or not isinstance(kind.validate_python(value), Path):
                    raise
        except ValidationError as error:
            hint = ""
            if value is not None and all(e["type"] == "string_type" for e in error.errors()):
                text = "…" if isinstance(value, dict | list) else value
                hint = f": in quotes, as in \"{prefix}{name}='{text}'\""
            raise UserError(f"{prefix}{name}={_in_yaml(value)}{_expected(error)}{hint}.") from None
        except PydanticUserError:  # a type that no value in YAML has
            continue
        is_seed = name == "seed" or name.endswith("_seed")
        if is_seed and isinstance(value, int) and not 0 <= value <= MAX_SEED:
            raise UserError(f"{prefix}{name}={value} is not from 0 to {MAX_SEED}.")


def _in_yaml(value: Any) -> str:
    """A value in YAML's spelling."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _expected(error: ValidationError) -> str:
    """Pydantic's messages, as the end of a sentence."""
    # Not those for tensors and the like, which YAML cannot have, unless there are no others.
    errors = error.errors()
    errors = [e for e in errors if e["type"] != "is_instance_of"] or errors
    found = [ONE_FOR_A_LIST if e["type"] == "sequence_str" else e["msg"] for e in errors]
    messages = [re.sub(r"^Input |, (unable|got) .*", "", message) for message in found]
    first, *others = dict.fromkeys(messages)
    ending = " or ".join([first, *(m.removeprefix("should be ") for m in others)])
    return f" {ending}" if ending.startswith("should") else f": {ending}"
