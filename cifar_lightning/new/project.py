"""Writes a new project: copies the template, deletes parts, renames the package, commits."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from cifar_lightning._version import __version__
from cifar_lightning.config.comments import SCHEMA_LINE
from cifar_lightning.errors import UserError
from cifar_lightning.new.git import git
from cifar_lightning.new.lock import prune_lock
from cifar_lightning.new.parts import Edit, apply_edit, delete, read_parts

FILES = Path(__file__).parent / "files"  # in place of the template's
OLD = Path(__file__).parents[1].name
# What is about the template, beside the parts of that section of docs/how-to/delete.md.
LEFT_OUT = ("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "README.md", "tests/project/")
ABOUT = "Image classification on PyTorch Lightning and Hydra"
EDITS = (
    Edit("pyproject.toml", "description =", f'description = "{ABOUT}"'),
    Edit("pyproject.toml", '"tests/project",', ""),
    Edit("cifar_lightning/__init__.py", '"""A small', f'"""{ABOUT}.'),
    Edit("cifar_lightning/_version.py", "__version__", '__version__ = "0.1.0"'),
    # A copy of CIFAR-10 beside the template's checkout.
    Edit(".ci/run", "copy=", ""),
    Edit(".ci/run", "if [ -z", ""),
)
# A file that a project has not: where a comment or a message names one, it is the template's.
POINTER = re.compile(
    r"(?:(?<![\w/.])|(?<=\\n))(?<!template's )(?=(?:docs|benchmarks|notebooks)/[\w./-]*\w)"
)
LINE_LENGTH = 100
CREDIT = """\
This project began as a copy of {old} {version} (commit {commit}), which is under the MIT
licence, as LICENSE says. Where a comment or a message names a file of the template, it is there."""


def write(template: Path, folder: Path, name: str, tools: Collection[str], weights: bool) -> None:
    """Write a project to a new folder, all or nothing.

    Args:
        template: a git checkout without uncommitted changes.
        folder: is created, unless it is there and empty; the folder that it is in exists.
        name: of the package.
        tools: that it gets, of the section Tools in docs/how-to/delete.md.
        weights: whether it gets the trained networks.

    Raises:
        UserError: if ruff or git fails.
    """
    commit = git(template, "rev-parse", "--short", "HEAD")
    credit = CREDIT.format(old=OLD.replace("_", "-"), version=__version__, commit=commit)
    # Beside it, because renaming is atomic only within a file system.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        project = Path(temporary) / folder.name
        project.mkdir()
        _copy(template, project)
        parts = read_parts(template)
        chosen = {*tools, *(["weights"] if weights else [])}
        for part, row in parts.items():
            is_optional = row.section == "Tools" or part == "weights"
            if row.section == "About the template" or (is_optional and part not in chosen):
                delete(project, part, parts)
        for edit in EDITS:
            apply_edit(project / edit.file, edit)
        for file in project.rglob("*.yaml"):  # the schemas are among the template's pages
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            kept = [line for line in lines if not line.startswith(SCHEMA_LINE)]
            file.write_text("".join(kept), encoding="utf-8")
        for file in FILES.iterdir():
            (project / file.name).write_text(_of_parts(file.read_text(), chosen), encoding="utf-8")
        _rename(project, name)
        prune_lock(project)
        readme = project / "README.md"
        readme.write_text(readme.read_text().replace("CREDIT", credit), encoding="utf-8")
        try:
            _format(project)
            git(project, "init", "--quiet", "--initial-branch=main")
            git(project, "add", "--all")
            message = f"Begin from {OLD.replace('_', '-')} {__version__} (commit {commit})"
            git(project, "commit", "--quiet", "--no-verify", f"--message={message}")
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout).strip()
            raise UserError(f"{' '.join(error.cmd[:5])} … failed: {said}") from error
        project.rename(folder)


def _copy(template: Path, project: Path) -> None:
    """Copy the files that git tracks."""
    for name in git(template, "ls-files", "-z").split("\0"):
        if name and not name.startswith(LEFT_OUT):
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(template / name, project / name, follow_symlinks=False)


def _of_parts(text: str, chosen: Collection[str]) -> str:
    """Without the lines that `<!-- PART -->` marks as those of a part that was not chosen."""
    lines = []
    for line in text.splitlines():
        marked = re.search(r" <!-- (\w+) -->$", line)
        if marked is None or marked[1] in chosen:
            lines.append(line[: marked.start()] if marked else line)
    return "\n".join(lines) + "\n"


def _rename(project: Path, name: str) -> None:
    """Put a name in place of the template's, in all files and their names.

    `cifar_lightning` becomes `name`, and what begins with `cifar-` begins with the name of the
    distribution, in which `-` stands for `_`.
    """
    distribution = name.replace("_", "-")
    files = sorted((path for path in project.rglob("*") if path.is_file()), reverse=True)
    for path in files:
        if path.suffix == ".safetensors":
            _rename_in_header(path, name)
        elif path.name != "LICENSE":
            text = path.read_text(encoding="utf-8")
            text = text.replace(OLD, name).replace(OLD.upper(), name.upper())
            text = text.replace(OLD.replace("_", "-"), distribution)
            text = re.sub(r"\bcifar-(?!\d)", f"{distribution}-", text)  # but for cifar-10-python
            path.write_text(_with_pointers(text), encoding="utf-8")
    for path in sorted(project.rglob(f"*{OLD}*"), reverse=True):  # what is inside comes first
        path.rename(path.with_name(path.name.replace(OLD, name)))


def _with_pointers(text: str) -> str:
    """With `the template's` before the path of each file that the project has not."""

    def pointer(found: re.Match[str]) -> str:
        before = text[: found.start()].rstrip(" #\n")
        starts_a_sentence = not before or before.endswith((".", "?", '"', "'", "\\n"))
        return f"{'The' if starts_a_sentence else 'the'} template's "

    return POINTER.sub(pointer, text)


def _rename_in_header(path: Path, name: str) -> None:
    """Rename the package in the metadata of weights; the tensors stay as they are, to the bit."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")  # the header's length comes first
    header = json.loads(content[8:end])
    metadata = json.dumps(header["__metadata__"]).replace(OLD, name)
    header = json.dumps({**header, "__metadata__": json.loads(metadata)}).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of 8
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])


def _format(project: Path) -> None:
    """Sort imports and wrap lines anew, as both depend on the name; allow lines that stay long."""
    ruff = [sys.executable, "-m", "ruff"]
    run = ["check", "--quiet", "--select=I", "--fix", "."], ["format", "--quiet", "."]
    for arguments in run:
        command = [*ruff, *arguments, "--no-cache"]
        subprocess.run(command, cwd=project, check=True, capture_output=True, text=True)
    longest = max(
        len(line) for path in project.rglob("*.py") for line in path.read_text().splitlines()
    )
    if longest > LINE_LENGTH:  # a comment or a text, which ruff does not wrap
        settings = project / "pyproject.toml"
        before, heading, after = settings.read_text().partition("ignore = [\n")
        rule = '    "E501",  # comments and texts grew with the package\'s name; code is wrapped\n'
        settings.write_text(f"{before}{heading}{rule}{after}", encoding="utf-8")
