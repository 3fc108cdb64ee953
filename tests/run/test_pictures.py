import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from cifar_lightning.tracking import plots
from cifar_lightning.tracking.plots import confusion_matrix, learning_curves, save_png
from cifar_lightning.tracking.plots.curves import group_style, learning_curve, overlaid_curves

CURVES = {
    "train/acc": [(1.0, 0.5), (2.0, 0.7)],
    "val/acc": [(1.0, 0.6), (2.0, 0.8)],
    "train/loss": [(1.0, 1.5), (2.0, 1.0)],
    "val/loss": [(1.0, 1.2), (2.0, 0.7)],
}


def lines(figure: Figure) -> list[dict[str, list[tuple[float, float]]]]:
    """Of each of a figure's axes: the points of the lines that the legend names."""
    return [
        {
            str(line.get_label()): [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]
            for line in axes.lines
            if not str(line.get_label()).startswith("_")
        }
        for axes in figure.axes
    ]


def test_both_splits_are_drawn_with_their_points_and_the_target() -> None:
    figure = learning_curves(CURVES, target=0.8, title="a title")
    accuracy, loss = lines(figure)
    assert accuracy == {
        "training (augmented)": CURVES["train/acc"],
        "validation": CURVES["val/acc"],
    }
    assert loss["validation"] == CURVES["val/loss"]
    assert figure.get_suptitle() == "a title"
    assert [t.get_text() for t in figure.axes[0].texts] == ["target on validation 80.0%"]
    assert list(figure.axes[0].lines[-1].get_ydata()) == [0.8, 0.8]  # type: ignore[arg-type]


def test_missing_curves_and_targets_are_left_out() -> None:
    figure = learning_curves({"train/acc": CURVES["train/acc"]}, None, "")
    assert list(lines(figure)[0]) == ["training (augmented)"]
    assert not figure.axes[0].texts


@pytest.mark.parametrize("count", [2, 40])
def test_names_of_classes_do_not_cover_each_other(count: int) -> None:
    names = [f"class {number}" for number in range(count)]
    matrix = confusion_matrix(np.eye(count, dtype=np.int64), names, "")
    bars = plots.class_accuracies(dict.fromkeys(names, 0.5), "")
    for figure in (matrix, bars):
        figure.draw_without_rendering()
        labels = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
        middles = sorted((box.y0 + box.y1) / 2 for box in labels)
        assert max(box.height for box in labels) <= np.diff(middles).min()


def test_the_moment_the_target_was_reached_is_marked() -> None:
    (axes,) = learning_curve(CURVES, "acc", (0.75, "aim"), ((2.0, 0.8), "there")).axes
    assert [text.get_text() for text in axes.texts] == ["aim", "there"]
    (mark,) = (line for line in axes.lines if line.get_fillstyle() == "none")
    assert np.asarray(mark.get_xydata()).tolist() == [[2.0, 0.8]]
    text, (_, right) = axes.texts[1], axes.get_xlim()
    assert text.get_horizontalalignment() == "right"  # of the end of the axis there is no room
    assert right > 2.0
    (bare,) = learning_curve(CURVES, "loss").axes
    assert not bare.texts
    assert lines(bare.figure)[0]["validation"] == CURVES["val/loss"]  # type: ignore[arg-type]


def test_the_ticks_around_a_single_point_are_whole_epochs_and_percents() -> None:
    figure = learning_curve({"val/acc": [(1.0, 0.18)], "train/acc": [(1.0, 0.17)]}, "acc")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2"]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(set(labels)) == len(labels)


def test_runs_of_a_group_share_a_style_and_one_entry_of_the_legend() -> None:
    points = CURVES["val/acc"]
    runs = [("a", points), ("b", points), ("a", points), ("c", [])]
    figure = overlaid_curves(runs, ("epochs", "accuracy"), (0.75, "aim"), thick=[2], legend=True)
    (axes,) = figure.axes
    drawn = {str(line.get_gid()): line for line in axes.lines if line.get_gid()}
    assert list(drawn) == ["run-0", "run-1", "run-2"]
    first, second, third = drawn.values()
    assert first.get_color() == third.get_color() != second.get_color()
    assert third.get_linewidth() > first.get_linewidth()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_thirty_groups_can_be_told_apart() -> None:
    styles = [group_style(number) for number in range(30)]
    assert len({(style["colour"], style["dashes"]) for style in styles}) == 30


def test_names_are_written_as_they_are(tmp_path: Path) -> None:
    formula = r"$\no$ formula 猫"  # matplotlib refuses it; and its font lacks the letter
    matrix = np.eye(2, dtype=np.int64)
    with warnings.catch_warnings(action="error"):
        save_png(confusion_matrix(matrix, [formula, "b"], formula), tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as picture:
        assert picture.size[0] > 300


def test_pictures_of_an_evaluation_show_its_figures() -> None:
    matrix = np.array([[5, 1, 0], [0, 7, 2], [3, 0, 4]])
    (axes,) = plots.confusion_matrix(matrix, ["a", "b", "c"], "").axes
    cells = {tuple(map(int, t.get_position()[::-1])): int(t.get_text()) for t in axes.texts}
    assert cells == {place: n for place, n in np.ndenumerate(matrix) if n}
    shade = np.asarray(axes.images[0].get_array())
    assert (shade[0, 1], shade[1, 0]) == (pytest.approx((1 / 6) ** 0.5), 0)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "label")

    bins = [
        {"confidence": 0.2, "acc": 0.5, "images": 0.4},
        {"confidence": 0.9, "acc": 0.7, "images": 0.6},
    ]
    accuracy, images = plots.reliability(bins, 0.24, "").axes
    (curve,) = (line for line in accuracy.lines if line.get_marker() == "o")
    assert np.asarray(curve.get_xydata()).tolist() == [[0.2, 0.5], [0.9, 0.7]]
    heights = [bar.get_height() for bar in images.patches]  # type: ignore[attr-defined]
    assert heights == [0.4, 0.6]
    assert "24.00%" in accuracy.texts[1].get_text()

    (axes,) = plots.robustness({"noise": [0.7, 0.6, 0.5, 0.4, 0.3]}, 0.8, "").axes
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
