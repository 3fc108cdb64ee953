"""docs/reference/schema/, by which editors complete and check the files of conf/."""

import json
from pathlib import Path
from typing import Any

import pytest
import schema
import yaml  # type: ignore[import-untyped]
from jsonschema import Draft7Validator  # type: ignore[import-untyped]
from referencing import Registry, Resource

from cifar_lightning.config.compose import CONF

FILES = [file for file in sorted(CONF.rglob("*.yaml")) if schema.kind_of(file)]


def load(name: str) -> Any:
    return json.loads((schema.FOLDER / name).read_text())


def mistakes(kind: str, content: Any) -> list[str]:
    """What an editor marks in a file of a kind."""
    names = [file.name for file in schema.FOLDER.iterdir()]
    registry: Registry[Any] = Registry().with_resources(
        (name, Resource.from_contents(load(name))) for name in names
    )
    validator = Draft7Validator(load(f"{kind}.json"), registry=registry)
    return [error.message for error in validator.iter_errors(content)]


def test_the_schemas_are_those_of_the_code_and_of_conf() -> None:
    written = {file.name: file.read_text() for file in schema.FOLDER.iterdir()}
    is_current = written == schema.schemas()  # not in the assertion, which would print both
    assert is_current, "docs/reference/schema/ is older than conf/ or the code: run `make schema`."


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CONF).as_posix())
def test_a_file_of_conf_names_its_schema_and_is_valid(file: Path) -> None:
    is_named = file.read_text() == schema.with_schema(file)
    assert is_named, f"{file.name} does not name its schema at its top: run `make schema`."
    assert mistakes(schema.kind_of(file), schema.load(file)) == []


SGD = "_target_: torch.optim.SGD\n"
BEST = "best: {_target_: cifar_lightning.training.callbacks.BestCheckpoint, "


@pytest.mark.parametrize(
    ("kind", "content", "valid"),
    [
        ("optimizer", SGD + "lr: 0.1\nnesterov: true", True),
        ("optimizer", SGD + "lr: ${seed}", True),
        ("optimizer", SGD + "learning_rate: 0.1", False),
        ("optimizer", SGD + "lr: fast", False),
        ("optimizer", SGD + "momentum: 1.5", False),
        ("optimizer", "_target_: mine.Optimizer\nlearning_rate: fast", True),
        ("optimizer", "defaults: [sgd]\nlr: 0.2", True),
        ("optimizer", "defaults: [sgd]\nlrr: 0.2", False),
        ("optimizer", "defaults: [sdg]", False),
        ("callbacks", BEST + "monitor: val/loss}", True),
        ("callbacks", BEST + "monitr: val/loss}", False),
        ("callbacks", "best: {monitor: val/loss}\nnan: null", True),
        ("callbacks", "best: {monitr: val/loss}", False),
        ("callbacks", "mine: {_target_: mine.Callback, any: 1}", True),
        ("augment", "extra: [{_target_: mine.Augment, any: 1}]", True),
        ("augment", f"extra: [{{{SGD.strip()}, learning_rate: 1}}]", False),
        ("trainer", "gpus: [0, 2]\nprecision: auto\nmax_epochs: 1", True),
        ("trainer", "max_epochs: 0", False),
        ("trainer", "max_epoch: 1", False),
        (
            "recipe",
            "defaults: [{override /model: resnet20}]\nseed: 1\nmodel: {num_classes: 3}",
            True,
        ),
        ("recipe", "defaults: [{override /model: resnet2}]", False),
        ("recipe", "target_accuracy: 80", False),
        ("recipe", "target_acuracy: 0.8", False),
        ("recipe", "trainer: {max_epoch: 1}", False),
        ("command-train", "budget: {max_params: null, min_dilated: -1}", False),
        ("command-evaluate", "robustness: maybe", False),
    ],
)
def test_mistakes_are_marked_and_nothing_else(kind: str, content: str, valid: bool) -> None:
    assert (mistakes(kind, yaml.safe_load(content)) == []) == valid
