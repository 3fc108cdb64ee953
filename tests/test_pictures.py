import numpy as np
from matplotlib.figure import Figure

from cifar_lightning.pictures import learning_curves

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


def test_both_parts_are_drawn_with_their_points() -> None:
    figure = learning_curves(CURVES, target=0.8, title="a title")
    accuracy, loss = lines(figure)
    assert accuracy == {
        "training (augmented)": CURVES["train/acc"],
        "validation": CURVES["val/acc"],
    }
    assert loss["validation"] == CURVES["val/loss"]
    assert figure.get_suptitle() == "a title"


def test_the_target_is_a_line_only_where_there_is_one() -> None:
    with_target = learning_curves(CURVES, target=0.8, title="").axes[0]
    assert [t.get_text() for t in with_target.texts] == ["target on validation 80.0%"]
    assert list(with_target.lines[-1].get_ydata()) == [0.8, 0.8]  # type: ignore[arg-type]
    assert not learning_curves(CURVES, target=None, title="").axes[0].texts


def test_missing_curves_are_left_out() -> None:
    accuracy, _ = lines(learning_curves({"train/acc": CURVES["train/acc"]}, None, ""))
    assert list(accuracy) == ["training (augmented)"]
