"""The dashboard: every panel is sent to W&B. test_wandb_offline.py tests that none is empty."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from programs import run_command
from wandb_files import without_service
from wandb_server import KEY, wandb_server

from cifar_lightning.dashboard import panels


def dashboard(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    nobody = {"HOME": str(Path.cwd()), "NETRC": "no-netrc"}
    return run_command("dashboard", *arguments, env=without_service() | nobody | variables)


@pytest.fixture(scope="module")
def specification() -> dict[str, Any]:
    ended = dashboard("dry_run=true", "project=mine")
    assert ended.returncode == 0, ended.stderr
    content: dict[str, Any] = json.loads(ended.stdout)  # and nothing else
    return content


def names_in(content: Any, key: str = "") -> set[str]:
    """What the specification that W&B is sent shows, wherever it stands."""
    if isinstance(content, dict):
        found = set().union(*(names_in(value, name) for name, value in content.items()), set())
        if content.get("nodeType") == "const" and key == "key" and content["type"] == "string":
            found.add(str(content["val"]))
        return found
    if isinstance(content, list):
        return set().union(*(names_in(item, key) for item in content), set())
    if key in ("metrics", "xAxis", "yAxis", "accessor", "mediaKeys", "targetKey"):
        return {str(content)}
    return set()


@pytest.mark.parametrize("where", ["workspace", "report"])
def test_the_list_of_panels_has_every_name_of_the_specification(
    specification: dict[str, Any], where: str
) -> None:
    shown = {
        name.removeprefix("summary:")
        .removeprefix("summary_metrics.")
        .replace("config:", "config.")
        .removesuffix(".value")
        for name in names_in(specification[where])
    } - {"_step"}  # of sections, which the panels do not ask
    listed = {name for panel in specification["panels"] for name in panel["shows"]}
    assert shown == listed


def panels_of(specification: dict[str, Any], where: str) -> list[str]:
    """The kinds of the panels in what W&B would be sent."""
    if where == "workspace":
        bank = specification["workspace"]["section"]["panelBankConfig"]
        return [panel["viewType"] for section in bank["sections"] for panel in section["panels"]]
    grids = [b for b in specification["report"]["blocks"] if b["type"] == "panel-grid"]
    sections = [grid["metadata"]["panelBankSectionConfig"] for grid in grids]
    return [panel["viewType"] for section in sections for panel in section["panels"]]


def test_workspace_and_report_have_the_same_panels(specification: dict[str, Any]) -> None:
    kinds = panels_of(specification, "workspace")
    assert kinds == panels_of(specification, "report")
    assert len(kinds) == len(specification["panels"])
    headings = [b for b in specification["report"]["blocks"] if b["type"] == "heading"]
    assert len(headings) == len(panels.SECTIONS)


def test_the_dashboard_is_saved_and_its_addresses_are_printed() -> None:
    with wandb_server() as server:
        ended = dashboard(f"url={server.url}", "project=mine", WANDB_API_KEY=KEY)
    assert ended.returncode == 0, ended.stderr
    workspace, report = server.variables("UpsertView2") + server.variables("upsertView")
    assert workspace["entityName"] == report["entityName"] == "somebody"
    assert workspace["projectName"] == report["projectName"] == "mine"
    for spec in (workspace["spec"], report["spec"]):
        assert "Parallel Coordinates Plot" in spec
    lines = dict(line.split() for line in ended.stdout.splitlines())
    assert lines["workspace"].startswith(f"{server.url}/somebody/mine?nw=")
    assert lines["report"].startswith(f"{server.url}/somebody/mine/reports/")
    assert KEY not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        ([], "", "Not logged in to W&B: type wandb login"),
        pytest.param(
            ["url=http://127.0.0.1:9"],
            KEY,
            "W&B (http://127.0.0.1:9) did not save the dashboard: ",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], key: str, message: str) -> None:
    ended = dashboard(*arguments, **({"WANDB_API_KEY": key} if key else {}))
    assert ended.returncode == 1
    assert ended.stderr.count("Error: ") == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not ended.stdout.strip()
