"""docs/how-to/delete.md, followed in copies of the checkout: the rest imports and trains."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from itertools import chain, combinations
from pathlib import Path

import pytest
from conftest import TINY

from cifar_lightning.config.compose import CONF

ROOT = CONF.parent
ROW = re.compile(r"^\| (\w+) \| (.*?) \| (.*?) ?\|$", re.MULTILINE)
PARTS = {
    name: (files, edits)
    for name, files, edits in ROW.findall((ROOT / "docs/how-to/delete.md").read_text())
}
# Of the tests that stay when all parts go, those that build and train; all of them take longer.
REMAINING = [
    "tests/core",
    *(f"tests/run/test_{name}.py" for name in ("conf", "keys", "train")),
]
# What other packages that stay bring along.
NEEDED_ELSEWHERE = {"jinja2", "markupsafe"}

# In every Python program that starts in a copy: modules come from it alone, not from the checkout
# whose editable install serves what the copy lacks, and what has been uninstalled is not there.
SITE = """
import sys

def elsewhere(finder):
    return getattr(finder, "__module__", "").startswith("__editable__")

sys.meta_path[:] = [finder for finder in sys.meta_path if not elsewhere(finder)]
sys.path[:] = [entry for entry in sys.path if "__editable__" not in entry and entry != {root!r}]
sys.modules.update(dict.fromkeys({names!r}))  # None: not to be imported
"""

# The end of every check: whether all modules of ours came from the copy.
FROM_THE_COPY = """
import sys
from pathlib import Path

def pytest_sessionfinish():
    for name, module in list(sys.modules.items()):
        if name.startswith(("cifar_lightning", "hydra_plugins.cifar_lightning")):
            assert Path(module.__file__).is_relative_to({copy!r}), module
"""

# For each copy, in a process that is forked when all they share is imported: imports all modules,
# finds each `_target_`, composes, trains, and looks where the modules came from.
CHECK = """
import importlib, os, re, sys, traceback
from pathlib import Path

import hydra, matplotlib.pyplot, pytorch_lightning, torch, torchinfo, torchmetrics

def check(copy, typed):
    from cifar_lightning.config.compose import compose

    for top in ("cifar_lightning", "hydra_plugins"):
        for path in sorted((copy / top).rglob("*.py")):
            if path.name != "__main__.py":
                name = ".".join(path.relative_to(copy).with_suffix("").parts)
                importlib.import_module(name.removesuffix(".__init__"))
    for path in (copy / "conf").rglob("*.yaml"):
        ours = r"_target_: ((?:cifar_lightning|hydra_plugins\\.cifar)[.\\w]+)"
        for target in re.findall(ours, path.read_text()):
            module, _, name = target.rpartition(".")
            getattr(importlib.import_module(module), name)
    for group in ("experiment", "callbacks", "debug", "logger", "trainer"):
        for path in (copy / "conf" / group).glob("*.yaml"):
            compose([f"{group}={path.stem}"])
    for path in (copy / "conf").glob("*.yaml"):
        compose([], config_name=path.stem)

    import cifar_lightning.train

    sys.argv = ["train", *typed]
    cifar_lightning.train.main()

    import from_the_copy

    from_the_copy.pytest_sessionfinish()

failed = 0
for copy in map(Path, sys.argv[1].split(":")):
    pid = os.fork()
    if pid == 0:
        try:
            sys.path[:0] = [str(copy.parent / "site"), str(copy)]
            exec((copy.parent / "site/sitecustomize.py").read_text())
            os.chdir(copy.parent)
            check(copy, sys.argv[2:])
        except BaseException:
            print(copy.parent.name, traceback.format_exc(), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    failed += os.waitpid(pid, 0)[1] != 0
sys.exit(failed)
"""


def copy_of_the_checkout(folder: Path) -> Path:
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def delete(copy: Path, part: str) -> None:
    """Do what the page says."""
    files, edits = PARTS[part]
    for name in re.findall(r"`(.*?)`", files):
        assert (ROOT / name).exists(), f"{part}: there is no {name} to delete"
        path = copy / name
        is_package = (path / "__init__.py").is_file()
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if is_package:  # `git rm -r` leaves what git ignores
            (path / "__pycache__").mkdir(parents=True)
    for other in re.findall(r", and (\w+)", files):
        delete(copy, other)
    file = Path()
    for text, instead in re.findall(r"`([^`]+)`(?: becomes `([^`]+)`)?", edits):
        if (ROOT / text).is_file():
            file = Path(text)
        elif (copy / file).exists():  # else it went with another part
            assert without_lines((ROOT / file).read_text(), text, instead), f"{part}: {text}"
            edited = without_lines((copy / file).read_text(), text, instead)
            if edited:
                (copy / file).write_text(edited)


def without_lines(content: str, start: str, instead: str) -> str | None:
    """Without the line that starts so, the block below it, and the comment above; None: no such."""
    lines = content.splitlines(keepends=True)
    first = next((n for n, line in enumerate(lines) if line.strip().startswith(start)), None)
    if first is None:
        return None
    indent, last = indent_of(lines[first]), first + 1
    if instead:
        return "".join([*lines[:first], f"{' ' * indent}{instead}\n", *lines[last:]])
    while last < len(lines) and indent_of(lines[last]) > indent:
        last += 1
    if last < len(lines) and lines[last].rstrip() == " " * indent + "]":
        last += 1
    while first and lines[first - 1].strip().startswith("# "):
        first -= 1
    return "".join(lines[:first] + lines[last:])


def indent_of(line: str) -> int:
    return len(line) - len(line.lstrip())


def distributions(project: Path) -> set[str]:
    """All packages that pyproject.toml asks for, extras included."""
    content = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    asked = chain(content["dependencies"], *content["optional-dependencies"].values())
    return {re.split(r"[^\w-]", requirement)[0] for requirement in asked}


def environment(copy: Path) -> dict[str, str]:
    """In which Python finds the copy alone, and none of the packages that went with its parts."""
    uninstalled = distributions(ROOT) - distributions(copy) - NEEDED_ELSEWHERE
    names = {
        name
        for name, owners in packages_distributions().items()
        if uninstalled.intersection(owners) and name != "hydra_plugins"
    }
    site = copy.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "from_the_copy.py").write_text(FROM_THE_COPY.format(copy=str(copy)))
    (site / "sitecustomize.py").write_text(SITE.format(names=names, root=str(ROOT)))
    return {**os.environ, "PYTHONPATH": f"{site}:{copy}", "PYTHONDONTWRITEBYTECODE": "1"}


def without(parts: Iterable[str], folder: Path) -> Path:
    """A copy without some parts."""
    copy = copy_of_the_checkout(folder / "copy")
    for part in parts:
        delete(copy, part)
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


def check(copies: Iterable[Path]) -> None:
    """Everything in them imports and composes, and a run ends."""
    copies = list(copies)
    for copy in copies:
        environment(copy)
    joined = ":".join(str(copy) for copy in copies)
    ended = subprocess.run(
        [sys.executable, "-c", CHECK, joined, *TINY],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    for copy in copies:
        assert list(copy.parent.glob("runs/train/*/metrics.json")), copy.parent.name


def subsets() -> list[list[str]]:
    """Six sets of parts, so that for any two parts one set has the first without the second.

    Each part is in three sets, and no two parts are in the same three. So what needs a deleted
    part, be it another part or what stays, is found in 6 copies instead of one for each part.
    """
    threes = list(combinations(range(6), 3))
    assert len(PARTS) <= len(threes)
    found: list[list[str]] = [[] for _ in range(6)]
    for part, three in zip(PARTS, threes, strict=False):
        for number in three:
            found[number].append(part)
    return found


@pytest.mark.slow
def test_without_any_part_the_rest_imports_and_trains(tmp_path: Path) -> None:
    check(without(parts, tmp_path / "-".join(parts)) for parts in [*subsets(), [*PARTS]])


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
