"""Removes from a lock what nothing asks for any more, without asking a package index."""

import re
import tomllib
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

# A pinned package with its hashes, and below `# via` who asks for it.
ENTRY = re.compile(
    r"^([a-z0-9-]+)(==.*\n(?:    --hash=.*\n)+)    # via(.*\n(?:    #   .*\n)*)", re.MULTILINE
)


def prune_lock(project: Path) -> None:
    """Remove the packages from requirements.lock that pyproject.toml no longer leads to.

    Versions and hashes stay as they were tested. `make lock` would write the same file if no newer
    constraint stood against it.

    Args:
        project: folder of pyproject.toml and requirements.lock, which is changed in place.
    """
    content = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    own = content["project"]["name"]
    extras = content["project"]["optional-dependencies"].values()
    asked = {
        own: _names(chain(content["project"]["dependencies"], *extras)),
        f"{own} (pyproject.toml:dev)": _names(content["dependency-groups"]["dev"]) - {own},
    }
    path = project / "requirements.lock"
    text = path.read_text(encoding="utf-8")
    via = {name: re.findall(r"[\w-]+(?: \(.*\))?", names) for name, _, names in ENTRY.findall(text)}
    kept, more = set[str](), set.union(*asked.values())
    while more:
        kept |= more
        more = {name for name, others in via.items() if kept.intersection(others)} - kept

    def entry(found: re.Match[str]) -> str:
        name, pin, _ = found.groups()
        if name not in kept:
            return ""
        names = [who for who in via[name] if who in kept or name in asked.get(who, ())]
        lines = (
            f" {names[0]}\n"
            if len(names) == 1
            else "\n" + "".join(f"    #   {who}\n" for who in names)
        )
        return f"{name}{pin}    # via{lines}"

    path.write_text(ENTRY.sub(entry, text), encoding="utf-8")


def _names(requirements: Iterable[str]) -> set[str]:
    """Names of the required packages, as a lock spells them."""
    names = (re.split(r"[^\w.-]", requirement)[0] for requirement in requirements)
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}
