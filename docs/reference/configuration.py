"""Writes configuration.md from conf/ and its comments: `make docs`."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cifar_lightning.config.comments import Key, is_recipe, options, read_command, read_option
from cifar_lightning.config.compose import CONF

PAGE = Path(__file__).with_suffix(".md")

INTRODUCTION = """\
# Configuration

Every command, group, option and key of `conf/`, with defaults and meanings. `make docs` writes this
page from the files of `conf/` and their comments: edit those, not this page.

An editor with the YAML language server, such as VS Code with the extension YAML, completes and
checks these files while you type: a comment at the top of each names its schema. `make schema`
writes the schemas, and that comment into new files.

A key is set by `KEY=VALUE` on the command line, an option by `GROUP=OPTION`. `+KEY=VALUE` adds a
key, `~KEY` removes one. `--help` shows the main keys of a command, `--cfg job` its configuration.
A default such as `${seed}` is the value of another key, and `${oc.env:NAME,VALUE}` that of an
environment variable, or `VALUE` where it is not set.
"""
# Groups that Hydra has, with options in conf/.
OF_HYDRA = {
    "hydra/launcher": "how the jobs of a sweep (`-m`) are started. Hydra and its plugins have "
    "`basic`, the default: one after the other; and `joblib`: side by side",
    "hydra/sweeper": "how a sweep (`-m`) chooses its jobs; `grid` is the default",
}


def reference() -> str:
    """The page, as Markdown."""
    names = sorted((path.stem for path in CONF.glob("*.yaml")), key=lambda n: (n != "train", n))
    lines = [INTRODUCTION, "## Commands"]
    groups: dict[str, str] = {}
    for name in names:
        command = read_command(name)
        lines += ["", f"### {name}", "", command.about, ""]
        lines += [f"    {example}" for example in command.examples]
        for base in command.bases:
            lines += ["", f"It has the groups and keys of [{base}](#{base}) too."]
        if command.groups:
            links = [
                (f"[{key.name}](#group-{key.name})", f"`{key.default}`", _escaped(key.meaning))
                for key in command.groups
            ]
            lines += ["", *_table(("group", "default", "meaning"), links)]
        lines += ["", *_table(("key", "default", "meaning"), _with_sections(command.keys))]
        groups |= {key.name: key.meaning for key in command.groups if key.name not in groups}
    lines += ["", "## Groups"]
    for group, meaning in (groups | OF_HYDRA).items():
        if options(group):
            lines += ["", f"### Group {group}", "", f"{meaning[0].upper()}{meaning[1:]}.", ""]
            lines += _group(group)
    return "\n".join(lines) + "\n"


def _group(group: str) -> Iterator[str]:
    """Tables of a group's options and of their keys."""
    files = {option: read_option(group, option) for option in options(group)}
    yield from _table(
        ("option", "what it is"), [(f"`{o}`", _escaped(f.about)) for o, f in files.items()]
    )
    if is_recipe(group):
        return
    found: dict[str, dict[str, Key]] = {}  # by key, then by option
    for option, file in files.items():
        for key in file.keys:
            found.setdefault(key.name, {})[option] = key
    keys = []
    for name, by_option in found.items():
        defaults = {option: f"`{k.default}`" * bool(k.default) for option, k in by_option.items()}
        meanings = {option: k.meaning for option, k in by_option.items()}
        all_options = [*files] if any(defaults.values()) else [*by_option]
        keys.append(
            Key(
                name,
                _by_option(defaults, all_options),
                _by_option(meanings, [*by_option], "; "),
                next(iter(by_option.values())).section,
            )
        )
    if keys:
        yield ""
        yield from _table(("key", "default", "meaning"), _with_sections(keys, quote=False))


def _by_option(values: Mapping[str, str], all_options: Sequence[str], between: str = ", ") -> str:
    """A value that all options have, or else each with the options that have it."""
    by_value: dict[str, list[str]] = {}
    for option, value in values.items():
        by_value.setdefault(value, []).append(option)
    if len(by_value) == 1 and len(values) == len(all_options):
        return next(iter(by_value))
    return between.join(f"{value} ({', '.join(names)})" for value, names in by_value.items())


def _with_sections(keys: Iterable[Key], quote: bool = True) -> Iterator[tuple[str, ...]]:
    """Rows of keys, with a row for each heading among them."""
    section = ""
    for key in keys:
        if not key.default and not key.meaning:
            continue
        if key.section not in ("", section):
            yield (f"**{key.section}**", "", "")
        section = key.section
        default = f"`{key.default}`" if quote and key.default else key.default
        yield (f"`{key.name}`", default, _escaped(key.meaning))


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _escaped(text: str) -> str:
    """A text whose characters mean nothing in Markdown."""
    return re.sub(r"[*<|\[\]]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


if __name__ == "__main__":
    PAGE.write_text(reference())
