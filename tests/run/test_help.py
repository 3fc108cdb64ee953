"""`--help`, and the comments of conf/ that it shows."""

import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from test_conf import names

from cifar_lightning.cli.help import help_text
from cifar_lightning.config.comments import Key, is_recipe, read_command, read_conf, read_option
from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.train import main

COMMANDS = names("")
GROUPS = sorted(
    path.relative_to(CONF).as_posix()
    for path in CONF.rglob("*")
    if path.is_dir() and path.name not in ("hydra", "job_logging", "shared")
)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_is_one_screen(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = help_text(command, []).splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= 80
    examples = [line.strip() for line in lines if line.startswith("  python -m cifar_lightning.")]
    assert examples == read_command(command).examples
    assert len(examples) >= 2


def test_help_shows_the_main_keys_of_the_options_that_are_chosen() -> None:
    assert "  optimizer.lr=0.1 " in help_text("train", [])
    chosen = help_text("train", ["optimizer=adamw", "model=nothing"])
    assert "  optimizer.lr=0.003 " in chosen
    assert "optimizer=adamw muon, sgd" in " ".join(chosen.split())
    # A recipe sets keys of other groups.
    assert "experiment=sgd sets other defaults" in help_text("train", ["experiment=sgd"])
    assert "other defaults" not in chosen


@pytest.mark.parametrize("command", COMMANDS)
def test_help_all_has_every_key(command: str) -> None:
    text = help_text(command, ["all"])
    config = compose([], "run", command)

    def keys(node: Any, above: str) -> list[str]:
        if not isinstance(node, dict):
            return [above]
        found = [(name, value) for name, value in node.items() if not name.startswith("_")]
        return [key for name, value in found for key in keys(value, f"{above}.{name}")]

    for name in {*map(str, config)} - {"choices", "overrides", "run_dir", "run_id", "sweep"}:
        for key in keys(OmegaConf.to_container(config)[name], name):  # type: ignore[index,call-overload]
            assert f"  {key}=" in text or f"  {key} " in text or key == "logger", key


def test_help_is_what_the_option_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for typed in (["--help"], ["-h", "all"], ["model=resnet20", "-h"]):
        monkeypatch.setattr(sys, "argv", ["cifar-train", *typed])
        main()
        assert capsys.readouterr().out == help_text("train", typed) + "\n"


@pytest.mark.parametrize("name", [*COMMANDS, *GROUPS])
def test_every_key_and_option_of_conf_has_a_comment(name: str) -> None:
    if name in COMMANDS:
        files = {f"conf/{name}.yaml": read_command(name)}
    else:
        files = {f"conf/{name}/{option}.yaml": read_option(name, option) for option in names(name)}
    silent = [
        f"{file}: no comment in its first line" for file, conf in files.items() if not conf.about
    ]
    for file, conf in () if is_recipe(name) else files.items():
        keys = [key.name for key in (*conf.groups, *conf.keys) if key.default and not key.meaning]
        silent += [f"{file}: no comment beside {key}" for key in keys]
    assert not silent, "--help shows these comments"


FILE = """\
# @package _global_
# python -m cifar_lightning.train x=1
# What it is,
# in two lines.
defaults:
  - base
  - data: none  # which images
  - override /model: x
  - _self_

text: "a # b"  # text
# above
above: 1
above_and_beside: 1  # beside
silent: 1

# Heading
list:  # list
  - a
  - "b"
flow: [1, 2]  # flow
long: [
  a,  # the first
  {b: 1},
]  # long
folded: >
  some
  words
part:
  _target_: x  # class
  inner: null  # inner
"""


def test_comments_are_read_where_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(FILE)
    conf = read_conf(path, "g.")
    assert conf.about == "What it is, in two lines."
    assert conf.examples == ["python -m cifar_lightning.train x=1"]
    assert conf.bases == ["base"]
    assert conf.groups == [Key("data", "none", "which images")]
    assert conf.keys == [
        Key("g.text", '"a # b"', "text"),
        Key("g.above", "1", "above"),
        Key("g.above_and_beside", "1", "beside"),
        Key("g.silent", "1", ""),
        Key("g.list", '[a, "b"]', "list", "Heading"),
        Key("g.flow", "[1, 2]", "flow", "Heading"),
        Key("g.long", "[a, {b: 1}]", "long", "Heading"),
        Key("g.folded", "> some words", "", "Heading"),
        Key("g.part", "", "", "Heading"),
        Key("g.part.inner", "null", "inner", "Heading"),
    ]
