import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from copies import check, copy_of_the_checkout, environment
from hydra.errors import ConfigCompositionException
from packaging.requirements import Requirement
from programs import finish, one_message, run_command, start, wait_for
from safetensors import safe_open
from safetensors.torch import load_file

from cifar_lightning.config import compose as composing
from cifar_lightning.config.compose import compose
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.errors import UserError
from cifar_lightning.new import new, project, tools_as_list
from cifar_lightning.new.check import check_template
from cifar_lightning.new.git import git
from cifar_lightning.new.parts import read_parts

OLD = re.compile("cifar.?lightning", re.IGNORECASE)
NAME = "my_net"


@pytest.fixture(scope="module", autouse=True)
def author() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Ada")
            patch.setenv(f"GIT_{role}_EMAIL", "ada@example.org")
        yield


@pytest.fixture(scope="module")
def template(author: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the checkout as it is, with what is not committed there."""
    folder = copy_of_the_checkout(tmp_path_factory.mktemp("template") / "clone")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--no-verify", "--message=all")
    return folder


@pytest.fixture(scope="module")
def some(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two tools, which no test changes."""
    folder = tmp_path_factory.mktemp("some") / "project"
    project.write(template, folder, NAME, ["evaluate", "report"], weights=True)
    return folder


def texts(folder: Path) -> Iterator[tuple[str, str]]:
    """The name and the text of each file that git has."""
    for name in git(folder, "ls-files").splitlines():
        yield name, (folder / name).read_bytes().decode(errors="replace")


def test_the_templates_name_stands_in_the_credit_alone(some: Path) -> None:
    found = {
        f"{name}: {line}"
        for name, text in texts(some)
        for line in [name, *text.splitlines()]
        if OLD.search(line)
    }
    readme, licence = sorted(found, reverse=True)[0], "LICENSE: Copyright (c) 2026 the cifar-"
    assert readme.startswith("README.md: This project began as a copy of cifar-lightning ")
    assert len(found) == 2
    assert any(line.startswith(licence) for line in found)


def test_no_file_that_is_named_is_missing(some: Path) -> None:
    for name, text in texts(some):
        for words, path in re.findall(
            r"(the\s+template's )?\b((?:docs|benchmarks|notebooks)/[\w./-]+)", text, re.IGNORECASE
        ):
            assert words or (some / path).exists(), f"{name}: {path}"
    for module in re.findall(r"python -m ([\w.]+)", (some / "README.md").read_text()):
        path = some / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_a_project_has_the_chosen_tools_and_none_of_the_others(template: Path, some: Path) -> None:
    for name, part in read_parts(template).items():
        is_there = name in ("evaluate", "report") or part.section == "Methods and weights"
        for file in part.files:
            moved = some / file.replace("cifar_lightning", NAME)
            assert moved.exists() == is_there, file
    settings = tomllib.loads((some / "pyproject.toml").read_text())
    assert settings["project"]["name"] == "my-net"
    assert set(settings["project"]["scripts"]) == {
        "my-net-train",
        "my-net-evaluate",
        "my-net-report",
    }
    packages = {
        ".".join(file.relative_to(some).parent.parts) for file in (some / NAME).rglob("__init__.py")
    }
    assert set(settings["tool"]["setuptools"]["packages"]) == packages | {f"{NAME}.conf"}
    readme = (some / "README.md").read_text()
    assert f"python -m {NAME}.evaluate" in readme
    assert f"{NAME}.predict" not in readme


def test_the_repository_has_one_commit_and_the_licence(template: Path, some: Path) -> None:
    commit = git(template, "rev-parse", "--short", "HEAD")
    log = git(some, "log", "--format=%an: %s", "--all").splitlines()
    assert len(log) == 1
    assert log[0].startswith("Ada: Begin from cifar-lightning ")
    assert commit in log[0]
    assert commit in (some / "README.md").read_text()
    assert git(some, "status", "--porcelain") == ""
    assert git(some, "branch", "--show-current") == "main"
    assert (some / "LICENSE").read_bytes() == (template / "LICENSE").read_bytes()
    assert (some / ".ci/run").stat().st_mode & 0o111


def test_weights_come_along_under_the_new_name_to_the_bit(template: Path, some: Path) -> None:
    (old,) = template.glob("cifar_lightning/checkpoints/weights/best_257k.safetensors")
    moved = some / NAME / "checkpoints" / "weights" / old.name
    with safe_open(moved, framework="pt") as file:
        metadata = file.metadata()
    assert f'"{NAME}.models.ResidualDW"' in metadata["network"]
    before, after = load_file(old), load_file(moved)
    assert before.keys() == after.keys()
    assert all(before[key].equal(after[key]) for key in before)


def test_the_lock_has_what_the_project_asks_for_and_the_same_versions(
    template: Path, some: Path
) -> None:
    def pins(folder: Path) -> dict[str, str]:
        lock = (folder / "requirements.lock").read_text()
        return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))

    before, after = pins(template), pins(some)
    assert after.items() < before.items()
    settings = tomllib.loads((some / "pyproject.toml").read_text())
    asked = [*settings["project"]["dependencies"], *settings["dependency-groups"]["dev"]]
    for requirement in map(Requirement, asked):
        assert requirement.specifier.contains(after[requirement.name.replace("_", "-")])
    assert {
        "torch",
        "jinja2",
        "nvidia-cudnn-cu13",
        "lightning-utilities",
    } & before.keys() <= after.keys()
    assert not {"optuna", "psycopg", "onnx", "wandb", "nbclient", "joblib"} & after.keys()


