"""Figures from arrays, nothing else."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

TRAIN, VAL = "#8a8f98", "#1f6feb"


def learning_curves(
    curves: Mapping[str, Sequence[tuple[float, float]]], target: float | None, title: str
) -> Figure:
    """Accuracy and loss against epochs, side by side.

    Args:
        curves: points (epoch, value) of `train/acc`, `val/acc`, `train/loss`, `val/loss`; a curve
            that is missing or empty is left out.
        target: validation accuracy from 0 to 1 at which training stops, drawn as a line.
        title: one line.
    """
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    accuracy, loss = figure.subplots(1, 2)
    for axes, quantity, label in ((accuracy, "acc", "accuracy"), (loss, "loss", "loss")):
        for part, colour, name in (
            ("train", TRAIN, "training (augmented)"),
            ("val", VAL, "validation"),
        ):
            points = curves.get(f"{part}/{quantity}")
            if points:
                epochs, values = zip(*points, strict=True)
                axes.plot(epochs, values, color=colour, marker="o", markersize=4, label=name)
        axes.set_xlabel("epochs")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if target is not None:
        accuracy.axhline(target, color="#d1242f", linestyle="--", linewidth=1)
        accuracy.annotate(
            f"target on validation {target:.1%}",
            (0.01, target),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            color="#d1242f",
            fontsize=9,
        )
    accuracy.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if any(curves.values()):
        accuracy.legend(loc="lower right", frameon=False)
    return figure
