"""The text of `--help`, made from the files of conf/ and their comments."""

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from cifar_lightning.config.comments import Conf, Key, is_recipe, options, read_command, read_option
from cifar_lightning.config.compose import CONF

# The keys of a training that most people set.
MAIN_KEYS = (
    *("trainer.max_epochs", "target_accuracy", "optimizer.lr", "data.batch_size"),
    *("trainer.gpus", "seed", "resume", "hydra.run.dir"),
)
KEY_WIDTH = 25  # columns


def help_text(config_name: str, arguments: Sequence[str]) -> str:
    """What a command does, its keys and groups with their defaults, and examples.

    Args:
        config_name: the command's file in conf/.
        arguments: of the command line; `all` asks for every key, and the options chosen there take
            the place of the defaults.
    """
    command = read_command(config_name)
    program = f"python -m cifar_lightning.{config_name}"
    every = "all" in arguments
    lines = [
        *_wrapped(command.about),
        "",
        f"Usage: {program} [KEY=VALUE ...]{' [GROUP=OPTION ...]' * bool(command.groups)}",
        "",
    ]
    conf = [*map(read_command, command.bases), command] if every else [command]
    groups = [_chosen(group, arguments) for part in conf for group in part.groups]
    keys = [key for part in conf for key in part.keys]
    if every or config_name != "train":
        lines += ["Keys, with their defaults:", *_rows(keys)]
    else:
        keys += [key for group in groups for key in _keys_of(group)]
        by_name = {key.name: key for key in keys}
        main = [by_name[name] for name in MAIN_KEYS if name in by_name]
        lines += ["Main keys, with their defaults:", *_rows(main, headings=False)]
    if groups and not every:
        lines += ["", "Groups of keys, with the default and the other options:"]
        lines += [line for group in groups for line in _row(_setting(group), _others(group))]
    elif every:
        lines += [line for group in groups for line in _whole_group(group)]
    recipes = [_setting(g) for g in groups if is_recipe(g.name) and g.default != "null"]
    if recipes:
        lines += ["", f"{' '.join(recipes)} sets other defaults than these: --cfg job shows them."]
    lines += ["", "Examples:", *(f"  {example}" for example in command.examples)]
    return "\n".join([*lines, "", *_more(config_name, command, every)])


def _more(config_name: str, command: Conf, every: bool) -> Iterator[str]:
    """Where the rest is."""
    if config_name == "train":
        yield from _row("-m KEY=A,B", "a job for each value; resume_sweep=FOLDER resumes")
    if command.bases:
        yield from _row("KEY=VALUE of train", "sets it for all trials: train --help lists them")
    if command.groups and not every:
        yield from _row("--help all", "every key with its meaning, group by group")
    yield from _row("--cfg job", "the configuration, without starting")
    yield "docs/reference/configuration.md lists the keys of all commands."


def _chosen(group: Key, arguments: Sequence[str]) -> Key:
    """A group with the option that the command line chooses for it."""
    for argument in arguments:
        name, _, option = argument.partition("=")
        if name == group.name and (CONF / name / f"{option}.yaml").is_file():
            return group._replace(default=option)
    return group


def _keys_of(group: Key) -> list[Key]:
    """The keys of a group's option; none of a recipe, whose keys are those of other groups."""
    if group.default == "null" or is_recipe(group.name):
        return []
    return read_option(group.name, group.default).keys


def _others(group: Key) -> str:
    return ", ".join(option for option in options(group.name) if option != group.default)


def _setting(key: Key) -> str:
    return f"{key.name}={key.default}" if key.default else key.name


def _whole_group(group: Key) -> Iterator[str]:
    """A group's options, and all keys of the one that is chosen."""
    yield from ("", f"Group {group.name}: {group.meaning}")
    for option in options(group.name):
        chosen = " (chosen)" if option == group.default else ""
        yield from _row(f"{group.name}={option}{chosen}", read_option(group.name, option).about)
    yield from _rows(_keys_of(group))


def _rows(keys: Iterable[Key], headings: bool = True) -> Iterator[str]:
    section = ""
    for key in keys:
        if headings and key.section not in ("", section):
            yield f" {key.section}:"
        section = key.section
        default = "…" if "${" in key.default else key.default  # a reference says nothing here
        if default or key.meaning:
            yield from _row(_setting(key._replace(default=default)), key.meaning)


def _row(left: str, right: str) -> Iterator[str]:
    """Two columns; the right one begins in a line of its own where the left one is long."""
    indent = " " * (KEY_WIDTH + 4)
    lines = _wrapped(right, indent) or [indent]
    if len(left) > KEY_WIDTH:
        yield f"  {left}"
    else:
        lines[0] = f"  {left:<{KEY_WIDTH}}  {lines[0].strip()}".rstrip()
    yield from lines


def _wrapped(text: str, indent: str = "") -> list[str]:
    width = max(80, min(shutil.get_terminal_size().columns, 100))
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )
