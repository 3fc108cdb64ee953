"""Copies of the checkout in which Python finds their own modules alone."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

from conftest import TINY

from cifar_lightning.config.compose import CONF

ROOT = CONF.parent
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
        if name.startswith(({package!r}, "hydra_plugins.{package}")):
            assert Path(module.__file__).is_relative_to({copy!r}), module
"""

# For each copy, in a process that is forked when all they share is imported: imports all modules,
# finds each `_target_`, composes, trains, and looks where the modules came from.
CHECK = """
import importlib, os, re, sys, traceback
from pathlib import Path

import hydra, matplotlib.pyplot, pytorch_lightning, torch, torchinfo, torchmetrics

def check(copy, package, typed):
    compose = importlib.import_module(f"{package}.config.compose").compose

    for top in (package, "hydra_plugins"):
        for path in sorted((copy / top).rglob("*.py")):
            if path.name != "__main__.py":
                name = ".".join(path.relative_to(copy).with_suffix("").parts)
                importlib.import_module(name.removesuffix(".__init__"))
    for path in (copy / "conf").rglob("*.yaml"):
        ours = rf"_target_: ((?:hydra_plugins\\.)?{package}[.\\w]+)"
        for target in re.findall(ours, path.read_text()):
            module, _, name = target.rpartition(".")
            getattr(importlib.import_module(module), name)
    for group in ("experiment", "callbacks", "debug", "logger", "trainer"):
        for path in (copy / "conf" / group).glob("*.yaml"):
            compose([f"{group}={path.stem}"])
    for path in (copy / "conf").glob("*.yaml"):
        compose([], config_name=path.stem)

    sys.argv = ["train", *typed]
    importlib.import_module(f"{package}.train").main()

    import from_the_copy

    from_the_copy.pytest_sessionfinish()

failed = 0
for copy in map(Path, sys.argv[2].split(":")):
    pid = os.fork()
    if pid == 0:
        try:
            sys.path[:0] = [str(copy.parent / "site"), str(copy)]
            exec((copy.parent / "site/sitecustomize.py").read_text())
            os.chdir(copy.parent)
            check(copy, sys.argv[1], sys.argv[3:])
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


def distributions(project: Path) -> set[str]:
    """All packages that pyproject.toml asks for, extras included."""
    content = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    asked = chain(content["dependencies"], *content["optional-dependencies"].values())
    return {re.split(r"[^\w-]", requirement)[0] for requirement in asked}


def environment(copy: Path, package: str = "cifar_lightning") -> dict[str, str]:
    """In which Python finds the copy alone, and none of the packages that went with its parts.

    Args:
        copy: of the checkout, in a folder of its own.
        package: the name that the template's package has there.
    """
    uninstalled = distributions(ROOT) - distributions(copy) - NEEDED_ELSEWHERE
    names = {
        name
        for name, owners in packages_distributions().items()
        if uninstalled.intersection(owners) and name != "hydra_plugins"
    }
    if package != "cifar_lightning":
        names.add("cifar_lightning")
    site = copy.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "from_the_copy.py").write_text(FROM_THE_COPY.format(copy=str(copy), package=package))
    (site / "sitecustomize.py").write_text(SITE.format(names=names, root=str(ROOT)))
    return {**os.environ, "PYTHONPATH": f"{site}:{copy}", "PYTHONDONTWRITEBYTECODE": "1"}


def check(copies: Iterable[Path], package: str = "cifar_lightning") -> None:
    """Everything in them imports and composes, and a run ends."""
    copies = list(copies)
    for copy in copies:
        environment(copy, package)
    joined = ":".join(str(copy) for copy in copies)
    ended = subprocess.run(
        [sys.executable, "-c", CHECK, package, joined, *TINY],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    for copy in copies:
        assert list(copy.parent.glob("runs/train/*/metrics.json")), copy.parent.name
