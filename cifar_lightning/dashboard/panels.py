"""The board as code: what W&B shows of a project's runs, as a workspace and as a report."""

import os
from collections.abc import Iterator
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from cifar_lightning.errors import UserError

NAME = "cifar-lightning"
SETTINGS = (  # whose part in accuracy is looked at
    *("model", "optimizer", "augment", "optimizer/lr", "optimizer/weight_decay"),
    *("label_smoothing", "trainer/max_epochs"),
)
WIDTH, HEIGHT = 12, 8  # of a panel in a report, in W&B's units: two beside each other


def sections() -> list[tuple[str, list[Any]]]:
    """The questions that a board answers, and the panels that answer each.

    Every name in them is one that a training logs with conf/'s own options.
    """
    return [*_comparing_runs(), *_looking_into_runs()]


def _comparing_runs() -> list[tuple[str, list[Any]]]:
    """What runs reach, at what cost, and what makes the difference."""
    return [
        (
            "Which runs reach the target, and when?",
            [
                wr.LinePlot(
                    title="Validation accuracy, the target, and where training stops",
                    x="epoch",
                    y=["val/acc", "target_accuracy", "target_val_acc"],
                ),
                wr.LinePlot(
                    title="Validation accuracy by seconds of training, and the target",
                    x="throughput/train_seconds",
                    y=["val/acc", "target_accuracy"],
                ),
                wr.BarPlot(title="Seconds to the target", metrics=["seconds_to_target"]),
                wr.BarPlot(title="Epochs to the target", metrics=["epochs_to_target"]),
            ],
        ),
        (
            "What is accuracy worth, in parameters and in compute?",
            [
                wr.ScatterPlot(
                    title="Test accuracy by parameters",
                    x=wr.SummaryMetric("params"),
                    y=wr.SummaryMetric("test/acc"),
                ),
                wr.ScatterPlot(
                    title="Test accuracy by training compute (TFLOP)",
                    x=wr.SummaryMetric("train_tflop"),
                    y=wr.SummaryMetric("test/acc"),
                ),
                wr.BarPlot(title="Test accuracy", metrics=["test/acc"]),
                wr.RunComparer(diff_only="split"),
            ],
        ),
        (
            "Which settings matter?",
            [
                wr.ParallelCoordinatesPlot(
                    title="Settings and accuracy",
                    columns=[
                        wr.ParallelCoordinatesPlotColumn(metric)
                        for metric in (*map(wr.Config, SETTINGS), wr.SummaryMetric("val/acc"))
                    ],
                ),
                wr.ParameterImportancePlot(with_respect_to="val/acc"),
            ],
        ),
    ]


def _looking_into_runs() -> list[tuple[str, list[Any]]]:
    """What goes on in a training, and in the network that comes of it."""
    return [
        (
            "What does a network get wrong?",
            [
                wr.MediaBrowser(title="Confusion matrix", media_keys=["confusion_matrix"]),
                wr.MediaBrowser(title="Accuracy by class", media_keys=["class_accuracies"]),
                wr.WeavePanelSummaryTable(table_name="mistakes"),
            ],
        ),
        (
            "Does it train well?",
            [
                wr.LinePlot(title="Loss", x="epoch", y=["train/loss", "val/loss"]),
                wr.LinePlot(title="Accuracy", x="epoch", y=["train/acc", "val/acc"]),
                wr.LinePlot(title="Learning rate", x="epoch", y=["lr"]),
                wr.LinePlot(title="Gradient norm", x="epoch", y=["train/grad_norm"]),
                wr.MediaBrowser(title="Learning curves", media_keys=["learning_curves"]),
            ],
        ),
        (
            "How fast is it?",
            [
                wr.LinePlot(title="Images per second", x="epoch", y=["throughput/images_per_s"]),
                wr.BarPlot(title="Seconds of training", metrics=["train_seconds"]),
            ],
        ),
        (
            "What has it learned?",
            [
                wr.MediaBrowser(title="First layer", media_keys=["filters"]),
                wr.MediaBrowser(title="Feature maps", media_keys=["feature_maps"]),
                wr.MediaBrowser(title="Activation maps", media_keys=["activation_maps"]),
            ],
        ),
    ]


