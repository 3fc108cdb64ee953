"""The notebooks run, are stored without traces of a machine, and contain no logic."""

import ast
import os
import re
import site
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import nbformat
import pytest
import store
import strip
from conftest import TINY
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

ROOT = store.NOTEBOOKS.parent
NOTEBOOKS = sorted(store.NOTEBOOKS.glob("*.ipynb"))
BY_NUMBER = {file.name[:2]: file for file in NOTEBOOKS}
OPTIONS = [o for o in TINY if not o.startswith(("logger", "trainer.max_epochs"))]
SHORT = ["trainer.max_epochs=1", "target_accuracy=null"]
LARGEST = 1_500_000  # bytes

each = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def read(file: Path) -> NotebookNode:
    notebook: NotebookNode = nbformat.read(file, as_version=4)
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(notebook: NotebookNode) -> str:
    """All that a notebook shows in letters."""
    shown = []
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            shown.append(output.get("text", "") + data.get("text/markdown", ""))
            shown.append(data.get("text/plain", ""))
    return "\n".join(shown)


def executed(number: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookNode:
    """A notebook, run on a few generated images, away from the user's own folders."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "jupyter"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(BY_NUMBER[number])
    cells = len(notebook.cells)
    parameters: dict[str, Any] = {"OPTIONS": OPTIONS, "FOLDER": str(folder)}
    store.execute(notebook, parameters if number < "03" else parameters | {"SHORT": SHORT})
    assert len(notebook.cells) == cells  # without the one that was put in
    assert "stderr" not in [o.get("name") for c in code_cells(notebook) for o in c.outputs]
    return notebook


def pictures_in(notebook: NotebookNode) -> int:
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_the_data_and_its_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed("01", tmp_path, monkeypatch)
    assert "data=shapes" in texts(notebook)
    assert "150 images to train on, 50 to validate, 60 to test" in texts(notebook)
    assert pictures_in(notebook) == 5


@pytest.mark.slow
def test_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed("02", tmp_path, monkeypatch)
    assert "257856" in texts(notebook)
    assert re.search(r"dilation 2 +sees 14, undilated 10", texts(notebook))
    assert pictures_in(notebook) == 2


@pytest.mark.slow
def test_train_evaluate_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed("03", tmp_path, monkeypatch)
    runs = sorted((tmp_path / "runs" / "train").iterdir())
    assert len(runs) == 2
    assert all((run / "evaluation" / "evaluation.json").exists() for run in runs)
    assert (runs[0] / "report.html").exists()
    assert pictures_in(notebook) == 5
    strip.strip(notebook, tmp_path)
    assert str(tmp_path) not in nbformat.writes(notebook)
    assert "run folder runs/train/DATE_TIME_composed\n" in texts(notebook)


@pytest.mark.slow
def test_read_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed("04", tmp_path, monkeypatch)
    assert "4 runs: 3 finished, 1 failed." in texts(notebook)
    assert "failed: run 3 (scheduler=cosine, seed=1): callbacks.best.dirpath=" in texts(notebook)
    assert texts(notebook).count("4 runs: 4 finished.") == 2  # of resume_sweep, and in the verdict
    (sweep,) = (tmp_path / "runs" / "train").iterdir()
    assert len(list(sweep.glob("*/metrics.json"))) == 4


@pytest.mark.slow
def test_on_colab_the_first_cell_installs_the_package(tmp_path: Path) -> None:
    # With the packages of these tests, but not the editable install of this checkout.
    venv.create(tmp_path / "env", with_pip=False)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    (cell,) = (c for c in read(BY_NUMBER["01"]).cells if c.metadata.get("tags") == ["colab"])
    code = re.sub(r'(?<=REPOSITORY = ").+(?=")', f"file://{ROOT}", cell.source)
    code += "\nimport cifar_lightning.config.compose as it\nprint(it.CONF)"
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}
    environment |= {"COLAB_RELEASE_TAG": "release", "PIP_NO_INDEX": "1"}
    environment |= {"PIP_NO_BUILD_ISOLATION": "0"}  # which turns it off, so that nothing is fetched
    for _ in range(2):  # a second time as after a restart
        ended = subprocess.run(
            [tmp_path / "env" / "bin" / "python", "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert ended.stdout == f"{tmp_path / 'cifar-lightning' / 'conf'}\n", ended.stderr


@each
def test_a_notebook_is_stored_with_outputs_that_are_of_no_machine(file: Path) -> None:
    text = file.read_text()
    notebook = read(file)
    strip.strip(notebook)
    assert nbformat.writes(notebook) + "\n" == text
    assert not strip.places_in_code(notebook)
    assert not re.search(r"(?<![\w.~/:])/(?:home|Users|root|tmp|work|mnt|opt|usr|var)\b", text)
    assert len(text) < LARGEST
    assert not re.search(r"\bshapes\b", texts(notebook))  # but real images
    assert pictures_in(notebook)
    assert "error" not in [o.output_type for cell in code_cells(notebook) for o in cell.outputs]


@each
def test_a_notebook_says_what_data_its_stored_results_are_of(file: Path) -> None:
    notebook = read(file)
    stored = set(re.findall(r"data(?:=|: | +)(folder|shapes)\b", texts(notebook)))
    assert {name for name in stored if f"`data={name}`" not in notebook.cells[0].source} == set()


@each
def test_a_notebook_is_short_and_holds_no_logic(file: Path) -> None:
    notebook = read(file)
    notebook.cells = [cell for cell in notebook.cells if cell.metadata.get("tags") != ["colab"]]
    assert 8 <= len(notebook.cells) <= 15
    first = code_cells(notebook)[0]
    assert first.metadata.tags == ["parameters"]
    assert 'OPTIONS = ["data=cifar10"]' in first.source
    for cell in code_cells(notebook):
        lines = [line for line in cell.source.splitlines() if not line.startswith(("%", "!"))]
        tree = ast.walk(ast.parse("\n".join(lines)))
        logic = (
            ast.FunctionDef,
            ast.AsyncFunctionDef,
            ast.ClassDef,
            ast.While,
            ast.Try,
        )
        assert not [node for node in tree if isinstance(node, logic)], cell.source


def test_a_cell_that_fails_stores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "fails.ipynb"
    cells = [
        new_code_cell("A = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("1 / 0"),
    ]
    nbformat.write(new_notebook(cells=cells), file)
    before = file.read_text()
    script = [sys.executable, str(store.NOTEBOOKS / "store.py"), "--only", str(file)]
    environment = os.environ | {"JUPYTER_RUNTIME_DIR": str(tmp_path)}
    ended = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert ended.returncode != 0
    assert "ZeroDivisionError" in ended.stderr
    assert file.read_text() == before
