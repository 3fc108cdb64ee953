import csv
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from reference_pages import first_column

from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.evaluate import evaluate
from cifar_lightning.tracking.resume_arguments import resume_auto

ROOT = CONF.parent
FILES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
)
TEXTS = {str(file.relative_to(ROOT)): file.read_text() for file in FILES}
README = TEXTS["README.md"]
CONTRIBUTING = TEXTS["CONTRIBUTING.md"]
RELIABILITY = TEXTS["docs/explanation/reliability.md"]
# What a user may type today; changes and measurements keep the commands of their day.
PAGES = "\n".join(
    text
    for name, text in TEXTS.items()
    if (name.startswith("docs/") and name != "docs/extend.md")  # test_extend.py's
    or name in ("README.md", "CONTRIBUTING.md", "benchmarks/results/search/README.md")
)
COMMANDS = re.findall(
    # But for those with a folder of configurations that a search has left.
    r"^    (?:python|torchrun|srun) .*?-m cifar_lightning\.(\w+) (?!.*--config-dir)(.*)$",
    PAGES.replace("\\\n", " "),
    re.MULTILINE,
)
COMMANDS += re.findall(r'\bmake (train|report) ARGS="(.*?)"', PAGES)
COMMANDS += re.findall(r"`cifar-(\w+) ([^`]*)`", TEXTS["docs/how-to/coming-from.md"])


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_every_command_composes(name: str, arguments: str) -> None:
    typed = shlex.split(arguments)
    # Of a sweep its first job; how it is run, Hydra is asked elsewhere.
    overrides = [
        argument.replace("range(0,", "0,").partition(",")[0]
        for argument in resume_auto(typed)
        if not argument.startswith(("-m", "--help", "hydra", "resume_sweep="))
    ]
    config = compose(prepare_arguments(overrides), config_name=name)
    for override in overrides:
        key, _, value = override.removeprefix("+").partition("=")
        found = config.choices.get(key) or OmegaConf.select(config, key)
        assert str(found).lower() == value.lower() or value == "null", override


def test_every_promise_names_tests_that_exist() -> None:
    code = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^def (test_\w+)", code, re.MULTILINE))
    sections = re.findall(r"^## (.*)$", RELIABILITY, re.MULTILINE)
    table = RELIABILITY.partition(f"\n## {sections.pop()}\n")[2]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines() if "`test_" in row]
    assert len(rows) > 20
    assert [row[0] for row in rows if len(row) == 3] == sections
    for row in rows:  # without a section of its own it belongs to the one above
        named = re.findall(r"`(\w+)`", row[-1])
        assert named, row
        assert set(named) <= there, row


def test_every_make_target_exists() -> None:
    rules = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"(?:^ {4}|`|\$ )make ([a-z-]+)\b", PAGES, re.MULTILINE)
    assert "train" in named
    assert set(named) <= rules


def test_the_reference_has_every_command_variable_and_make_target() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {words.split()[0] for words in first_column("commands.md", "# Commands")}
    assert set(project["scripts"]) <= named
    files = [file.read_text() for file in (ROOT / "conf").rglob("*.yaml")]
    read = {name for text in files for name in re.findall(r"oc\.env:(\w+)", text)}
    assert read <= set(first_column("commands.md", "## Environment variables"))
    rules = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(first_column("commands.md", "## make")) == set(rules)


def test_shell_completion_is_installed_for_every_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (names,) = set(re.findall(r"for name in ([a-z ]+);", TEXTS["docs/how-to/shell-completion.md"]))
    assert [f"cifar-{name}" for name in names.split()] == [*project["scripts"]]


def test_the_reference_has_every_key_of_a_run_in_order(trained_run: Path) -> None:
    keys = list(json.loads((trained_run / "metrics.json").read_text()))
    documented = first_column("metrics.md", "## metrics.json")
    assert documented[: len(keys)] == keys
    with (trained_run / "metrics.csv").open(newline="") as file:
        columns = next(csv.reader(file))
    assert sorted(first_column("metrics.md", "## metrics.csv")) == columns


def test_the_reference_has_every_key_of_an_evaluation(trained_run: Path, tmp_path: Path) -> None:
    checkpoint = trained_run / "checkpoints" / "best.ckpt"
    typed = [f"checkpoint={checkpoint}", "trainer.gpus=0", "robustness=false", f"output={tmp_path}"]
    results = evaluate(compose(prepare_arguments(typed), config_name="evaluate"))
    assert sorted(first_column("metrics.md", "## evaluation.json")) == sorted(results)


def test_the_reference_has_every_file_of_a_run(trained_run: Path) -> None:
    named = [name.rpartition("/")[2] for name in first_column("run-folder.md", "## A run")]
    for file in trained_run.rglob("*"):
        assert file.is_dir() or file.name in named, file


def test_what_contributing_names_is_there() -> None:
    named = re.findall(r"`([\w./]+/[\w.]*|\w+\.(?:md|toml|py|cff))`", CONTRIBUTING)
    made = {"dist/", "runs/debug/"}
    places = (ROOT, ROOT / "tests", ROOT / "cifar_lightning")
    assert len(named) > 12
    for name in {*named} - made:
        assert any((place / name).exists() for place in places), name


def test_the_readme_is_short_and_begins_with_a_command() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert any("make train" in line for line in lines[:20])


def anchors(text: str) -> set[str]:
    """The names that code hosts give to a page's headings, for links to them."""
    headings = re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_and_picture_is_there(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if link.startswith("https://"):
            continue  # no test here needs the network
        path, _, anchor = link.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.is_file(), link
        if anchor:
            assert anchor in anchors(file.read_text()), link


def test_every_page_and_picture_of_docs_is_linked() -> None:
    linked = {
        ((ROOT / name).parent / link.partition("#")[0]).resolve()
        for name, text in TEXTS.items()
        for link in re.findall(r"\]\(([^)\s]+)\)", text)
    }
    for file in (ROOT / "docs").rglob("*.*"):
        if file.suffix not in (".py", ".pyc", ".json"):
            assert file.resolve() in linked, file
