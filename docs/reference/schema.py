"""Writes the JSON schemas of conf/ to schema/, one for each kind of file: `make schema`.

An editor with the YAML language server completes and checks the files by them: a comment at the top
of each names its schema, and this script adds it. Types and defaults are those of the classes and
functions that conf/ names as `_target_`, and of config/training.py; descriptions are the comments
of conf/, or else docstrings. A `_target_` that conf/ does not name may have any keys.
"""

import inspect
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from pydantic import ConfigDict, TypeAdapter
from pydantic.errors import PydanticUserError

from cifar_lightning.config import training
from cifar_lightning.config.comments import SCHEMA_LINE, is_recipe, options, read_conf
from cifar_lightning.config.compose import CONF
from cifar_lightning.config.refused import FIXED_ARGUMENTS
from cifar_lightning.config.validate import ADDED, NAMED, parameters_of, target_of
from cifar_lightning.errors import UserError

Schema = dict[str, Any]

FOLDER = Path(__file__).with_suffix("")
# Types of arguments beside those in signatures; a run converts some for the Trainer.
TYPES: dict[str, dict[str, Any]] = {
    "optimizer": training.SETTINGS_OF_OPTIMIZER,
    "trainer": dict.fromkeys(training.CONVERTED, Any) | training.SETTINGS_OF_TRAINER,
}
NOT_SET = {"trainer": tuple(FIXED_ARGUMENTS), **ADDED}  # a run sets these arguments itself
OF_HYDRA = ("defaults", "_args_", "_convert_", "_partial_", "_recursive_", "_target_")
HAS_TARGET: Schema = {"type": "object", "required": ["_target_"]}
# Of targets.json: a class or function with its arguments; a value of any type; and what a value of
# another type may be instead.
PART = {"$ref": "targets.json#/definitions/part"}
ANY = {"$ref": "targets.json#/definitions/any"}
INSTEAD = {"$ref": "targets.json#/definitions/instead"}


def group_of(file: Path) -> str:
    """The group of a file in conf/, as `model` or `hydra/sweeper`; empty for a command's."""
    return file.parent.relative_to(CONF).as_posix().strip(".")


def kind_of(file: Path) -> str:
    """The name of a file's schema; empty for Python's logging, which has none."""
    group = group_of(file)
    if is_recipe(group):
        return "recipe"
    if group == "hydra/job_logging":
        return ""
    return group.replace("/", "-") or f"command-{file.stem}"


def load(file: Path) -> dict[str, Any]:
    """The content of a file in conf/, with references as they are written."""
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    return dict(content)


def parts_in(value: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each dictionary with a `_target_`, with its key; one in a list has the list's."""
    if isinstance(value, dict) and "_target_" in value:
        yield key, value
    inner = value.items() if isinstance(value, dict) else ()
    for name, item in inner if isinstance(value, dict) else enumerate(value):
        if isinstance(item, dict | list):
            yield from parts_in(item, f"{key}.{name}".strip(".") if inner else key)


FILES = sorted(CONF.rglob("*.yaml"))
PREFIXES = {
    file: "" if is_recipe(group_of(file)) else group_of(file).replace("/", ".") for file in FILES
}
PARTS = [pair for file in FILES for pair in parts_in(load(file), PREFIXES[file])]
# Comments beside keys; of two for one key, that of a group's option.
MEANINGS = {
    key.name: key.meaning
    for file in sorted(FILES, key=lambda file: bool(group_of(file)))
    if not is_recipe(group_of(file))
    for key in read_conf(file, f"{PREFIXES[file]}.".lstrip(".")).keys
    if key.meaning
}


def type_of(hint: Any) -> list[Schema]:
    """The schemas of a type's alternatives; those that no value in YAML has are left out."""
    if get_origin(hint) in (Union, UnionType):
        return [schema for one in get_args(hint) for schema in type_of(one)]
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
        schema = adapter.json_schema()
    except PydanticUserError:
        return []
    return [] if "$defs" in schema else [schema]


def value_of(hint: Any, default: Any = inspect.Parameter.empty) -> Schema:
    """The schema of a value of a type."""
    alternatives = type_of(hint)
    if default is None and {"type": "null"} not in alternatives:
        alternatives.append({"type": "null"})
    is_any = not alternatives or {} in alternatives or alternatives == [{"type": "null"}]
    schema: Schema = {"allOf": [ANY]} if is_any else {"anyOf": [*alternatives, INSTEAD]}
    if default is None or isinstance(default, bool | int | float | str):
        schema["default"] = default
    return schema


def documented(function: Any) -> dict[str, str]:
    """What the section `Args` of a docstring says of each argument."""
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.getdoc(function) or "", re.M | re.S)
    entries = re.findall(
        r"^    (\w+)\b[^:\n]*:(.*(?:\n      .*|\n$)*)", section[1] if section else "", re.M
    )
    return {name: " ".join(text.split()) for name, text in entries}


