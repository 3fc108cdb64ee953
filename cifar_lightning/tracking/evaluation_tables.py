"""Tables of an evaluation.json, for the terminal and for reports."""

from collections.abc import Mapping
from typing import Any

from cifar_lightning.tracking.tables import Cell, Table, number_cell, percent


def scores(evaluation: Mapping[str, Any]) -> Table:
    """Scores on all test images, without and with test-time augmentation."""
    headings = ["test images", "accuracy", "top 2", "loss", "calibration error"]
    columns = (("acc", percent), ("top2", percent), ("loss", "{:.4f}".format), ("ece", percent))
    rows = [
        [
            Cell(name),
            *(number_cell(evaluation[f"test/{k}{suffix}"], formatter) for k, formatter in columns),
        ]
        for name, suffix in (("as they are", ""), ("averaged with mirror image", "_flip"))
    ]
    return Table(headings, rows)


def by_class(evaluation: Mapping[str, Any]) -> Table:
    """Accuracy by class, and the class that each is most often mistaken for."""
    accuracies = evaluation["test/acc_by_class"]
    rows = []
    for (name, accuracy), counts in zip(
        accuracies.items(), evaluation["confusion_matrix"], strict=True
    ):
        mistakes = {o: n for o, n in zip(accuracies, counts, strict=True) if n and o != name}
        cells = [Cell(""), Cell("")]
        if mistakes:
            other = max(mistakes, key=lambda o: mistakes[o])
            share = mistakes[other] / sum(counts)
            cells = [Cell(other), Cell(percent(share), share)]
        rows.append([Cell(name), number_cell(accuracy, percent), *cells])
    return Table(["class", "accuracy", "most often taken for", "share of its images"], rows)


def robustness(evaluation: Mapping[str, Any]) -> Table:
    """Accuracy under each corruption, weakest first."""
    curves = {n: c["acc"] for n, c in evaluation["robustness"].items() if n != "mean_acc"}
    rows = [
        [Cell(name), *(Cell(percent(acc), acc) for acc in accuracies)]
        for name, accuracies in curves.items()
    ]
    return Table(["corruption, by strength", *"12345"], rows)
