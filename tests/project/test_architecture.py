"""Who may import whom: a package may import only the packages before it in the list."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import cifar_lightning

PACKAGE = Path(cifar_lightning.__file__).parent
ROOT = PACKAGE.parent

# The order of design: what stands in one line does not import each other.
ORDER = (
    {"_version", "errors"},
    {"system"},
    {"config"},
    {"models"},
    {"data"},
    {"training"},
    {"tracking"},
    {"cli"},
    {"checkpoints"},
    {"run"},
    {"sweep"},
    {"hydra_plugins"},
    {"train"},
    {"evaluate", "predict", "export", "hub", "report", "search", "dashboard", "new"},
    {"__init__"},  # the public names, which it loads when they are first used
)
TOOLS = {"evaluate", "predict", "export", "report", "search", "dashboard", "new"}
LIGHT = {"__init__", "_version", "errors", "system", "config", "cli", "hydra_plugins"}

# Command lines that a room prints, or starts as a user would where the command is there.
COMMANDS = {("report", "evaluate"), ("report", "train"), ("sweep", "report")}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    name_of(path): path for top in (PACKAGE, ROOT / "hydra_plugins") for path in top.rglob("*.py")
}


def room(module: str) -> str:
    """`cifar_lightning.data.splits` is in the room `data`."""
    top, _, rest = module.partition(".")
    return (rest.partition(".")[0] or "__init__") if top == "cifar_lightning" else top


def named(node: ast.AST) -> Iterator[str]:
    """What an import statement imports; a module named by a string is an import too."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "a relative import"
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    # A string with nothing behind the dot begins a command line whose command is not fixed.
    elif isinstance(node, ast.Constant) and re.match(r"cifar_lightning\.\w", str(node.value)):
        yield str(node.value)


@cache
def imports(module: str) -> set[str]:
    """Modules of ours that a module imports, at its top or in a function, and names from others."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        for name in named(node):
            while name not in FILES and name.rpartition(".")[0] in FILES:
                name = name.rpartition(".")[0]
            found.add(name)
    return found - {module}


def ours(module: str) -> set[str]:
    return imports(module) & set(FILES)


def test_each_room_imports_only_rooms_before_it() -> None:
    place = {name: number for number, names in enumerate(ORDER) for name in names}
    assert {room(module) for module in FILES} <= set(place)
    wrong = [
        f"{room(module)} -> {room(other)}: {module} imports {other}"
        for module in FILES
        for other in ours(module)
        if room(module) != room(other) and place[room(module)] <= place[room(other)]
        if (room(module), room(other)) not in COMMANDS
    ]
    assert wrong == []


def test_only_search_starts_trainings() -> None:
    users = {room(module) for module in FILES if "cifar_lightning.train" in ours(module)}
    assert {user for user in users if (user, "train") not in COMMANDS} <= {"search"}


def test_no_circle_of_files() -> None:
    arrows = {
        module: {m for m in ours(module) if (room(module), room(m)) not in COMMANDS}
        for module in FILES
    }
    TopologicalSorter(arrows).prepare()  # raises an error that names the circle


def test_only_run_instantiates_configurations() -> None:
    users = {room(m) for m in FILES for name in imports(m) if name == "hydra.utils.instantiate"}
    assert users == {"run"}


def test_commands_load_nothing_heavy_before_they_know_what_to_do() -> None:
    entries = {f"cifar_lightning.{name}" for name in ("train", *TOOLS)} & set(FILES)
    light = sorted({m for m in FILES if room(m) in LIGHT} | entries)
    program = (
        "import sys\n"
        f"for name in {light}: __import__(name)\n"
        "print({'torch', 'pytorch_lightning', 'wandb', 'matplotlib', 'optuna'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout.strip() == "set()", ended.stderr


def test_every_public_name_is_there() -> None:
    for name in cifar_lightning.__all__:
        assert getattr(cifar_lightning, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = cifar_lightning.nonsense  # type: ignore[attr-defined]  # type checkers see it too