@pytest.mark.parametrize("name", ["n", "a_name_longer_than_the_templates"])
def test_a_short_and_a_long_name_pass_ruff(template: Path, tmp_path: Path, name: str) -> None:
    project.write(template, tmp_path / "new", name, [], weights=False)
    for command in (["check"], ["format", "--check"]):
        call([sys.executable, "-m", "ruff", *command, "--no-cache"], tmp_path / "new")


def begin(*typed: str) -> Path:
    """What the command does, without its start."""
    overrides = prepare_arguments(tools_as_list([*typed]))
    return new(compose(overrides, config_name="new"))


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ((), "dir=FOLDER is missing, .*: dir=../mynet"),
        (("dir=full",), "dir=.*full exists already: name a folder that does not"),
        (("dir=file",), "dir=.*file exists already"),
        (("dir=no/where",), "dir=.*: there is no folder .*/no"),
        (("dir=clone/mine",), "dir=.*mine is inside the template: name a folder outside"),
        (("dir=My-Net",), "name=My-Net is not a name for a package: .*, as in name=my_net"),
        (("dir=a", "name=2nd"), "name=2nd is not a name for a package"),
        (("dir=a", "name=import"), "name=import is a keyword of Python"),
        (("dir=a", "name=random"), "name=random is a module of Python"),
        (("dir=a", "name=torch"), "name=torch is an installed package"),
        (("dir=a", "name=pytorch_lightning"), "name=pytorch_lightning is an installed package"),
        (("dir=a", "name=hydra_core"), "name=hydra_core is an installed package"),
        (("dir=a", "name=cifar_lightning"), "is the template's own name"),
        (("dir=a", "name=tests"), "name=tests is a file or folder of the project"),
        (("dir=a", "name=data"), "name=data is a file or folder of the project"),
        (("dir=a", "name=programs"), "name=programs is a file or folder of the project"),
        (("dir=a", "tools=evalute"), "no tool 'evalute'. Did you mean evaluate. The tools are ev"),
        (("dir=a", "tools=docs"), "no tool 'docs'"),
        (("dir=a", "tools=dashboard"), "dashboard needs wandb: tools=dashboard,wandb, or leave"),
        (("dir=a", "tools=torch_hub", "weights=false"), "torch_hub needs weights: weights=true"),
        (("dir=a", "weights=no"), "weights=no should be a valid boolean"),
        (("dir=a", "tool=all"), "tool"),
    ],
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], said: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "file").touch()
    (tmp_path / "clone").symlink_to(template)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(composing, "CONF", template / "conf")
    with pytest.raises((UserError, ConfigCompositionException), match=said):
        begin(*typed)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_refused_command_ends_with_code_1(template: Path, tmp_path: Path) -> None:
    ended = run_command("new", f"dir={tmp_path}/class", cwd=template)
    assert one_message(ended).startswith("name=class is a keyword of Python")
    assert not [*tmp_path.iterdir()]


