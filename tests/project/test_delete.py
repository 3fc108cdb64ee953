"""docs/how-to/delete.md, followed in copies of the checkout: the rest imports and trains."""

import subprocess
import sys
import tomllib
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

import pytest
from copies import ROOT, check, copy_of_the_checkout, environment

from cifar_lightning.new import parts

PARTS = parts.read_parts(ROOT)
# Of the tests that stay when all parts go, those that build and train; all of them take longer.
REMAINING = [
    "tests/core",
    *(f"tests/run/test_{name}.py" for name in ("conf", "keys", "train")),
]


def delete(copy: Path, part: str) -> None:
    """Do what the page says."""
    folders = [copy / file for file in PARTS[part].files]
    packages = [folder for folder in folders if (folder / "__init__.py").is_file()]
    parts.delete(copy, part, PARTS)
    for folder in packages:  # `git rm -r` leaves what git ignores
        (folder / "__pycache__").mkdir(parents=True)


def without(names: Iterable[str], folder: Path) -> Path:
    """A copy without some parts."""
    copy = copy_of_the_checkout(folder / "copy")
    for name in names:
        delete(copy, name)
    project = tomllib.loads((copy / "pyproject.toml").read_text())
    packages = {
        ".".join(file.relative_to(copy).parent.parts)
        for top in ("cifar_lightning", "hydra_plugins")
        for file in (copy / top).rglob("__init__.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == packages | {"cifar_lightning.conf"}
    for entry in project["project"]["scripts"].values():
        assert entry.partition(":")[0] in packages | {"cifar_lightning.train"}
    return copy


def subsets() -> list[list[str]]:
    """Seven sets of parts, so that for any two parts one set has the first without the second.

    Each part is in three sets, and no two parts are in the same three. So what needs a deleted
    part, be it another part or what stays, is found in 7 copies instead of one for each part.
    """
    threes = list(combinations(range(7), 3))
    assert len(PARTS) <= len(threes)
    found: list[list[str]] = [[] for _ in range(7)]
    for part, three in zip(PARTS, threes, strict=False):
        for number in three:
            found[number].append(part)
    return found


def test_what_the_page_names_is_there(tmp_path: Path) -> None:
    for part in PARTS.values():
        for name in part.files:
            assert (ROOT / name).exists(), name
        for edit in part.edits:
            copy = tmp_path / "file"
            copy.write_text((ROOT / edit.file).read_text())
            assert parts.apply_edit(copy, edit), edit


@pytest.mark.slow
def test_without_any_part_the_rest_imports_and_trains(tmp_path: Path) -> None:
    check(without(names, tmp_path / "-".join(names)) for names in [*subsets(), [*PARTS]])


@pytest.mark.slow
def test_without_all_parts_the_remaining_tests_pass(tmp_path: Path) -> None:
    copy = without(PARTS, tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "from_the_copy"]
    ended = subprocess.run(
        [*command, "-m", "not slow and not gpu", *REMAINING],
        cwd=copy,
        env=environment(copy),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stdout
