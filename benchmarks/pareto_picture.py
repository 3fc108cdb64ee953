"""The picture of pareto.py: accuracy against parameters."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

# Official CIFAR-10 files; parameters, test accuracy. ResNets: chenyaofo/pytorch-cifar-models;
# SimpNet: Hasanpour et al., 2018; airbench93: Jordan, 2024; DenseNet: Huang et al., 2017. "Tiniest"
# and SE-ResNet-56 are taken at second hand.
PUBLISHED = {
    "original, 100 epochs": (257_856, 0.820),
    "Tiniest": (97_530, 0.944),
    "ResNet-20": (272_474, 0.926),
    "SimpNet-slim": (300_000, 0.933),
    "airbench93, averaged over views": (570_000, 0.930),
    "DenseNet-BC-100-12": (770_000, 0.955),
    "ResNet-56": (855_770, 0.944),
    "SE-ResNet-56": (860_000, 0.959),
}
CIFAR10 = {
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
}


def picture(summaries: Sequence[dict[str, Any]], data: str, classes: Sequence[str]) -> Figure:
    """Accuracy against parameters: measured here, and published for the same classes."""
    published = PUBLISHED if set(classes) == CIFAR10 else {}
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    measured = {s["experiment"]: (s["params"], s["test/acc"]) for s in summaries}
    for points, marker, color, label in (
        (published, "o", "#57606a", "published, official files"),
        (measured, "D", "#0969da", f"measured here, {data}"),
    ):
        if not points:
            continue
        axes.plot(*zip(*points.values(), strict=True), marker, color=color, label=label)
        for name, (parameters, accuracy) in points.items():
            # A name stands on the right of its point, where no other point is close to it there.
            crowded = any(
                1 < x / parameters < 1.2 and abs(y - accuracy) < 0.005 for x, y in points.values()
            )
            axes.annotate(
                name, (parameters, accuracy), (-6 if crowded else 6, -3), color=color, fontsize=8,
                textcoords="offset points", ha="right" if crowded else "left",
            )  # fmt: skip
    axes.set_xscale("log")
    parameters = [x for x, _ in (*published.values(), *measured.values())]
    # Room for a name on the right of the last point.
    axes.set_xlim(0.8 * min(parameters), 2 * max(parameters))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e6:g} M"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("parameters")
    axes.set_ylabel("test accuracy")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    return figure
