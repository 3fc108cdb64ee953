"""Installing the package: as a wheel, from two checkouts, and several times at once."""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import TINY
from data_sets import small_data_set, write_tar
from programs import finish, read_json, start

from cifar_lightning.config.compose import CONF

ROOT = CONF.parent
# What the package is built from: a wheel, an editable install, an image.
FILES = ("pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("cifar_lightning", "conf", "hydra_plugins")
TEMPLATES = ROOT / "cifar_lightning" / "report" / "templates"
WEIGHTS = ROOT / "cifar_lightning" / "checkpoints" / "weights"


def sources(folder: Path) -> Path:
    """What a checkout has and a wheel is built from."""
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def call(*command: str | Path, folder: Path) -> str:
    """The output of a command in a folder, with nothing that would lead Python to this checkout."""
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}
    ended = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    checkout = sources(folder / "checkout")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir")
    call(sys.executable, "-m", "pip", "wheel", *options, folder, checkout, folder=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_whole_package_every_configuration_template_and_network(
    wheel: Path,
) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cifar_lightning").rglob("*.py")}
    configurations = {
        f"cifar_lightning/conf/{path.relative_to(CONF).as_posix()}" for path in CONF.rglob("*.yaml")
    }
    others = {
        path.relative_to(ROOT).as_posix()
        for place in (TEMPLATES, WEIGHTS)
        for path in place.iterdir()
    }
    plugin = {"hydra_plugins/cifar_lightning_sweeper/__init__.py"}
    types = {"cifar_lightning/py.typed"}
    assert held == code | plugin | configurations | others | types


@pytest.mark.slow
def test_the_wheel_trains_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    # Empty but for the dependencies, which are those of these tests; the path file does not bring
    # the editable install of this checkout along.
    venv.create(tmp_path / "env", with_pip=False)
    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    options = ("install", "--quiet", "--no-deps", "--no-index")
    pip = (sys.executable, "-m", "pip", "--python", tmp_path / "env")
    call(*pip, *options, wheel, folder=tmp_path)
    anywhere = tmp_path / "a folder, far=away [1]"
    anywhere.mkdir()
    call(tmp_path / "env" / "bin" / "cifar-train", *TINY, folder=anywhere)
    assert len(list(anywhere.glob("runs/train/*/metrics.json"))) == 1
    program = "from cifar_lightning.config.compose import CONF; print(CONF)"
    where = call(tmp_path / "env" / "bin" / "python", "-c", program, folder=anywhere)
    assert Path(where.strip()) == packages / "cifar_lightning" / "conf"
    program = "import cifar_lightning; print(cifar_lightning.load('best_dilated_dw').classes[0])"
    first = call(tmp_path / "env" / "bin" / "python", "-c", program, folder=anywhere)
    assert first.strip() == "airplane"


def test_two_checkouts_have_each_their_own_code_and_configuration(tmp_path: Path) -> None:
    for name in ("one", "two"):
        checkout = sources(tmp_path / name)
        with (checkout / "conf" / "train.yaml").open("a") as file:
            file.write(f"\nof_checkout: {name}\n")
        code = checkout / "cifar_lightning" / "train.py"
        code.write_text(f"print('code of {name}')\n{code.read_text()}")
    for name in ("one", "two"):
        command = (sys.executable, "-m", "cifar_lightning.train", "--cfg", "job")
        output = call(*command, folder=tmp_path / name)
        assert f"code of {name}\n" in output
        assert f"of_checkout: {name}\n" in output


@pytest.mark.slow
def test_simultaneous_starts_do_not_disturb_each_other(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "set.tar.xz", small_data_set())
    options = [option for option in TINY if not option.startswith("data")]
    options += [f"data.path={archive}", "data=folder", "data.batch_size=2", "data.val_size=4"]
    programs = [start("train", *options, f"seed={seed}") for seed in range(4)]
    outputs = [finish(program) for program in programs]
    assert [program.returncode for program in programs] == [0] * 4, outputs
    folders = sorted(Path("runs/train").iterdir())
    for folder in folders:
        names = {path.name for path in (folder / "checkpoints").iterdir()}
        assert names == {"best.ckpt", "last.ckpt"}
    seeds = [read_json(folder / "metrics.json")["seed"] for folder in folders]
    assert sorted(seeds) == [0, 1, 2, 3]
    assert len(list(Path("data/cache").glob("*.pt"))) == 1


def test_an_image_is_built_from_files_that_are_there_and_nothing_else() -> None:
    docker = (ROOT / "Dockerfile").read_text()
    copied = [line.split()[:-1] for line in re.findall(r"^COPY (.*)$", docker, re.MULTILINE)]
    names = {name.rstrip("/") for names in copied for name in names}
    assert names == {"requirements.lock", *FILES, *FOLDERS}
    assert all((ROOT / name).exists() for name in names)
    first, *rules = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] != "#"
    ]
    assert first == "*"
    assert {rule[1:] for rule in rules if rule[0] == "!"} == names


def test_containers_have_a_python_that_set_up_takes() -> None:
    docker = (ROOT / "Dockerfile").read_text()
    (version,) = re.findall(r"^FROM python:(3\.\d+)-", docker, re.MULTILINE)
    assert f"python{version}" in (ROOT / "Makefile").read_text()
    editor = ROOT / ".devcontainer" / "devcontainer.json"
    build = json.loads(editor.read_text())["build"]
    assert (editor.parent / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (editor.parent / build["context"]).resolve() == ROOT
    assert f" AS {build['target']}\n" in docker
