"""What the page of a run shows of its evaluation.json."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from cifar_lightning.tracking.tables import Cell, Table, count, facts, numbers, optional, percent

SCORES: dict[str, tuple[str, Any]] = {
    "acc": ("accuracy", percent),
    "top2": ("top 2", percent),
    "loss": ("loss", "{:.4f}".format),
    "ece": ("calibration error", percent),
}
FACTS: dict[str, tuple[str, Any]] = {
    "images": ("test images", count),
    "images_per_s": ("images a second", count),
    "data": ("data", str),
    "precision": ("precision", str),
    "device": ("device", str),
}


def scores(evaluation: Mapping[str, Any]) -> Table | None:
    """The figures of an evaluation.json of all images together, with and without augmentation."""
    rows = []
    for name, suffix in (("as they are", ""), ("mean with the mirror image", "_flip")):
        figures = [(evaluation.get(f"test/{k}{suffix}"), write) for k, (_, write) in SCORES.items()]
        cells = [optional(*figure) for figure in figures]
        if any(cell.text for cell in cells):
            rows.append([Cell(name, name), *cells])
    headings = ["test images", *(heading for heading, _ in SCORES.values())]
    return Table(headings, rows, numeric={1, 2, 3, 4}) if rows else None


def circumstances(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """What an evaluation.json says of how it was measured."""
    found = facts(evaluation, FACTS)
    robustness = evaluation.get("robustness")
    if isinstance(robustness, dict):
        found |= facts(robustness, {"mean_acc": ("accuracy, mean of all corruptions", percent)})
    checkpoint = evaluation.get("checkpoint")
    if isinstance(checkpoint, str) and (name := PurePath(checkpoint).name) != "best.ckpt":
        found["checkpoint"] = name
    return found


def doubt(evaluation: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """Why an evaluation's figures are not those of the run's own test; empty where they are."""
    ours, theirs = evaluation.get("data"), metrics.get("data")
    if None not in (ours, theirs) and ours != theirs:
        return f"Measured on data={ours}; the run was trained and tested on data={theirs}."
    same = [key for key in ("data", "device", "precision", "torch") if key in metrics]
    accuracies = numbers([evaluation.get("test/acc"), metrics.get("test/acc")])
    if (
        len(accuracies) == 2
        and PurePath(str(evaluation.get("checkpoint"))).name == "best.ckpt"
        and accuracies[0] != accuracies[1]
        and all(evaluation.get(key) == metrics[key] for key in same)
    ):
        return (
            f"The run's own test has {percent(accuracies[1])}: this evaluation was of another "
            "checkpoint, in other batches, or of other images."
        )
    return ""


def by_class(evaluation: Mapping[str, Any]) -> Table | None:
    """Its classes: the accuracy of each, and what it is most often taken for."""
    accuracies = evaluation.get("test/acc_by_class")
    if not isinstance(accuracies, dict) or not accuracies:
        return None
    names, matrix = list(accuracies), evaluation.get("confusion_matrix")
    square = isinstance(matrix, list) and [
        [n for n in row if isinstance(n, int)] if isinstance(row, list) else [] for row in matrix
    ]
    if not square or [len(row) for row in square] != [len(names)] * len(names):
        square = []
    rows = []
    for number, (name, accuracy) in enumerate(accuracies.items()):
        cells = [Cell(name, name), optional(accuracy, percent)]
        if square:
            row = square[number]
            other = max((n for n in range(len(row)) if n != number), key=row.__getitem__, default=0)
            share = row[other] / max(sum(row), 1)
            mistaken = other != number and share
            cells += (
                [Cell(names[other]), Cell(percent(share), share)] if mistaken else [Cell("")] * 2
            )
        rows.append(cells)
    headings = ["class", "accuracy", *(["most often taken for", "of its images"] if square else [])]
    return Table(headings, rows, numeric={1, 3})


def robustness(evaluation: Mapping[str, Any]) -> Table | None:
    """Its accuracies under corruptions, weakest first."""
    curves = evaluation.get("robustness")
    if not isinstance(curves, dict):
        return None
    accuracies = {n: c.get("acc") for n, c in curves.items() if isinstance(c, dict)}
    found = {name: values for name, values in accuracies.items() if isinstance(values, list)}
    if not found:
        return None
    strengths = max(len(values) for values in found.values())
    rows = [
        [Cell(name, name), *(optional(accuracy, percent) for accuracy in values)]
        for name, values in found.items()
    ]
    headings = ["corruption, by strength", *(str(number + 1) for number in range(strengths))]
    return Table(headings, rows, numeric=set(range(1, strengths + 1)))
