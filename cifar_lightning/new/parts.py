"""The parts that can be deleted, as docs/how-to/delete.md lists them, and their deletion."""

import re
import shutil
from pathlib import Path
from typing import NamedTuple

PAGE = "docs/how-to/delete.md"
SECTION = re.compile(r"^## (.*)\n((?:(?!^## ).*\n)*)", re.MULTILINE)
ROW = re.compile(r"^\| (\w+) \| (.*?) \| (.*?) ?\|$", re.MULTILINE)


class Edit(NamedTuple):
    """A change of a file, which deletes a block of lines or replaces a line.

    Attributes:
        file: path from the top of the checkout.
        line: how the block's first line begins, without its indentation.
        instead: the new line; an empty text deletes the block.
    """

    file: str
    line: str
    instead: str


class Part(NamedTuple):
    """A row of the page.

    Attributes:
        section: heading above the row's table.
        files: paths of files and folders, from the top of the checkout.
        needed_by: names of parts that cannot stay without this one.
        edits: of other files.
    """

    section: str
    files: list[str]
    needed_by: list[str]
    edits: list[Edit]


def read_parts(checkout: Path) -> dict[str, Part]:
    """The parts of a checkout by name, in the page's order."""
    page = (checkout / PAGE).read_text(encoding="utf-8")
    return {
        name: Part(
            section,
            re.findall(r"`(.*?)`", files),
            re.findall(r", and (\w+)", files),
            _read_edits(edits),
        )
        for section, text in SECTION.findall(page)
        for name, files, edits in ROW.findall(text)
    }


def _read_edits(cell: str) -> list[Edit]:
    """Read a cell of the table, as `FILE`: `LINE` `LINE` becomes `LINE`; `FILE`: `LINE`."""
    edits, file = [], ""
    for text, colon, instead in re.findall(r"`([^`]+)`(:)?(?: becomes `([^`]+)`)?", cell):
        if colon:
            file = text
        else:
            edits.append(Edit(file, text, instead))
    return edits


def delete(checkout: Path, name: str, parts: dict[str, Part]) -> None:
    """Delete a part, and those that cannot stay without it; what has gone already is skipped.

    Args:
        checkout: its files are changed in place.
        name: of the part.
        parts: as `read_parts` gives them.
    """
    part = parts[name]
    for file in part.files:
        path = checkout / file
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    for other in part.needed_by:
        delete(checkout, other, parts)
    for edit in part.edits:
        path = checkout / edit.file
        if path.exists():
            apply_edit(path, edit)


def apply_edit(path: Path, edit: Edit) -> bool:
    """Edit a file as a row of the page says; False: it has no such line.

    Deleted are the line that begins as `edit.line` does, the lines indented below it, the bracket
    or `fi` that closes them, and the comment above.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    first = next((n for n, line in enumerate(lines) if line.strip().startswith(edit.line)), None)
    if first is None:
        return False
    indent, last = _indent(lines[first]), first + 1
    if edit.instead:
        lines[first] = f"{' ' * indent}{edit.instead}\n"
    else:
        while last < len(lines) and _is_below(lines[last], indent):
            last += 1
        while not lines[last - 1].strip():
            last -= 1
        if last < len(lines) and lines[last].rstrip() in (f"{' ' * indent}]", "fi"):
            last += 1
        while first and lines[first - 1].strip().startswith("# "):
            first -= 1
        stands_alone = not first or not lines[first - 1].strip()
        if stands_alone and last < len(lines) and not lines[last].strip():
            last += 1  # of the empty lines around it, one is enough
        del lines[first:last]
    path.write_text("".join(lines), encoding="utf-8")
    return True


def _is_below(line: str, indent: int) -> bool:
    return not line.strip() or _indent(line) > indent


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