def arguments_of(target: str) -> tuple[dict[str, Schema], bool]:
    """The schemas of a target's arguments, by name; and whether it takes any others."""
    try:
        function = target_of("", {"_target_": target})
    except UserError:  # of an extra that is not installed
        return {}, True
    if (parameters := parameters_of(function)) is None:
        return {}, True
    try:
        init = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
        hints = get_type_hints(init)
    except Exception:  # names that only type checkers import
        hints = {}
    places = [(key, part) for key, part in PARTS if part["_target_"] == target]
    given = {name for _, part in places for name in part}
    names = [
        name
        for name, p in parameters.items()
        # What has no default and is not in conf/ comes from the run.
        if p.kind in NAMED and (p.default is not p.empty or name in given)
    ]
    texts = documented(function)
    found: dict[str, Schema] = {}
    for key in {key: None for key, _ in places}:
        typed = {n: t for n, t in TYPES.get(key, {}).items() if n in names or key == "trainer"}
        for name in dict.fromkeys([*names, *typed]):
            if name in NOT_SET.get(key, ()):
                continue
            default = parameters[name].default if name in parameters else inspect.Parameter.empty
            schema = found.setdefault(
                name, value_of(typed.get(name, hints.get(name, Any)), default)
            )
            if text := MEANINGS.get(f"{key}.{name}") or texts.get(name):
                schema["description"] = text
    return found, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def object_of(properties: Mapping[str, Any], others: bool = False) -> Schema:
    """The schema of a dictionary with these keys."""
    return {"type": "object", "properties": dict(properties), "additionalProperties": others}


def targets() -> Schema:
    """What every `_target_` of conf/ takes; others may have any keys."""
    definitions: Schema = {}
    for name in sorted({part["_target_"] for _, part in PARTS}):
        arguments, takes_any = arguments_of(name)
        definitions[name] = object_of({key: {} for key in OF_HYDRA} | arguments, takes_any)
    cases = [
        {
            "if": {"properties": {"_target_": {"const": name}}},
            "then": {"$ref": f"#/definitions/{name}"},
        }
        for name in definitions
    ]
    # A reference, or a number such as 1_000, which is a text in YAML 1.2.
    text = {"type": "string", "pattern": r"^\$\{|^[0-9][0-9_]*$"}
    shared = {
        "part": HAS_TARGET | {"allOf": cases},
        "any": {"if": HAS_TARGET, "then": PART, "else": {"items": ANY}},
        "instead": {"anyOf": [text, PART]},
        "options": options_of_groups(),
    }
    return {"definitions": shared | definitions}


def part_of(names: Iterable[str]) -> Schema:
    """A part by its `_target_`; without one, as beside `defaults`, it has keys of these targets."""
    found: dict[str, list[Schema]] = {key: [{}] for key in OF_HYDRA}
    takes_any = False
    for arguments, any_other in map(arguments_of, sorted(names)):
        takes_any |= any_other
        for key, schema in arguments.items():
            schema.pop("default", None)  # each target has its own
            if schema not in found.setdefault(key, []):
                found[key].append(schema)
    keys = {key: {"anyOf": all_} if len(all_) > 1 else all_[0] for key, all_ in found.items()}
    without = object_of(keys, takes_any) | {"type": ["object", "null"]}
    return {"if": HAS_TARGET, "then": PART, "else": without}


