"""Who may import whom: arrows point up this list only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cifar_lightning

PACKAGE = Path(cifar_lightning.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)

# Layer of each module, and the packages from outside that it may import.
LAYERS: dict[str, int] = {
    "errors": 0,
    "atomic": 0,
    "places": 0,
    "processes": 0,
    "status": 0,
    "augment": 1,
    "models": 1,
    "budget": 1,
    "optim": 1,
    "distillation": 1,
    "layers": 1,
    "pictures": 1,
    "panels": 3,
    "locks": 1,
    "jobs": 2,
    "runs": 1,
    "cli": 3,
    "data": 2,
    "scores": 1,
    "classifier": 2,
    "board": 2,
    "arguments": 2,
    "curves": 2,
    "corruptions": 2,
    "measures": 2,
    "callbacks": 3,
    "explain": 3,
    "console": 4,
    "trusted": 4,
    "checkpoint": 4,
    "resume": 5,
    "hardware": 5,
    "warm_up": 5,
    "training": 6,
    "inference": 6,
    "run": 7,
    "formats": 7,
    "pretrained": 2,
    "reporting": 8,
    "exporting": 8,
    "predictions": 7,
    "classifying": 8,
    "results": 8,
    "review": 8,
    "evaluation": 8,
    "train": 9,
    "evaluate": 9,
    "predict": 9,
    "export": 9,
    "report": 9,
    "sweep": 9,
    "searching": 8,
    "search": 9,
    "dashboard": 9,
}
OUTSIDE: dict[str, set[str]] = {
    "errors": set(),
    "atomic": set(),
    "places": set(),
    "processes": set(),
    "status": set(),
    "augment": {"torch"},
    "models": {"torch"},
    "budget": {"torch"},
    "optim": {"torch"},
    "distillation": {"torch"},
    "layers": {"torch"},
    "pictures": {"matplotlib", "numpy"},
    "cli": {"hydra", "hydra_plugins", "omegaconf"},
    "locks": {"torch", "filelock"},
    "jobs": {"torch"},
    "arguments": {"pydantic", "omegaconf"},
    "data": {
        "torch",
        "torchvision",
        "pytorch_lightning",
        "PIL",
        "numpy",
        "rich",
        "filelock",
        "requests",
        "urllib3",
    },
    "scores": {"torch", "torchmetrics"},
    "classifier": {"torch", "pytorch_lightning"},
    "callbacks": {"torch", "torchmetrics", "pytorch_lightning"},
    "curves": {"pytorch_lightning"},
    "board": {"wandb", "pytorch_lightning", "torch", "numpy"},
    "console": {"torch", "torchinfo", "rich", "pytorch_lightning", "omegaconf"},
    "trusted": {"omegaconf"},
    "checkpoint": {"torch", "pydantic", "pytorch_lightning"},
    "resume": {"omegaconf"},
    "warm_up": {"torch", "pytorch_lightning"},
    "training": {"pytorch_lightning", "lightning_fabric", "omegaconf"},
    "hardware": {"torch"},
    "inference": {"torch", "lightning_fabric", "pytorch_lightning"},
    "run": {"torch", "pytorch_lightning", "hydra", "omegaconf", "rich"},
    "sweep": {"joblib", "rich"},
    "searching": {"optuna", "sqlalchemy", "hydra", "omegaconf", "matplotlib", "filelock", "rich"},
    "search": {"omegaconf"},
    "panels": {"wandb", "wandb_workspaces"},
    "dashboard": {"omegaconf"},
    "corruptions": {"torch", "torchvision", "numpy", "PIL"},
    "measures": {"torch", "torchmetrics"},
    "explain": {"torch"},
    "review": {"omegaconf", "pytorch_lightning"},
    "results": {"torch", "matplotlib", "pytorch_lightning", "omegaconf"},
    "evaluation": {"torch", "matplotlib", "rich"},
    "runs": {"omegaconf"},
    "reporting": {"jinja2", "markupsafe", "matplotlib"},
    "formats": {"torch", "onnx", "onnxruntime", "safetensors"},
    "pretrained": {"torch", "safetensors"},
    "exporting": {"torch", "omegaconf", "rich"},
    "predictions": {"numpy", "rich"},
    "classifying": {"torch", "numpy", "rich"},
    "evaluate": {"omegaconf"},
    "predict": {"omegaconf"},
    "export": {"torch", "omegaconf", "rich"},
    "report": {"omegaconf", "rich"},
    "train": {"pytorch_lightning", "omegaconf"},
}


def part(module: str) -> str:
    """`cifar_lightning.data.folder` belongs to `data`."""
    return module.split(".")[1] if "." in module else ""


def source(module: str) -> str:
    path = PACKAGE.parent / Path(*module.split("."))
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()


def imports(module: str, at_the_top: bool = False) -> set[str]:
    """What a module imports, anywhere or at its top level only."""
    tree = ast.parse(source(module))
    found: set[str] = set()
    for node in tree.body if at_the_top else ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            base = node.module or ""
            names = {f"{base}.{alias.name}" for alias in node.names}
            found.update(names & set(MODULES) or {base})
    return found


ours = pytest.mark.parametrize("module", [m for m in MODULES if part(m)])


def test_every_module_has_its_layer() -> None:
    assert {part(module) for module in MODULES} - {""} == set(LAYERS) == set(OUTSIDE)


@ours
def test_imports_point_to_lower_layers_or_the_same_part(module: str) -> None:
    for imported in imports(module):
        if imported.startswith("cifar_lightning.") and part(imported) != part(module):
            assert LAYERS[part(imported)] < LAYERS[part(module)], f"{module} imports {imported}"


@ours
def test_imports_from_outside_are_the_layers_own(module: str) -> None:
    roots = {name.partition(".")[0] for name in imports(module)}
    foreign = roots - set(sys.stdlib_module_names) - {"cifar_lightning"}
    assert foreign <= OUTSIDE[part(module)]


def test_only_run_instantiates_configurations() -> None:
    users = [module for module in MODULES if "hydra.utils" in imports(module)]
    assert users == ["cifar_lightning.run.build"]


@pytest.mark.parametrize(
    "name", ["train", "evaluate", "predict", "export", "report", "search", "dashboard"]
)
def test_entry_points_import_the_command_line_alone_at_the_top(name: str) -> None:
    top = imports(f"cifar_lightning.{name}", at_the_top=True)
    assert {name for name in top if name.startswith("cifar_lightning")} == {"cifar_lightning.cli"}
    assert not {"torch", "pytorch_lightning"} & {name.partition(".")[0] for name in top}


def test_train_stays_short() -> None:
    assert len((PACKAGE / "train.py").read_text().splitlines()) < 100


def lines_of(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("module", MODULES)
def test_modules_and_functions_are_as_short_as_contributing_says(module: str) -> None:
    assert len(source(module).splitlines()) <= 250
    for node in ast.walk(ast.parse(source(module))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = lines_of(node.body[0]) if ast.get_docstring(node) else 0
            assert lines_of(node) - docstring <= 50, f"{module}.{node.name}"


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = (
        "import sys, cifar_lightning; "
        "print({'torch', 'hydra', 'wandb', 'pytorch_lightning'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert output.stdout.strip() == "set()"


def test_every_public_name_is_there() -> None:
    for name in cifar_lightning.__all__:
        assert getattr(cifar_lightning, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = cifar_lightning.nonsense  # type: ignore[attr-defined]  # type checkers see it too


def test_training_with_csv_alone_needs_no_wandb(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['wandb'] = None\n"
        "from conftest import TINY\n"
        "from cifar_lightning import compose\n"
        "from cifar_lightning.train import train\n"
        f"print(train(compose(TINY, {str(tmp_path / 'run')!r}))['test/acc'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(Path(__file__).parent), "PATH": ""},
    )
    assert ended.returncode == 0, ended.stderr
