"""Reads conf/ with its comments, for `--help` and docs/reference/configuration.md."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml  # type: ignore[import-untyped]

from cifar_lightning.config.compose import CONF

# How the comment begins that tells an editor the file's schema.
SCHEMA_LINE = "# yaml-language-server: $schema="
COMMENT = re.compile(r"\s*:?\s*#\s*(.*)")


class Key(NamedTuple):
    """A key of a file in conf/.

    Attributes:
        name: from the top of the configuration, as `trainer.max_epochs`.
        default: the value as YAML; empty for a key with further keys below it.
        meaning: the comment beside the key, or else above it.
        section: the comment above the paragraph of the file that the key is in.
    """

    name: str
    default: str
    meaning: str
    section: str = ""


@dataclass
class Conf:
    """A file in conf/.

    Attributes:
        about: the comment that the file begins with.
        examples: the command lines in that comment.
        bases: files that this one extends, as its `defaults` name them.
        groups: each group in `defaults`, with its option as the default.
        keys: in the order of the file, without `_target_` and the like.
    """

    about: str = ""
    examples: list[str] = field(default_factory=list)
    bases: list[str] = field(default_factory=list)
    groups: list[Key] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)


def read_conf(path: Path, prefix: str = "") -> Conf:
    """Read a file in conf/.

    Args:
        path: of the file.
        prefix: of the names of its keys, as `trainer.` for an option of that group.
    """
    text = path.read_text()
    lines = text.splitlines()
    conf = Conf()
    header = 0
    while header < len(lines) and (found := COMMENT.fullmatch(lines[header])):
        header += 1
        if found[1].startswith("python -m"):
            conf.examples.append(found[1])
        elif not found[1].startswith(("@package", "yaml-language-server:")):
            conf.about = f"{conf.about} {found[1]}".strip()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
        if key.value == "defaults":
            _read_defaults(value, lines, conf)
    conf.keys = [*_keys(root, prefix, lines, header)]
    return conf


def _read_defaults(node: yaml.Node, lines: list[str], conf: Conf) -> None:
    for entry in node.value:
        if isinstance(entry, yaml.MappingNode):
            ((group, option),) = entry.value
            if not group.value.startswith("override "):
                meaning = _beside(option.end_mark, lines)
                conf.groups.append(Key(group.value, option.value, meaning))
        elif entry.value != "_self_":
            conf.bases.append(entry.value)


def _keys(node: yaml.Node, prefix: str, lines: list[str], header: int) -> Iterator[Key]:
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        if key.value == "defaults" or key.value.startswith("_"):
            continue
        # A value that begins on a later line has its comment beside the key.
        is_block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        meaning = _beside((key if is_block else value).end_mark, lines)
        above, section = _above(key.start_mark.line, lines, header)
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield Key(name, "", meaning or above, section)
            yield from _keys(value, f"{name}.", lines, header)
        else:
            yield Key(name, _in_one_line(value, lines), meaning or above, section)


def _beside(mark: yaml.Mark, lines: list[str]) -> str:
    """The comment in the line of a mark, after it."""
    line = lines[mark.line] if mark.line < len(lines) else ""
    found = COMMENT.fullmatch(line[mark.column :])
    return found[1] if found else ""


def _above(number: int, lines: list[str], header: int) -> tuple[str, str]:
    """The comment right above a line, and that above its paragraph."""
    first = number
    while first > header and COMMENT.fullmatch(lines[first - 1]):
        first -= 1
    comment = " ".join(line.strip().lstrip("# ") for line in lines[first:number])
    top = number
    while top > header and lines[top - 1].strip():
        top -= 1
    heads_a_paragraph = top > header or header == 0
    heading = COMMENT.fullmatch(lines[top]) if heads_a_paragraph else None
    if heading is None:
        return comment, ""
    return ("" if first == top else comment), heading[1]


def _in_one_line(value: yaml.Node, lines: list[str]) -> str:
    """A value's text in the file; one of several lines as one."""
    if isinstance(value, yaml.SequenceNode):
        return f"[{', '.join(_in_one_line(item, lines) for item in value.value)}]"
    start, end = value.start_mark, value.end_mark
    text = [*lines, ""][start.line : end.line + 1]
    text[-1] = text[-1][: end.column]
    text[0] = text[0][start.column :]
    return " ".join(map(str.strip, text)).strip()


def options(group: str) -> list[str]:
    """The options of a group of conf/, in alphabetical order."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def read_option(group: str, option: str) -> Conf:
    """Read an option of a group, with the keys of the options that it extends.

    A key that has no comment there has that of the option it comes from.
    """
    conf = read_conf(CONF / group / f"{option}.yaml", f"{group.replace('/', '.')}.")
    for base in conf.bases:
        if (CONF / group / f"{base}.yaml").is_file():
            keys = {key.name: key for key in read_option(group, base).keys}
            for key in conf.keys:
                above = keys.get(key.name, key)
                keys[key.name] = Key(
                    key.name, key.default, key.meaning or above.meaning, above.section
                )
            conf.keys = [*keys.values()]
    return conf


def is_recipe(group: str) -> bool:
    """Whether a group's options set keys of other groups, as those of `experiment` do."""
    return any("@package _global_" in path.read_text() for path in (CONF / group).glob("*.yaml"))


def read_command(name: str) -> Conf:
    """Read a command's file in conf/; `bases` are the commands whose keys it has too.

    Of Hydra's keys only the folders are kept.
    """
    conf = read_conf(CONF / f"{name}.yaml")
    of_hydra = ("hydra.run.dir", "hydra.sweep.dir")
    conf.keys = [
        key for key in conf.keys if key.name in of_hydra or not f"{key.name}.".startswith("hydra.")
    ]
    conf.bases = [base for base in conf.bases if "/" not in base]
    return conf
