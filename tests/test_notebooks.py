"""The notebooks run, as they are stored they are of no machine, and they hold no logic."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import store
import strip
from conftest import TINY
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cifar_lightning.cli import CONF

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


def test_the_data_and_its_augmentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed("01", tmp_path, monkeypatch)
    assert "data=shapes" in texts(notebook)
    assert "150 images to train on, 50 to validate, 60 to test" in texts(notebook)
    assert pictures_in(notebook) == 5


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
    assert "failed: 3 (scheduler=cosine, seed=1): A file is where a folder" in texts(notebook)
    assert texts(notebook).count("4 runs: 4 finished.") == 2  # of resume_sweep, and in the verdict
    (sweep,) = (tmp_path / "runs" / "train").iterdir()
    assert len(list(sweep.glob("*/metrics.json"))) == 4


@each
def test_a_notebook_is_stored_with_outputs_that_are_of_no_machine(file: Path) -> None:
    text = file.read_text()
    notebook = read(file)
    strip.strip(notebook)
    assert nbformat.writes(notebook) + "\n" == text
    assert not re.search(r"(?<![\w.~/:])/(?:home|Users|root|tmp|work|mnt|opt|usr|var)\b", text)
    assert len(text) < LARGEST
    assert not re.search(r"\bshapes\b", texts(notebook))  # but real images
    assert pictures_in(notebook)
    assert "error" not in [o.output_type for cell in code_cells(notebook) for o in cell.outputs]


@each
def test_a_notebook_is_short_and_holds_no_logic(file: Path) -> None:
    notebook = read(file)
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


def dirty() -> NotebookNode:
    """As an editor saves a notebook, with what is of a machine in every place."""
    outputs = [
        new_output("stream", name="stdout", text="in /home/somebody/x and "),
        new_output("stream", name="stdout", text=f"{CONF.parent}/runs/train/a\n"),
        new_output("stream", name="stdout", text="2026-11-26 15:33:17,850 at 0x7f00deadbeef\n"),
        new_output(
            "execute_result",
            data={"text/plain": "/tmp/pytest-1/x", "image/png": "0x7f00deadbeef"},
            metadata={"a": 1},
            execution_count=7,
        ),
        new_output(
            "display_data",
            data={"application/vnd.jupyter.widget-view+json": {"model_id": "0"}},
        ),
        new_output("error", ename="E", evalue="", traceback=["File \x1b[32m/Users/she/a.py"]),
    ]
    code = new_code_cell('OPEN = "/Users/she/data"', outputs=outputs, execution_count=7)
    code.metadata = NotebookNode(
        tags=["parameters"], execution=NotebookNode({"iopub.execute_input": "2026"})
    )
    text = new_markdown_cell("[here](/home/somebody/x) and https://x.org/home/page, a/tmp/b")
    notebook: NotebookNode = new_notebook(cells=[code, text])
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(name="mine", display_name=".venv"),
        widgets=NotebookNode(state=1),
        vscode=NotebookNode(interpreter=NotebookNode(hash="31f2")),
    )
    return notebook


def test_what_is_of_a_machine_or_an_execution_is_taken_out() -> None:
    notebook = dirty()
    strip.strip(notebook)
    code, text = notebook.cells
    assert code.source == 'OPEN = "~/data"'
    assert code.metadata == {"tags": ["parameters"]}
    stream, result, error = code.outputs
    assert stream.text == "in ~/x and runs/train/a\nDATE TIME at ADDRESS\n"
    assert result.data == {"text/plain": "TEMPORARY/x", "image/png": "0x7f00deadbeef"}
    assert (result.metadata, result.execution_count, code.execution_count) == (
        {},
        None,
        None,
    )
    assert error.traceback == ["File ~/a.py"]
    assert text.source == "[here](~/x) and https://x.org/home/page, a/tmp/b"
    assert notebook.metadata == {
        "kernelspec": strip.KERNEL,
        "language_info": {"name": "python"},
    }
    again = nbformat.writes(notebook)
    strip.strip(notebook)
    assert nbformat.writes(notebook) == again


def test_places_of_this_machine_are_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR10_FOLDER", "/nowhere/cifar.tar.xz")
    monkeypatch.setenv("HOME", "/srv/people/she")
    monkeypatch.setattr("socket.gethostname", lambda: "node-17")
    text = (
        "/nowhere/cifar.tar.xz /srv/people/she/a /srv/people/shell node-17 {0}/runs/x {0}.".format(
            "/srv/people/she/place"
        )
    )
    notebook = new_notebook(cells=[new_code_cell(outputs=[new_output("stream", text=text)])])
    strip.strip(notebook, Path("/srv/people/she/place"))
    assert (
        notebook.cells[0].outputs[0].text == "$CIFAR10_FOLDER ~/a /srv/people/shell HOST runs/x .."
    )
    in_a_container = new_notebook(cells=[new_markdown_cell("1 / 2")])
    strip.strip(in_a_container, Path("/"))
    assert in_a_container.cells[0].source == "1 / 2"


def test_as_a_hook_it_says_which_files_it_changed(tmp_path: Path) -> None:
    unclean, clean, none = (tmp_path / name for name in ("a.ipynb", "b.ipynb", "c.ipynb"))
    nbformat.write(dirty(), unclean)
    clean.write_text(BY_NUMBER["01"].read_text())
    none.write_text("{")
    script = [sys.executable, str(store.NOTEBOOKS / "strip.py")]

    def run(*files: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*script, *map(str, files)], capture_output=True, text=True)

    first = run(unclean, clean)
    assert (first.returncode, first.stdout) == (1, f"stripped {unclean}\n")
    assert "somebody" not in unclean.read_text()
    assert (run(unclean, clean).returncode, run(clean).stdout) == (0, "")
    broken = run(none, clean)
    assert broken.returncode == 1
    assert f"Error: {none} is no notebook" in broken.stderr
    assert "Traceback" not in broken.stderr
    assert run(tmp_path / "d.ipynb").returncode == 1


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
