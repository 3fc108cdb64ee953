"""The panels of the dashboard, as a workspace and as a report on W&B."""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from cifar_lightning.errors import UserError

NAME = "cifar-lightning"
WIDTH, HEIGHT = 12, 8  # of a panel in a report, in W&B's units: two side by side


class Panel(NamedTuple):
    """A panel of W&B.

    Attributes:
        kind: the class in `wandb_workspaces.reports.v2`.
        title: empty for the kinds that have none.
        shows: names of logged metrics; in plots, the first is the x axis. Names of settings begin
            with `config.`.
    """

    kind: str
    title: str
    shows: tuple[str, ...]


# Questions, and the panels that answer them. By default, a run logs all of these names.
SECTIONS = {
    "Which runs reach the target, and when?": [
        Panel(
            "LinePlot",
            "Validation accuracy, the target, and where training stops",
            ("epoch", "val/acc", "target_accuracy", "target_val_acc"),
        ),
        Panel(
            "LinePlot",
            "Validation accuracy by seconds of training, and the target",
            ("throughput/train_seconds", "val/acc", "target_accuracy"),
        ),
        Panel("BarPlot", "Seconds to the target", ("seconds_to_target",)),
        Panel("BarPlot", "Epochs to the target", ("epochs_to_target",)),
    ],
    "What does accuracy cost, in parameters and in compute?": [
        Panel("ScatterPlot", "Test accuracy by parameters", ("params", "test/acc")),
        Panel(
            "ScatterPlot",
            "Test accuracy by training compute (TFLOP)",
            ("train_tflop", "test/acc"),
        ),
        Panel("BarPlot", "Test accuracy", ("test/acc",)),
        Panel("RunComparer", "", ()),
    ],
    "Which settings matter?": [
        Panel(
            "ParallelCoordinatesPlot",
            "Settings and accuracy",
            (
                *("config.model", "config.optimizer", "config.augment", "config.optimizer/lr"),
                *("config.optimizer/weight_decay", "config.loss/label_smoothing"),
                *("config.trainer/max_epochs", "val/acc"),
            ),
        ),
        Panel("ParameterImportancePlot", "", ("val/acc",)),
    ],
    "What does a network get wrong?": [
        Panel("MediaBrowser", "Confusion matrix", ("confusion_matrix",)),
        Panel("MediaBrowser", "Accuracy by class", ("class_accuracies",)),
        Panel("WeavePanelSummaryTable", "", ("mistakes",)),
    ],
    "Does it train well?": [
        Panel("LinePlot", "Loss", ("epoch", "train/loss", "val/loss")),
        Panel("LinePlot", "Accuracy", ("epoch", "train/acc", "val/acc")),
        Panel("LinePlot", "Learning rate", ("epoch", "lr")),
        Panel("LinePlot", "Gradient norm", ("epoch", "train/grad_norm")),
        Panel("MediaBrowser", "Learning curves", ("learning_curves",)),
    ],
    "How fast is it?": [
        Panel("LinePlot", "Images per second", ("epoch", "throughput/images_per_s")),
        Panel("BarPlot", "Seconds of training", ("train_seconds",)),
    ],
    "What has it learned?": [
        Panel("MediaBrowser", "First layer", ("filters",)),
        Panel("MediaBrowser", "Feature maps", ("feature_maps",)),
        Panel("MediaBrowser", "Activation maps", ("activation_maps",)),
    ],
}