def options_of_groups() -> Schema:
    """An entry in a list of defaults that chooses options; of Hydra's groups any."""
    chosen = {}
    for group in sorted({group_of(file) for file in FILES}):
        if group and not group.startswith("hydra/"):
            one: Schema = {"enum": [*options(group), None]}
            several = {"type": "array", "items": one}
            chosen[f"^(override )?/?{group}(@.*)?$"] = {"anyOf": [one, several, INSTEAD]}
    return {"type": "object", "patternProperties": chosen}


def defaults_of(group: str) -> Schema:
    """A list of defaults: options of the group, files by their path, options of other groups."""
    siblings = options(group or ".")
    texts = [{"enum": ["_self_", *siblings]}, {"type": "string", "pattern": "[/@]"}]
    choice = {"$ref": "targets.json#/definitions/options"}
    return {"type": "array", "items": {"anyOf": [*texts, choice]}}


def group_schema(group: str) -> Schema:
    """The schema of a group's options: a part, parts by name, or other keys."""
    files = [load(file) for file in FILES if group_of(file) == group]
    key = group.replace("/", ".")
    at = {place: {p["_target_"] for k, p in PARTS if k == place} for place, _ in PARTS}
    if key in at:
        schema = part_of(at[key])
    elif named := {place: of for place, of in at.items() if place.rpartition(".")[0] == key}:
        schema = {
            "type": "object",
            "properties": {place.rpartition(".")[2]: part_of(of) for place, of in named.items()},
            "additionalProperties": ANY,
        }
    else:
        schema = object_of({name: {} for file in files for name in file})
    return schema | {"properties": schema.get("properties", {}) | {"defaults": defaults_of(group)}}


def command_schema(name: str) -> Schema:
    """The schema of a command's file in conf/, which has all its keys but those of other files."""
    typed = training.SETTINGS | {f"budget.{k}": t for k, t in training.SETTINGS_OF_BUDGET.items()}

    def schema_of(key: str, value: Any) -> Schema:
        if key in typed:
            schema = value_of(typed[key], value)
        elif isinstance(value, dict) and "_target_" not in value:
            schema = object_of({k: schema_of(f"{key}.{k}", v) for k, v in value.items()})
        else:
            schema = value_of(type(value) if isinstance(value, bool | int | float) else Any, value)
        return schema | ({"description": meanings[key]} if meanings.get(key) else {})

    meanings = {key.name: key.meaning for key in read_conf(CONF / f"{name}.yaml").keys}
    keys = {key: schema_of(key, value) for key, value in load(CONF / f"{name}.yaml").items()}
    return object_of(keys | {"hydra": {}, "defaults": defaults_of("")})


def schemas() -> dict[str, str]:
    """The schema files' content, by their names."""
    found: dict[str, Schema] = {"targets": targets()}
    for file in FILES:
        kind, group = kind_of(file), group_of(file)
        if kind and kind != "recipe" and kind not in found:
            found[kind] = group_schema(group) if group else command_schema(file.stem)
    # A recipe has keys of a training and of its groups.
    of_groups = {group_of(f): {"$ref": f"{kind_of(f)}.json"} for f in FILES if kind_of(f) in found}
    of_train = found["command-train"]["properties"]
    found["recipe"] = object_of(
        {k: s for k, s in of_groups.items() if k and "/" not in k} | of_train
    )
    return {
        f"{name}.json": json.dumps(
            {"$schema": "http://json-schema.org/draft-07/schema#", **schema},
            indent=1,
            ensure_ascii=False,
        )
        + "\n"
        for name, schema in found.items()
    }


def with_schema(file: Path) -> str:
    """A file's text with the line that names its schema, below the one that Hydra wants first."""
    text = re.sub(rf"^{re.escape(SCHEMA_LINE)}.*\n", "", file.read_text(), flags=re.MULTILINE)
    if not kind_of(file):
        return text
    schema = os.path.relpath(FOLDER / f"{kind_of(file)}.json", file.parent)
    return re.sub(r"\A(# @package .*\n)?", rf"\g<0>{SCHEMA_LINE}{schema}\n", text)


def write() -> None:
    """Write the schemas, and the line in each file of conf/ that names its schema."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, text in schemas().items():
        (FOLDER / name).write_text(text)
    for file in FILES:
        file.write_text(with_schema(file))


if __name__ == "__main__":
    write()
