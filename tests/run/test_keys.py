"""Every key in conf/ is read by some code."""

import ast
import inspect
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from itertools import zip_longest
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import hydra
import pytest
from omegaconf import OmegaConf
from test_conf import names

import cifar_lightning
from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.errors import UserError
from cifar_lightning.models import budget

PACKAGE = Path(cifar_lightning.__file__).parent
CONFIGS = {"config", "example", "result", "trained"}  # the names that the code has for them
DATA = Path("data")
TOOLS = {path.stem for path in CONF.glob("*.yaml")} - {"train"}
# Parts without a `_target_` whose keys are the arguments of a function all the same.
ARGUMENTS = {"budget": budget.check_budget}
# What is taken whole, whatever its keys, and what is taken out of the Trainer's arguments.
WHOLE = ("search.params", "trainer.gpus")


def dotted(node: ast.AST) -> str | None:
    """`config.trainer.gpus`, and what `config.get("cutmix")` and `config["seed"]` read."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name) if (base := dotted(value)) is not None:
            return f"{base}.{name}"
        case ast.Subscript(value=value, slice=ast.Constant(value=str(name))):
            return None if (base := dotted(value)) is None else f"{base}.{name}"
        case ast.Call(
            func=ast.Attribute(value=value, attr="get"), args=[ast.Constant(value=str(name)), *_]
        ):
            return None if (base := dotted(value)) is None else f"{base}.{name}"
        case ast.Call(
            func=ast.Attribute(attr="select"), args=[value, ast.Constant(value=str(name)), *_]
        ):
            return None if (base := dotted(value)) is None else f"{base}.{name}"
    return None


@cache
def keys_read(command: str) -> set[str]:
    """What the code of a command reads by name; of those that look at checkpoints, its own."""
    if command in ("train", "search"):
        others = {PACKAGE / tool for tool in TOOLS if tool != command}
        files = [f for f in PACKAGE.rglob("*.py") if not others.intersection(f.parents)]
    else:
        files = [*(PACKAGE / command).glob("*.py"), *(PACKAGE / "run").glob("*.py")]
    found = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
                continue  # written, not read
            name, _, key = (dotted(node) or "").partition(".")
            if name in CONFIGS:
                found.add(key)
    return found


def takes(target: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(target).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    return name in parameters or inspect.Parameter.VAR_KEYWORD in kinds


def not_taken(content: Any, path: str = "") -> Iterator[str]:
    """Leaves that no class or function is called with."""
    if not isinstance(content, dict) or not content:
        yield path
        return
    target = ARGUMENTS.get(path)
    if "_target_" in content:
        target = resolve_name(content["_target_"])
    for key, value in content.items():
        made = isinstance(value, dict) and "_target_" in value
        is_taken = target is not None and (key.startswith("_") or takes(target, key))
        if made or not is_taken:
            yield from not_taken(value, f"{path}.{key}".lstrip("."))


def unread(command: str, *overrides: str, conf: Path = CONF) -> list[str]:
    """Keys that stand in a command's configuration, and that nothing reads.

    Of Hydra's own keys, which Hydra checks, only those that it hands on to others.
    """
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        composed = hydra.compose(command, list(overrides), return_hydra_config=True)
    content: Any = OmegaConf.to_container(composed)
    of_hydra = content.pop("hydra")
    read = keys_read(command) | set(re.findall(r"\$\{([\w.]+)\}", str(content)))
    handed_on = [
        *not_taken(of_hydra["sweeper"], "hydra.sweeper"),
        *not_taken(of_hydra["launcher"], "hydra.launcher"),
        *not_of_logging(of_hydra["job_logging"]),
    ]
    return handed_on + [
        key for key in not_taken(content) if key not in read and not key.startswith(WHOLE)
    ]


def not_of_logging(content: Any) -> Iterator[str]:
    """Keys that `logging.config` does not know."""
    known = {"version", "formatters", "handlers", "loggers", "root", "disable_existing_loggers"}
    yield from (f"hydra.job_logging.{key}" for key in content if key not in known)
    for name, handler in content["handlers"].items():
        made_by = resolve_name(handler["class"])
        for key in handler:
            if key not in ("class", "formatter", "level") and not takes(made_by, key):
                yield f"hydra.job_logging.handlers.{name}.{key}"


def all_configurations() -> list[tuple[str, ...]]:
    """Each command by itself, and with the options of the groups that it has.

    Those of `train` together: the first of each group, the second of each, and so on; but each
    experiment by itself, whose settings are for its own choice of options.
    """
    options: dict[Path, list[str]] = {}
    for path in sorted(CONF.glob("*/**/*.yaml")):
        group = path.parent.relative_to(CONF)
        options.setdefault(group, []).append(f"{group.as_posix()}={path.stem}")
    experiments = options.pop(Path("experiment"), [])
    searches = options.pop(Path("search"), [])
    del options[Path("shared")]  # which other files extend
    return [
        *((command,) for command in sorted(TOOLS)),
        *((tool, d) for tool in ("evaluate", "export") if tool in TOOLS for d in options[DATA]),
        *(("search", option) for option in searches),
        *(("train", option) for option in experiments),
        *(("train", *filter(None, together)) for together in zip_longest(*options.values())),
    ]


@pytest.mark.filterwarnings("ignore:\\s*'hydra/launcher/submitit_slurm' is validated")
@pytest.mark.parametrize("configuration", all_configurations(), ids=lambda c: "_".join(c)[:60])
def test_every_key_is_read(configuration: tuple[str, ...]) -> None:
    assert unread(*configuration) == []


UNREAD: list[tuple[str, str, tuple[str, ...], str]] = [
    ("train.yaml", "unused: 3", ("train",), "unused"),
    ("predict.yaml", "robustness: true", ("predict",), "robustness"),  # evaluate's
    ("train.yaml", "robustness: true", ("train",), "robustness"),
    ("data/shapes.yaml", "angle: 3", ("train", "data=shapes"), "data.angle"),
    ("trainer/ddp.yaml", "colour: 3", ("train", "trainer=ddp"), "trainer.colour"),
    ("callbacks/default.yaml", "of_none: {a: 3}", ("train",), "callbacks.of_none.a"),
    ("experiment/sgd.yaml", "momentum: 0.9", ("train", "experiment=sgd"), "momentum"),
    ("debug/fast.yaml", "fast: true", ("train", "debug=fast"), "fast"),
    ("hydra/sweeper/grid.yaml", "unused: 3", ("train",), "hydra.sweeper.unused"),
    ("hydra/job_logging/quiet.yaml", "quiet: 3", ("train",), "hydra.job_logging.quiet"),
]


@pytest.mark.parametrize(
    ("file", "line", "configuration", "key"),
    [case for case in UNREAD if (CONF / case[0]).exists()],
)
def test_a_key_that_nothing_reads_is_found(
    file: str, line: str, configuration: tuple[str, ...], key: str, tmp_path: Path
) -> None:
    conf = shutil.copytree(CONF, tmp_path / "conf")
    with (conf / file).open("a") as opened:
        opened.write(f"{line}\n")
    assert unread(*configuration, conf=conf) == [key]


@pytest.mark.parametrize("tool", sorted(TOOLS - {"search"}))  # whose keys are a training's
def test_a_key_that_a_command_does_not_have_is_refused(tool: str) -> None:
    command = resolve_name(f"cifar_lightning.{tool}:{tool}")
    typed = ["+foo=1", "+trainer.max_epochs=3"]
    for override, key in zip(typed, ("foo", "trainer"), strict=True):
        with pytest.raises(UserError, match=f"There is no setting {key}"):
            command(compose([override], config_name=tool))


@pytest.mark.parametrize("option", names("search"))
def test_what_is_searched_is_there(option: str) -> None:
    config = compose([f"search={option}"], config_name="search")
    for key in config.search.params:
        assert key in config.choices or OmegaConf.select(config, str(key)) is not None