def build(panel: Panel) -> Any:
    """W&B's own object for a panel."""
    title, shows = panel.title, panel.shows
    match panel.kind:
        case "LinePlot":
            return wr.LinePlot(title=title, x=shows[0], y=list(shows[1:]))
        case "ScatterPlot":
            x, y = map(wr.SummaryMetric, shows)
            return wr.ScatterPlot(title=title, x=x, y=y)
        case "BarPlot":
            return wr.BarPlot(title=title, metrics=list(shows))
        case "ParallelCoordinatesPlot":
            columns = [wr.ParallelCoordinatesPlotColumn(_setting_or_metric(name)) for name in shows]
            return wr.ParallelCoordinatesPlot(title=title, columns=columns)
        case "ParameterImportancePlot":
            return wr.ParameterImportancePlot(with_respect_to=shows[0])
        case "MediaBrowser":
            return wr.MediaBrowser(title=title, media_keys=list(shows))
        case "WeavePanelSummaryTable":
            return wr.WeavePanelSummaryTable(table_name=shows[0])
    return wr.RunComparer(diff_only="split")


def _setting_or_metric(name: str) -> Any:
    setting = name.removeprefix("config.")
    return wr.SummaryMetric(name) if setting == name else wr.Config(setting)


def specification(project: str) -> dict[str, Any]:
    """What would be saved, as primitives, with a readable list of the panels."""
    listed = [
        {"section": question, "panel": panel.kind, "shows": list(panel.shows)}
        for question, panels in SECTIONS.items()
        for panel in panels
    ]
    workspace, report = make_workspace("", project), make_report("", project)
    return {
        "project": project,
        "panels": listed,
        "workspace": _primitives(workspace._to_model().spec),
        "report": _primitives(report._to_model().spec),
    }


def _primitives(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def save(entity: str | None, project: str) -> Iterator[tuple[str, str]]:
    """Save the workspace and then the report to W&B.

    Args:
        entity: the user or team that the project belongs to; None is the user's default.
        project: it must have a run.

    Yields:
        The name, `workspace` or `report`, and the URL, as soon as each is saved.

    Raises:
        UserError: if nobody is logged in, or W&B refuses.
    """
    try:
        wandb.setup()
        wandb.termsetup(wandb.Settings(silent=True), None)  # the caller prints instead
        if not wandb.login(prompt=False):
            raise UserError(
                "Not logged in to W&B: type wandb login, or set WANDB_API_KEY. dry_run=true shows "
                "the dashboard without a login."
            )
        owner = entity or wandb.Api().default_entity
        if owner is None:
            raise UserError("You have no default entity on W&B: type entity=USER_OR_TEAM.")
        yield "workspace", str(make_workspace(owner, project).save().url)
        yield "report", str(make_report(owner, project).save().url)
    except UserError:
        raise
    except Exception as error:  # from the network, the server or W&B
        from cifar_lightning.tracking.wandb.service import end_service  # imports Lightning

        end_service()
        where = os.environ.get("WANDB_BASE_URL", "its server")
        raise UserError(f"W&B ({where}) did not save the dashboard: {error}") from error


def make_workspace(entity: str, project: str) -> Any:
    """The workspace with a section for each of `SECTIONS`; not saved yet."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=question, panels=list(map(build, panels)), is_open=True)
            for question, panels in SECTIONS.items()
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=50),
        runset_settings=ws.RunsetSettings(
            pinned_columns=["summary:test/acc", "summary:val/acc", "summary:seconds_to_target"]
        ),
    )


def make_report(entity: str, project: str) -> Any:
    """The report, with each question as a heading above its panels; not saved yet."""
    blocks: list[Any] = [
        wr.P(
            "Test accuracy is measured once, after training, with the checkpoint that validation "
            "chose. A target is a test accuracy; training stops when validation accuracy predicts "
            "it."
        ),
        wr.TableOfContents(),
    ]
    for question, panels in SECTIONS.items():
        grid = list(map(build, panels))
        for number, panel in enumerate(grid):
            row, column = divmod(number, 2)
            panel.layout = wr.Layout(x=column * WIDTH, y=row * HEIGHT, w=WIDTH, h=HEIGHT)
        # A grid without its own set of runs shows those of the report's project.
        blocks += [wr.H2(question), wr.PanelGrid(panels=grid)]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"The runs of {project}"[:128],
        description="Written by python -m cifar_lightning.dashboard",
        width="fluid",
        blocks=blocks,
    )
