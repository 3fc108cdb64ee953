"""What the page of a run shows of its evaluation.json."""

from collections.abc import Mapping
from typing import Any

from cifar_lightning.reporting.tables import Cell, Table, count, facts, optional, percent, plain


def figures(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """The figures of an evaluation.json that are one number each."""
    names = {
        "images": ("test images", count),
        "test/acc": ("accuracy", percent),
        "test/acc_flip": ("accuracy, mean with the mirror image", percent),
        "test/top2": ("right within the first two", percent),
        "test/loss": ("loss", plain),
        "test/ece": ("expected calibration error", percent),
        "images_per_s": ("images a second", count),
    }
    return facts(evaluation, names)


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
            others = {n: other for other, n in enumerate(square[number]) if other != number}
            most = max(others, default=0)
            share = most / max(sum(square[number]), 1)
            cells += (
                [Cell(names[others[most]]), Cell(percent(share), share)] if most else [Cell("")] * 2
            )
        rows.append(cells)
    headings = ["class", "accuracy", *(["most often taken for", "of its images"] if square else [])]
    return Table(headings, rows, numeric={1, 3})


def robustness(evaluation: Mapping[str, Any]) -> Table | None:
    """Its accuracies under corruptions, weakest first."""
    curves = evaluation.get("robustness")
    if not isinstance(curves, dict):
        return None
    found = {n: c["acc"] for n, c in curves.items() if isinstance(c, dict) and "acc" in c}
    if not found:
        return None
    strengths = max(len(accuracies) for accuracies in found.values())
    rows = [
        [Cell(name, name), *(optional(accuracy, percent) for accuracy in accuracies)]
        for name, accuracies in found.items()
    ]
    headings = ["corruption, by strength", *(str(number + 1) for number in range(strengths))]
    return Table(headings, rows, numeric=set(range(1, strengths + 1)))
