"""Runs the notebooks and stores them with their outputs.

    make notebooks ARGS="data=folder data.path=cifar10.tar.xz"

Overrides replace those in the notebook's first cell while it runs; the cell is stored unchanged.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from strip import save, strip

NOTEBOOKS = Path(__file__).resolve().parent
TAG = "parameters"
LONGEST_CELL = 1800  # seconds


def execute(notebook: NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Run a notebook in its own kernel, in place.

    Args:
        notebook: its cell with the tag `parameters` holds defaults.
        parameters: values that replace these defaults, by name (papermill's convention).

    Raises:
        CellExecutionError: if a cell fails.
        StopIteration: if no cell has the tag.
    """
    place = next(n for n, c in enumerate(notebook.cells) if TAG in c.metadata.get("tags", ()))
    lines = [f"{name} = {value!r}" for name, value in parameters.items()]
    notebook.cells.insert(place + 1, new_code_cell("\n".join(lines)))
    client = NotebookClient(
        notebook,
        timeout=LONGEST_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        record_timing=False,
    )
    try:
        # Without the IPython settings and history of the user.
        with tempfile.TemporaryDirectory() as ipython:
            client.execute(env=os.environ | {"IPYTHONDIR": ipython})
    finally:
        del notebook.cells[place + 1]


def main() -> None:
    """Run all or some notebooks, and store them in their files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("options", nargs="*", help="Hydra overrides that replace OPTIONS")
    parser.add_argument(
        "--only", metavar="FILE", nargs="+", type=Path, help="run only these notebooks"
    )
    typed = parser.parse_args()
    for file in typed.only or sorted(NOTEBOOKS.glob("*.ipynb")):
        start = time.perf_counter()
        notebook = nbformat.read(file, as_version=4)
        execute(notebook, {"OPTIONS": typed.options} if typed.options else {})
        strip(notebook)
        save(notebook, file)
        print(f"{file.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
