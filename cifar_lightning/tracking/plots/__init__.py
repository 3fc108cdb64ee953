"""Functions that plot arrays as matplotlib figures; `save_png` writes a figure to a file."""

from cifar_lightning.tracking.plots.common import save_png
from cifar_lightning.tracking.plots.curves import learning_curves
from cifar_lightning.tracking.plots.evaluation import (
    captioned_grid,
    class_accuracies,
    confusion_matrix,
    reliability,
    robustness,
)
from cifar_lightning.tracking.plots.layers import activation_maps, feature_maps, filters

__all__ = [
    "activation_maps",
    "captioned_grid",
    "class_accuracies",
    "confusion_matrix",
    "feature_maps",
    "filters",
    "learning_curves",
    "reliability",
    "robustness",
    "save_png",
]
