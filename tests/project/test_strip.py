"""notebooks/strip.py removes traces of a machine or an execution from notebooks."""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import store
import strip
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cifar_lightning.config.compose import CONF


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
    code = new_code_cell("COUNT = 7", outputs=outputs, execution_count=7)
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


@pytest.mark.parametrize(
    ("address", "without"),
    [
        ("file:///home/somebody/x", "file://~/x"),
        ("sqlite:////home/somebody/db", "sqlite:///~/db"),
        ("sqlite:////private/tmp/a/db", "sqlite:///TEMPORARY/db"),
        ("sqlite:///home/of/the/study.db", "sqlite:///home/of/the/study.db"),  # from here
    ],
)
def test_folders_in_addresses_are_taken_out(address: str, without: str) -> None:
    notebook = new_notebook(cells=[new_markdown_cell(f"({address})")])
    strip.strip(notebook)
    assert notebook.cells[0].source == f"({without})"


def test_code_is_left_and_said_where_it_names_a_folder_of_a_machine(tmp_path: Path) -> None:
    code = 'path = "/tmp/mydata"\nhome = "data"\nopen("file:///home/somebody/x")'
    file = tmp_path / "a.ipynb"
    notebook = new_notebook(cells=[new_markdown_cell("/tmp/mydata/x"), new_code_cell(code)])
    strip.strip(notebook)
    strip.save(notebook, file)
    assert [cell.source for cell in notebook.cells] == ["TEMPORARY/x", code]
    ended = hook(file)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines() == [
        f'Error: {file}: a path of one machine in cell 2, line 1: path = "/tmp/mydata"',
        f'Error: {file}: a path of one machine in cell 2, line 3: open("file:///home/somebody/x")',
    ]


@pytest.mark.parametrize("known_by", ["kernelspec", "language_info"])
def test_a_kernel_of_another_language_stays(known_by: str) -> None:
    kernel = NotebookNode(name="ir", display_name="R")
    notebook = new_notebook(metadata=NotebookNode(kernelspec=kernel, vscode=NotebookNode()))
    if known_by == "kernelspec":
        kernel.language = "R"
    else:
        notebook.metadata.language_info = NotebookNode(name="R", version="4.4.1")
    strip.strip(notebook)
    assert notebook.metadata == {"kernelspec": kernel, "language_info": {"name": "R"}}


def hook(*files: Path) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(store.NOTEBOOKS / "strip.py")]
    return subprocess.run([*script, *map(str, files)], capture_output=True, text=True)


def test_as_a_hook_it_says_which_files_it_changed(tmp_path: Path) -> None:
    unclean, clean = tmp_path / "a.ipynb", tmp_path / "b.ipynb"
    nbformat.write(dirty(), unclean)
    clean.write_text(sorted(store.NOTEBOOKS.glob("*.ipynb"))[0].read_text())
    first = hook(unclean, clean)
    assert (first.returncode, first.stdout) == (1, f"stripped {unclean}\n")
    assert "somebody" not in unclean.read_text()
    assert (hook(unclean, clean).returncode, hook(clean).stdout) == (0, "")
    assert hook(tmp_path / "c.ipynb").returncode == 1


def test_what_is_no_notebook_is_said_of_each_file(tmp_path: Path) -> None:
    texts = ["{", "[]", "{}", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": {}}']
    files = [tmp_path / f"{number}.ipynb" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text)
    ended = hook(*files)
    assert ended.returncode == 1
    for file in files:
        assert f"Error: {file} is not a notebook: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [file.read_text() for file in files] == texts