def names_in(panel: Any) -> list[str]:
    """What a panel shows: metrics as they are logged, and `config.` before settings."""
    match panel:
        case wr.LinePlot():
            shown = [panel.x, *panel.y]
        case wr.ScatterPlot():
            shown = [panel.x, panel.y]
        case wr.BarPlot():
            shown = list(panel.metrics)
        case wr.ParallelCoordinatesPlot():
            shown = [column.metric for column in panel.columns]
        case wr.ParameterImportancePlot():
            shown = [panel.with_respect_to]
        case wr.MediaBrowser():
            shown = list(panel.media_keys)
        case wr.WeavePanelSummaryTable():
            shown = [panel.table_name]
        case _:
            shown = []
    return [
        f"config.{name.name}" if isinstance(name, wr.Config) else getattr(name, "name", name)
        for name in shown
    ]


def specification(project: str) -> dict[str, Any]:
    """What would be saved, as primitives, and a list of the panels that a person can read."""
    listed = [
        {"section": question, "panel": type(panel).__name__, "shows": names_in(panel)}
        for question, panels in sections()
        for panel in panels
    ]
    board, page = make_workspace("", project), make_report("", project)
    return {
        "project": project,
        "panels": listed,
        "workspace": _primitives(board._to_model().spec),
        "report": _primitives(page._to_model().spec),
    }


def _primitives(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def save(entity: str | None, project: str) -> Iterator[tuple[str, str]]:
    """Save the board and then the report to W&B.

    Args:
        entity: None is the user's default.
        project: must have a run already.

    Yields:
        Their names, `workspace` and `report`, and addresses, as soon as each is saved.

    Raises:
        UserError: if nobody is logged in, or W&B refuses.
    """
    try:
        wandb.setup()
        wandb.termsetup(wandb.Settings(silent=True), None)  # what it says, we say
        if not wandb.login(prompt=False):
            raise UserError(
                "Nobody is logged in to W&B: type wandb login, or set WANDB_API_KEY. dry_run=true "
                "shows the board without."
            )
        owner = entity or wandb.Api().default_entity
        if owner is None:
            raise UserError("W&B knows no default entity of yours: entity=USER_OR_TEAM.")
        yield "workspace", str(make_workspace(owner, project).save().url)
        yield "report", str(make_report(owner, project).save().url)
    except UserError:
        raise
    except Exception as error:  # the network's, the server's, or W&B's own
        from cifar_lightning.tracking.wandb.service import end_service  # Lightning comes along

        end_service()
        where = os.environ.get("WANDB_BASE_URL", "its server")
        raise UserError(f"W&B ({where}) has not taken the board: {error}") from error


def make_workspace(entity: str, project: str) -> Any:
    """The board: all runs of a project, in the sections' order; not saved yet."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=[
            ws.Section(name=question, panels=panels, is_open=True)
            for question, panels in sections()
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=50),
        runset_settings=ws.RunsetSettings(
            pinned_columns=["summary:test/acc", "summary:val/acc", "summary:seconds_to_target"]
        ),
    )


def make_report(entity: str, project: str) -> Any:
    """The same as a page to write on: each question, and below it its panels; not saved yet."""
    blocks: list[Any] = [
        wr.P(
            "Accuracy on the official test images, read once after training with the checkpoint "
            "that validation chose; targets are on the test images, and training stops where "
            "validation promises them."
        ),
        wr.TableOfContents(),
    ]
    for question, panels in sections():
        for number, panel in enumerate(panels):
            row, column = divmod(number, 2)
            panel.layout = wr.Layout(x=column * WIDTH, y=row * HEIGHT, w=WIDTH, h=HEIGHT)
        # Without a set of runs of its own: those of the report's project.
        blocks += [wr.H2(question), wr.PanelGrid(panels=panels)]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"The runs of {project}"[:128],
        description="Written by python -m cifar_lightning.dashboard",
        width="fluid",
        blocks=blocks,
    )
