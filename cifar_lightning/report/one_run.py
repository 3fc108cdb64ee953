"""The content of a report on one run."""

import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import quote

from cifar_lightning.report.charts import inline_svg, png_width, target_line
from cifar_lightning.report.commands import train_command
from cifar_lightning.tracking import evaluation_tables
from cifar_lightning.tracking.conclusion import conclusion
from cifar_lightning.tracking.plots.curves import learning_curve
from cifar_lightning.tracking.run_folder import Run, RunFolder, read_config_dir
from cifar_lightning.tracking.tables import (
    Table,
    count,
    data_size,
    facts,
    number_cell,
    percent,
    plain,
    seconds,
)

# Of the pictures: title, and how to read it.
CAPTIONS = {
    "confusion_matrix": (
        "Confusion matrix",
        "A row has the test images of one class, a column those of one prediction: numbers off the "
        "diagonal are mistakes.",
    ),
    "reliability": (
        "Accuracy against confidence",
        "Below the dashed line the network is right less often than it is confident, above it more "
        "often.",
    ),
    "mistakes": (
        "The most confident mistakes",
        "Test images with a wrong prediction: the label is above, the prediction with its "
        "confidence below.",
    ),
    "robustness": (
        "Accuracy under corruptions",
        "Each line is a corruption of the test images, from none at the left to the strongest.",
    ),
    "filters": (
        "Filters of the first layer",
        "In a square, grey is a weight of 0, lighter is positive and darker negative, and a colour "
        "says that the weights of red, green and blue differ; with init=whitened they began as "
        "pairs, a filter and its negative.",
    ),
    "feature_maps": (
        "One image through the network",
        "A row has a layer's outputs for this image, of at most ten channels with the most "
        "contrast; each is coloured from its smallest value, dark purple, to its largest, yellow.",
    ),
    "activation_maps": (
        "Where each layer saw the predicted class",
        "Bright is where the layer's output raised the prediction's score, each map on its own "
        "scale; 1x1 convolutions, which look at one place only, are left out, and at most ten "
        "classes are shown.",
    ),
    "learning_curves": (
        "Learning curves",
        "Training accuracy is of augmented images, so that of validation may be higher.",
    ),
    "class_accuracies": (
        "Accuracy by class",
        "The share of each class's test images that were predicted as this class.",
    ),
}
# Metrics on the page: label, and function that formats the value.
CARDS: dict[str, tuple[str, Any]] = {
    "test/acc": ("test accuracy", percent),
    "val/acc": ("validation accuracy", percent),
    "seconds_to_target": ("training to the target", seconds),
    "train_seconds": ("training, without validation", seconds),
    "epochs": ("epochs", plain),
    "images_per_s": ("images/s", count),
    "train_tflop": ("TFLOP of training", plain),
    "params": ("parameters", count),
}
ENVIRONMENT: dict[str, tuple[str, Any]] = {
    "device": ("device", str),
    "precision": ("precision", str),
    "torch": ("PyTorch", str),
    "world_size": ("processes", count),
}
MEASURED: dict[str, tuple[str, Any]] = {
    "images": ("test images", count),
    "images_per_s": ("images/s", count),
    "data": ("data", str),
    "precision": ("precision", str),
    "device": ("device", str),
}
OF_THE_TEST = ("confusion_matrix", "class_accuracies")  # plots of the run's own test
WIDE = 1000  # pixels; a wider picture gets the full width of the page


def content_of(run: Run) -> dict[str, Any]:
    """The variables of the templates `run.*`."""
    metrics, folder = run.metrics, RunFolder(run.folder)
    config_dir = read_config_dir(run.folder)
    evaluation, figures = _pictures(run, "evaluation"), _pictures(run, "figures")
    seen = [picture["name"] for picture in evaluation]
    subject = (
        f"{metrics['model']} on {metrics['data']}" if {"model", "data"} <= set(metrics) else ""
    )
    return {
        "title": f"{subject}, seed {run.seed}" if subject else run.name,
        "run": run,
        "sentences": _sentences(run),
        "generated": metrics.get("data") == "shapes",
        "started": folder.started,
        "cards": _cards(metrics).items(),
        "charts": _charts(run),
        "epochs": _epochs(run),
        **_evaluation(run),
        "evaluation_pictures": evaluation,
        "test_pictures": [p for p in figures if p["name"] in OF_THE_TEST and p["name"] not in seen],
        "figures": [picture for picture in figures if picture["name"] not in OF_THE_TEST],
        "evaluate_command": shlex.join(
            ["python", "-m", "cifar_lightning.evaluate", f"checkpoint={folder.best}"]
        ),
        "choices": run.choices,
        "environment": facts(metrics, ENVIRONMENT),
        "commands": [train_command(typed, config_dir) for typed in (run.overrides, *run.resumed)]
        if run.recorded
        else [],
        "files": _files(run.folder),
    }