def test_uncommitted_changes_are_refused_by_name(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composing, "CONF", template / "conf")
    changed = [template / name for name in ("conf/train.yaml", "README.md")]
    before = [file.read_bytes() for file in changed]
    try:
        for file in changed:
            file.write_text("mine")
        with pytest.raises(UserError, match=r"not committed: README.md and 1 more\. Commit them"):
            begin("dir=mine")
    finally:
        for file, content in zip(changed, before, strict=True):
            file.write_bytes(content)
    (template / "mine.txt").touch()
    try:
        with pytest.raises(UserError, match=r"not committed: mine.txt\. Commit them"):
            begin("dir=mine")
    finally:
        (template / "mine.txt").unlink()
    assert not [*tmp_path.iterdir()]


def test_an_installed_package_begins_no_project(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a git checkout of the template.*git clone"):
        check_template(tmp_path)


def test_a_commit_that_fails_leaves_nothing(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composing, "CONF", template / "conf")
    settings = {"commit.gpgsign": "true", "gpg.program": "false"}
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(settings)))
    for number, (key, value) in enumerate(settings.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{number}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{number}", value)
    with pytest.raises(UserError, match=r"git .* failed: .*gpg failed to sign"):
        begin("dir=mine", "tools=")
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_the_command_that_is_interrupted_leaves_nothing(template: Path, tmp_path: Path) -> None:
    program = start("new", f"dir={tmp_path}/mine", "tools=", cwd=template)
    wait_for(lambda: any(tmp_path.iterdir()))
    program.send_signal(signal.SIGINT)
    finish(program)
    assert program.returncode == 130
    assert not [*tmp_path.iterdir()]


# The tools of a project, and those of its own tests that are run here.
PROJECTS = {
    "none": ("", ["tests/core", "tests/run"]),
    "some": ("evaluate,report", ["tests/tools", "tests/run/test_pretrained.py"]),
    "all": ("all", ["tests/tools/predict", "tests/tools/sweep", "tests/run/test_hubconf.py"]),
}


@pytest.fixture(scope="module")
def projects(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Projects that the command wrote, each in a folder of its own."""
    folders = {}
    for which, (tools, _) in PROJECTS.items():
        folder = tmp_path_factory.mktemp(which) / "project"
        typed = [f"dir={folder}", f"name={NAME}", f"tools={tools}", f"weights={bool(tools)}"]
        ended = run_command("new", *typed, cwd=template)
        assert ended.returncode == 0, ended.stderr
        assert f"project    {folder}\n" in ended.stdout
        folders[which] = folder
    return folders


@pytest.mark.slow
def test_the_projects_import_compose_and_train(projects: dict[str, Path]) -> None:
    check(projects.values(), NAME)


@pytest.mark.slow
@pytest.mark.parametrize("which", PROJECTS)
def test_a_project_passes_make_lint(
    projects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, which: str
) -> None:
    cache = tmp_path_factory.getbasetemp() / "types"  # of all three: most types are torch's
    for command in (["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]):
        options = [f"--cache-dir={cache}"] if command == ["mypy"] else ["--no-cache"]
        call([sys.executable, "-m", *command, *options], projects[which])


@pytest.mark.slow
@pytest.mark.parametrize("which", PROJECTS)
def test_a_project_passes_its_tests(projects: dict[str, Path], which: str) -> None:
    pytest_here = [sys.executable, "-m", "pytest", "-q", "-p", "from_the_copy"]
    # In a shell a tab asks the project's console script, which is not installed here.
    pytest_here += ["--ignore=tests/run/test_completion.py"]
    call([*pytest_here, "-m", "not slow and not gpu", *PROJECTS[which][1]], projects[which])


def call(command: list[str], folder: Path) -> None:
    env = environment(folder, NAME)
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
