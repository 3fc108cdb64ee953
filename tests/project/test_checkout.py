"""Files of a checkout beside the package: hooks, workflow, citation, changelog."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from test_makefile import make

import cifar_lightning
from cifar_lightning.config.compose import CONF

ROOT = CONF.parent
NOTEBOOK = {
    "cells": [
        {"cell_type": "code", "execution_count": 7, "id": "a", "metadata": {}, "outputs": []}
    ],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 5,
}


def read_yaml(name: str) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load((ROOT / name).read_text())
    return content


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A clone's hooks and what they call, with the environment that set-up makes."""
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in (".pre-commit-config.yaml", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    (folder / ".venv").symlink_to(sys.prefix)
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    return folder


def run_hooks(folder: Path, skipped: str = "types") -> subprocess.CompletedProcess[str]:
    subprocess.run(["git", "add", "--all", "--", ":!.venv"], cwd=folder, check=True)
    nowhere = "http://127.0.0.1:9"
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files"],
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            **{"PRE_COMMIT_HOME": str(folder.parent / "hooks"), "SKIP": skipped},
            **{"http_proxy": nowhere, "https_proxy": nowhere},
        },
        capture_output=True,
        text=True,
    )


def test_the_hooks_mend_what_they_can_without_a_network(repository: Path) -> None:
    code = repository / "example.py"
    code.write_text('"""An example."""\nimport os, sys\nprint( sys.path )\n')
    said = {"output_type": "stream", "name": "stdout", "text": f"{Path.home()}/data\n"}
    changed = {"source": "import pathlib\nprint( 'data' )", "outputs": [said]}
    cells = [NOTEBOOK["cells"][0] | changed]  # type: ignore[index]
    notebook = repository / "a.ipynb"
    notebook.write_text(json.dumps(NOTEBOOK | {"cells": cells}))
    first = run_hooks(repository)
    assert first.returncode == 1
    for name in ("notebooks", "rules", "format"):
        assert f"- hook id: {name}\n" in first.stdout, first.stdout + first.stderr
    assert code.read_text() == '"""An example."""\n\nimport sys\n\nprint(sys.path)\n'
    assert str(Path.home()) not in notebook.read_text()
    second = run_hooks(repository)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("Passed") == 3


def test_the_hooks_refuse_a_wrong_type(repository: Path) -> None:
    (repository / "pyproject.toml").write_text('[tool.mypy]\nfiles = ["code.py"]\nstrict = true\n')
    (repository / "code.py").write_text('SEED: int = "0"\n')
    ended = run_hooks(repository, skipped="notebooks,rules,format")
    assert ended.returncode == 1
    assert "Incompatible types in assignment" in ended.stdout


def test_make_installs_the_hooks() -> None:
    assert "-m pre_commit install" in make(ROOT, "--dry-run", "hooks").stdout


def test_the_workflow_calls_what_every_change_is_checked_by() -> None:
    workflow = read_yaml(".github/workflows/ci.yml")
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML's `on` is a truth value
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"] == 120
    assert job["steps"][-1]["run"] == ".ci/run"
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    for step in job["steps"]:
        assert "uses" not in step or re.search(r"@v\d+\.\d+\.\d+$", step["uses"])
    supported = re.search(r"python:(3\.\d+)-", job["container"])
    assert supported is not None
    assert f"python{supported[1]}" in (ROOT / "Makefile").read_text()


def test_version_changes_and_citation_agree() -> None:
    citation = read_yaml("CITATION.cff")
    # What version 1.2.0 of the format asks for.
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    assert all("name" in author for author in citation["authors"])
    newest = re.search(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == citation["version"] == cifar_lightning.__version__
    assert newest[2] == str(citation["date-released"])


def test_the_licence_is_the_same_everywhere() -> None:
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")
    assert read_yaml("CITATION.cff")["license"] == "MIT"
    assert 'license = "MIT"' in (ROOT / "pyproject.toml").read_text()
