"""Removes what is specific to a machine or an execution from notebooks.

    python notebooks/strip.py FILES

It is a pre-commit hook: its exit code is 1 if it changed a file. Outputs are kept, without paths of
the machine, dates, times and counters; text is kept, without paths. Code is not changed, because
another path might change what it does. If code contains a path of a machine, the line is printed
and the exit code is 1.
"""

import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from cifar_lightning.config.compose import CONF
from cifar_lightning.system.atomic import atomic_write

KERNEL = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
# The start of a path, also in a URL such as file:///home/x or sqlite:////home/x; and a folder name.
START, NAME = r"(?:(?<![\w.~/])|(?<=file://)|(?<=:///))", r"[^/\s\"'<>:,)]+"
# Paths of any machine, because a notebook may come from another one.
OF_ANY_MACHINE = (
    (rf"{START}/(?:home|Users)/{NAME}", "~"),
    (rf"{START}(?:/private)?/(?:var/)?tmp/{NAME}", "TEMPORARY"),
    (rf"{START}(?:/private)?/var/folders/\w+/\w+/T/{NAME}", "TEMPORARY"),
)
COLOURS = (r"\x1b\[[0-9;?]*[A-Za-z]", "")  # terminal codes, which could hide the start of a path
OF_AN_EXECUTION = (
    (r"\b\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}", "DATE_TIME"),  # in names of run folders
    (r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?", "DATE TIME"),
    (r"\b0x[0-9a-f]{8,16}\b", "ADDRESS"),
)
WIDGETS = "application/vnd.jupyter.widget"

Change = Callable[[str], str]


def strip(notebook: NotebookNode, folder: Path = CONF.parent) -> None:
    """Remove paths, dates, times and counters from a notebook, in place.

    Args:
        notebook: of format 4.
        folder: in which it was run; paths below it become relative to it.
    """
    of_machine = _replacing([*_places(folder), *OF_ANY_MACHINE])
    of_both = _replacing([COLOURS, *_places(folder), *OF_ANY_MACHINE, *_host(), *OF_AN_EXECUTION])
    notebook.metadata = _metadata(notebook.metadata)
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = NotebookNode(tags=tags) if tags else NotebookNode()
        if cell.cell_type != "code":
            cell.source = of_machine(cell.source)
        else:
            cell.execution_count = None
            cell.outputs = [_stripped(output, of_both) for output in _joined(cell.outputs)]


def _metadata(given: NotebookNode) -> NotebookNode:
    """Only the kernel and the language; a Python kernel gets its standard name."""
    kernel = given.get("kernelspec", {})
    language = given.get("language_info", {}).get("name") or kernel.get("language") or "python"
    if language.lower() == "python":
        kernel, language = NotebookNode(KERNEL), "python"
    return NotebookNode(kernelspec=kernel, language_info=NotebookNode(name=language))


def places_in_code(notebook: NotebookNode, folder: Path = CONF.parent) -> list[str]:
    """Lines of code that contain a path of a machine, which `strip` does not change.

    Args:
        notebook: of format 4.
        folder: as for `strip`.

    Returns:
        `cell 2, line 1: CODE`, both counted from 1.
    """
    of_machine = _replacing([*_places(folder), *OF_ANY_MACHINE])
    return [
        f"cell {cell}, line {number}: {line.strip()}"
        for cell, code in enumerate(notebook.cells, 1)
        if code.cell_type == "code"
        for number, line in enumerate(code.source.splitlines(), 1)
        if of_machine(line) != line
    ]


def _places(folder: Path) -> list[tuple[str, str]]:
    """Patterns of folders on this machine and their replacements, the deepest first."""
    names = {str(Path.home()): "~", str(CONF.parent): ".", str(folder): "."}
    for variable in ("CIFAR10_FOLDER", "CIFAR10_ROOT"):
        if Path(os.environ.get(variable, "")).is_absolute():
            names[os.environ[variable]] = f"${variable}"
    places = []
    for name in sorted(names, key=len, reverse=True):
        if Path(name) == Path(name).parent:
            continue  # the root: a slash alone need not be a path
        if names[name] == ".":  # paths below it become relative
            places.append((rf"{START}{re.escape(name)}/(?=\w|\.)", ""))
        places.append((rf"{START}{re.escape(name)}(?![\w-])", names[name]))
    return [*places, (rf"{START}{re.escape(tempfile.gettempdir())}/{NAME}", "TEMPORARY")]


def _host() -> list[tuple[str, str]]:
    """A pattern for this machine's name, unless it could be an ordinary word."""
    name = socket.gethostname()
    return [(rf"\b{re.escape(name)}\b", "HOST")] if re.search(r"\w[\d.-]+\w", name) else []


def _replacing(patterns: list[tuple[str, str]]) -> Change:
    def change(text: str) -> str:
        for pattern, replacement in patterns:
            text = re.sub(pattern, replacement.replace("\\", r"\\"), text)
        return text

    return change


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs in which consecutive pieces of a stream are joined."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last and output.output_type == "stream" and output.get("name") == last.get("name"):
            last.text += output.text
        elif not any(kind.startswith(WIDGETS) for kind in output.get("data", {})):
            joined.append(output)
    return joined


def _stripped(output: NotebookNode, change: Change) -> NotebookNode:
    output = _changed(output, change)
    if "metadata" in output:
        output.metadata = NotebookNode()
    if "execution_count" in output:
        output.execution_count = None
    return output


def _changed(value: Any, change: Change, key: str = "") -> Any:
    """An output with all texts changed, except encoded images."""
    if isinstance(value, str):
        is_picture = key.startswith("image/") and key != "image/svg+xml"
        return value if is_picture else change(value)
    if isinstance(value, list):
        return [_changed(item, change, key) for item in value]
    if isinstance(value, dict):
        return NotebookNode({name: _changed(item, change, name) for name, item in value.items()})
    return value


def save(notebook: NotebookNode, file: Path) -> bool:
    """Write a notebook if its file would change; return whether it did."""
    text = nbformat.writes(notebook) + "\n"
    if file.exists() and file.read_text() == text:
        return False
    with atomic_write(file) as opened:
        opened.write(text.encode())
    return True


def main(files: list[str]) -> int:
    """Strip notebooks; return 1 if one was changed, is invalid, or has a machine's path in code."""
    code = 0
    for name in files:
        try:
            notebook = nbformat.read(name, as_version=4)
            nbformat.validate(notebook)
        # NotJSONError is a ValueError; JSON that is not an object gives an AttributeError.
        except (OSError, ValueError, AttributeError, nbformat.ValidationError) as error:
            reason = str(error).partition("\n")[0]
            print(f"Error: {name} is not a notebook: {reason}", file=sys.stderr)
            code = 1
            continue
        strip(notebook)
        if save(notebook, Path(name)):
            print(f"stripped {name}")
            code = 1
        for place in places_in_code(notebook):
            print(f"Error: {name}: a path of one machine in {place}", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
