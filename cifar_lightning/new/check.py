"""What must hold before a new project is written: template, folder, name and tools."""

import keyword
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from cifar_lightning.config import validate
from cifar_lightning.config.habits import near, question
from cifar_lightning.errors import UserError
from cifar_lightning.new.git import git
from cifar_lightning.new.parts import Part

NAME = re.compile(r"[a-z]([a-z0-9_]*[a-z0-9])?")


def check_template(template: Path) -> None:
    """Check that the package is run from a git checkout without uncommitted changes.

    Raises:
        UserError: if not, if git or ruff is missing, or if git does not know an author.
    """
    try:
        top = Path(git(template, "rev-parse", "--show-toplevel")).resolve()
    except FileNotFoundError:
        raise UserError("git is missing: a project begins as a git repository.") from None
    except subprocess.CalledProcessError:
        top = None
    if top != template.resolve():
        raise UserError(
            f"{template} is not a git checkout of the template. Begin a project in one: git clone "
            "the template, then make new in its folder."
        )
    if changed := git(template, "status", "--porcelain").splitlines():
        raise UserError(
            f"The template has changes that are not committed: {changed[0][2:].strip()}"
            f"{f' and {len(changed) - 1} more' if changed[1:] else ''}. Commit them, and the "
            "project gets them; git stash --include-untracked puts them aside."
        )
    if find_spec("ruff") is None:
        raise UserError("ruff is missing, which formats the new project: make setup installs it.")
    try:
        git(template, "var", "GIT_COMMITTER_IDENT")
        git(template, "var", "GIT_AUTHOR_IDENT")
    except subprocess.CalledProcessError:
        raise UserError(
            "git does not know the author of the first commit: git config --global user.name NAME "
            "and git config --global user.email ADDRESS."
        ) from None


def check_folder(folder: Path, template: Path) -> None:
    """Check that a project can be written to a folder.

    Args:
        folder: of the new project.
        template: checkout, which must not contain it.

    Raises:
        UserError: if not.
    """
    if folder.is_relative_to(template.resolve()):
        raise UserError(f"dir={folder} is inside the template: name a folder outside {template}.")
    if not folder.parent.is_dir():
        raise UserError(f"dir={folder}: there is no folder {folder.parent}.")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"dir={folder} exists already: name a folder that does not.")
    validate.check_folder("dir", folder.parent)


def check_name(name: str, template: Path) -> None:
    """Check that a package may have a name.

    Args:
        name: of the new project's package.
        template: checkout, with whose files the package must not collide.

    Raises:
        UserError: if not.
    """
    wanted = re.sub(r"\W+", "_", name.lower()).strip("_")
    advice = f", as in name={wanted}" if NAME.fullmatch(wanted) and wanted != name else ""
    if not NAME.fullmatch(name):
        raise UserError(
            f"name={name} is not a name for a package: it has lower-case letters, digits and _, "
            f"and begins with a letter{advice}."
        )
    if keyword.iskeyword(name):
        raise UserError(f"name={name} is a keyword of Python: choose another name.")
    if name in sys.stdlib_module_names:
        raise UserError(f"name={name} is a module of Python: choose another name.")
    if name == Path(__file__).parents[1].name:
        raise UserError(f"name={name} is the template's own name: choose another.")
    distributions = packages_distributions()
    known = {
        *distributions,
        *(re.sub(r"[-.]", "_", d.lower()) for d in chain(*distributions.values())),
    }
    if name in known:
        raise UserError(f"name={name} is an installed package: choose another name.")
    ignored = re.findall(r"^/(\w+)/$", (template / ".gitignore").read_text(), re.MULTILINE)
    modules = {path.stem for path in (template / "tests").rglob("*.py")}
    if name in {*ignored, *modules, *(path.stem for path in template.iterdir())}:
        raise UserError(f"name={name} is a file or folder of the project: choose another name.")


def chosen_tools(tools: Sequence[str], parts: dict[str, Part], weights: bool) -> list[str]:
    """The chosen tools, in the order of docs/how-to/delete.md.

    Args:
        tools: names, or `all` or `none` alone.
        parts: as `read_parts` gives them.
        weights: whether the project gets the trained networks, which some tools need.

    Raises:
        UserError: if there is no such tool, or one needs what was not chosen.
    """
    known = [name for name, part in parts.items() if part.section == "Tools"]
    chosen = list(tools)
    if chosen == ["none"]:
        return []
    if chosen == ["all"]:
        chosen = [name for name in known if weights or name not in parts["weights"].needed_by]
    for name in chosen:
        if name not in known:
            raise UserError(
                f"tools={','.join(chosen)}: there is no tool {name!r}.{question(near(name, known))}"
                f" The tools are {', '.join(known)}; all and none stand for all and none of them."
            )
    left_out = [*(set(known) - set(chosen)), *([] if weights else ["weights"])]
    for needed in left_out:
        for name in parts[needed].needed_by:
            if name in chosen:
                what = (
                    "weights=true"
                    if needed == "weights"
                    else f"tools={','.join([*chosen, needed])}"
                )
                raise UserError(f"The tool {name} needs {needed}: {what}, or leave {name} out.")
    return [name for name in known if name in chosen]