def _cards(metrics: Mapping[str, Any]) -> dict[str, str]:
    """The metrics on the page; the time to the target stands for that of all training if equal."""
    seconds_of = (metrics.get("seconds_to_target"), metrics.get("train_seconds"))
    shown = {k: v for k, v in CARDS.items() if k != "train_seconds" or len({*seconds_of}) > 1}
    return facts(metrics, shown)


def _evaluation(run: Run) -> dict[str, Any]:
    """The tables of a run's evaluation, how it was measured, and a warning if the data differs."""
    if run.evaluation:
        try:
            return _read_evaluation(run.evaluation, run.metrics)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            run.problems.append(f"evaluation.json cannot be read: it is incomplete ({error!r})")
    return dict.fromkeys(("scores", "by_class", "robustness", "circumstances", "doubt"))


def _read_evaluation(evaluation: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    circumstances = facts(evaluation, MEASURED)
    robustness = evaluation["robustness"]
    if robustness is not None:
        circumstances["mean accuracy, all corruptions"] = percent(robustness["mean_acc"])
    checkpoint = PurePath(evaluation["checkpoint"]).name
    if checkpoint != "best.ckpt":
        circumstances["checkpoint"] = checkpoint
    measured, tested = evaluation["data"], metrics.get("data")
    doubt = f"Measured on data={measured}; the run was trained and tested on data={tested}."
    return {
        "scores": evaluation_tables.scores(evaluation),
        "by_class": evaluation_tables.by_class(evaluation),
        "robustness": None if robustness is None else evaluation_tables.robustness(evaluation),
        "circumstances": circumstances,
        "doubt": doubt if tested not in (None, measured) else "",
    }


def _sentences(run: Run) -> list[str]:
    if run.status not in ("failed", "not finished"):
        return conclusion(run.metrics, run.target)
    validated = run.curve("val/acc") or run.curve("train/acc")
    progress = f" Its curves end at epoch {validated[-1][0]:g}." if validated else ""
    first = "It is not finished: there is no metrics.json."
    if run.metrics:
        first = "It was resumed and is not finished: its metrics.json is from before the resume."
    if run.status == "failed":
        first = "It failed."
    return [first + progress, f"{run.reason[0].upper()}{run.reason[1:]}"]


def _charts(run: Run) -> list[Any]:
    names = ("train/acc", "train/loss", "val/acc", "val/loss")
    curves = {name: run.curve(name) for name in names}
    charts = []
    if curves["train/acc"] or curves["val/acc"]:
        figure = learning_curve(curves, "acc", target_line(run), _reached(run))
        charts.append(inline_svg(figure, "acc", "Accuracy against epochs"))
    if curves["train/loss"] or curves["val/loss"]:
        charts.append(inline_svg(learning_curve(curves, "loss"), "loss", "Loss against epochs"))
    return charts


def _reached(run: Run) -> tuple[tuple[float, float], str] | None:
    """The point of the curve at which the target was reached, and its label."""
    epoch, points = run.metrics.get("epochs_to_target"), run.curve("val/acc")
    if epoch is None or not points:
        return None
    point = min(points, key=lambda p: abs(p[0] - epoch))
    return point, f"reached: epoch {plain(epoch)}, {run.metrics['seconds_to_target']:,.0f} s"


def _epochs(run: Run) -> Table:
    columns = (
        ("epoch", "epoch", plain),
        ("learning rate", "lr", plain),
        ("training loss", "train/loss", plain),
        ("training accuracy", "train/acc", percent),
        ("validation loss", "val/loss", plain),
        ("validation accuracy", "val/acc", percent),
        ("images/s", "throughput/images_per_s", count),
        ("seconds so far", "throughput/train_seconds", seconds),
    )
    rows = [row for row in run.rows if "train/loss" in row or "val/loss" in row]
    shown = [column for column in columns if any(column[1] in row for row in rows)]
    cells = [[number_cell(row.get(key), formatter) for _, key, formatter in shown] for row in rows]
    return Table([name for name, _, _ in shown], cells)


def _pictures(run: Run, below: str) -> list[dict[str, Any]]:
    """The PNG files in a folder of the run, in the order of `CAPTIONS`, then all others."""
    known = list(CAPTIONS)
    pictures = sorted(p for p in (run.folder / below).glob("*.png") if p.stat().st_size)
    pictures.sort(key=lambda p: known.index(p.stem) if p.stem in known else len(known))
    return [
        {
            "path": picture,
            "wide": png_width(picture) > WIDE,
            "link": quote(str(picture.relative_to(run.folder))),
            "name": picture.stem,
            "title": title,
            "reading": reading,
        }
        for picture in pictures
        for title, reading in [CAPTIONS.get(picture.stem, (_title(picture), ""))]
    ]


def _title(picture: Path) -> str:
    return picture.stem.replace("_", " ").capitalize()


def _files(folder: Path) -> list[tuple[str, str]]:
    names = ("metrics.json", "metrics.csv", "train.log", "config.yaml")
    found = [folder / name for name in names] + sorted((folder / "checkpoints").glob("*.ckpt"))
    return [(str(f.relative_to(folder)), data_size(f.stat().st_size)) for f in found if f.is_file()]
