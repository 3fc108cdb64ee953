"""Learning curves of one run and of many."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cifar_lightning.tracking.plots.common import (
    BLUE,
    GREY,
    PALETTE,
    RED,
    add_grid,
    label_in_percent,
    new_figure,
)

DASHES: tuple[tuple[int, ...], ...] = ((), (6, 3), (2, 2))

ROOM = 0.06  # smallest height of a plot of accuracy

Points = Sequence[tuple[float, float]]


def learning_curves(curves: Mapping[str, Points], target: float | None, title: str) -> Figure:
    """Accuracy and loss against epochs, side by side.

    Args:
        curves: points (epoch, value) of `train/acc`, `val/acc`, `train/loss`, `val/loss`; a curve
            that is missing or empty is left out.
        target: validation accuracy from 0 to 1 at which training stops, drawn as a line; None for
            no line.
        title: one line.
    """
    figure = new_figure(10, 4, title)
    accuracy, loss = figure.subplots(1, 2)
    _draw(accuracy, curves, "acc")
    _draw(loss, curves, "loss")
    if target is not None:
        _target_line(accuracy, target, f"target on validation {target:.1%}")
    if any(curves.values()):
        accuracy.legend(loc="lower right", frameon=False)
    _leave_room(accuracy, "acc")
    _leave_room(loss, "loss")
    return figure


def learning_curve(
    curves: Mapping[str, Points],
    quantity: str,
    target: tuple[float, str] | None = None,
    reached: tuple[tuple[float, float], str] | None = None,
) -> Figure:
    """Accuracy or loss against epochs, in a small figure.

    Args:
        curves: as for `learning_curves`.
        quantity: `acc` or `loss`.
        target: an accuracy from 0 to 1, drawn as a line, and its label.
        reached: the point (epoch, value) at which the target was reached, and its label.
    """
    figure = Figure(figsize=(5.2, 3.7), layout="constrained")
    axes = figure.subplots()
    _draw(axes, curves, quantity)
    if target is not None:
        _target_line(axes, *target)
    _leave_room(axes, quantity)
    if reached is not None:
        (epoch, value), text = reached
        axes.plot([epoch], [value], marker="o", markersize=11, color=RED, fillstyle="none")
        # A line down to the x axis, and the label there, because curves are seldom there.
        (left, right), (bottom, _) = axes.get_xlim(), axes.get_ylim()
        axes.vlines(epoch, bottom, value, color=RED, linestyle=":", linewidth=1)
        axes.set_ylim(bottom=bottom)
        is_right = epoch >= (left + right) / 2
        axes.annotate(
            text,
            (epoch, bottom),
            xytext=((-5 if is_right else 5), 5),
            textcoords="offset points",
            ha="right" if is_right else "left",
            color=RED,
            fontsize=9,
        )
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def overlaid_curves(
    curves: Sequence[tuple[str, Points]],
    labels: tuple[str, str],
    target: tuple[float, str] | None = None,
    thick: Collection[int] = (),
    legend: bool = False,
) -> Figure:
    """The accuracy of several runs in one figure, with a colour for each group of runs.

    Args:
        curves: for each run, the name of its group and its points (x, accuracy). Groups are
            numbered for `group_style` in order of their first run.
        labels: of the axes.
        target: as for `learning_curve`.
        thick: indices of the runs whose curves are drawn thicker.
        legend: whether to draw a legend of the groups, to the right.

    Returns:
        A figure in which the line of run i has the gid `run-i`.
    """
    groups = list(dict.fromkeys(group for group, _ in curves))
    figure = Figure(figsize=(9, 4.5) if legend else (5.2, 3.7), dpi=120, layout="constrained")
    axes = figure.subplots()
    named = set()
    for number, (group, points) in enumerate(curves):
        if not points:
            continue
        x, y = zip(*points, strict=True)
        style = group_style(groups.index(group))
        axes.plot(
            x,
            y,
            color=style["colour"],
            dashes=style["dashes"] or (None, None),
            linewidth=2.8 if number in thick else 1.3,
            zorder=3 if number in thick else 2,
            marker="o",
            markersize=2.5,
            label=f"_{group}" if group in named else group,
            gid=f"run-{number}",
        )
        named.add(group)
    _frame(axes, *labels)
    if target is not None:
        _target_line(axes, *target)
    label_in_percent(axes.yaxis)
    _leave_room(axes, "acc")
    if legend and named:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def group_style(number: int) -> dict[str, Any]:
    """The `colour` and `dashes` (lengths of line and gap, in points) of a group's curves."""
    return {
        "colour": PALETTE[number % len(PALETTE)],
        "dashes": DASHES[number // len(PALETTE) % len(DASHES)],
    }


def _draw(axes: Axes, curves: Mapping[str, Points], quantity: str) -> None:
    for split, colour, name in (
        ("train", GREY, "training (augmented)"),
        ("val", BLUE, "validation"),
    ):
        points = curves.get(f"{split}/{quantity}")
        if points:
            epochs, values = zip(*points, strict=True)
            axes.plot(epochs, values, color=colour, marker="o", markersize=4, label=name)
    _frame(axes, "epochs", "accuracy" if quantity == "acc" else quantity)
    if quantity == "acc":
        label_in_percent(axes.yaxis)


def _frame(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=xlabel == "epochs"))
    add_grid(axes)


def _leave_room(axes: Axes, quantity: str) -> None:
    """Widen the limits around a single point, so that ticks are whole epochs and percents."""
    left, right = axes.get_xlim()
    if right - left < 1:
        axes.set_xlim(math.floor(left), math.ceil(right))
    bottom, top = axes.get_ylim()
    if quantity == "acc" and top - bottom < ROOM:
        bottom = min(max((bottom + top - ROOM) / 2, 0), 1 - ROOM)
        axes.set_ylim(bottom, bottom + ROOM)


def _target_line(axes: Axes, target: float, label: str) -> None:
    axes.axhline(target, color=RED, linestyle="--", linewidth=1)
    axes.annotate(
        label,
        (0.01, target),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color=RED,
        fontsize=9,
    )
