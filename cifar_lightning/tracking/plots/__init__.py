"""Figures from arrays, nothing else; `save_png` writes them."""

from cifar_lightning.tracking.plots.curves import learning_curves
from cifar_lightning.tracking.plots.evaluation import (
    class_accuracies,
    confusion_matrix,
    reliability,
    robustness,
)
from cifar_lightning.tracking.plots.grid import captioned_grid
from cifar_lightning.tracking.plots.layers import activation_maps, feature_maps, filters
from cifar_lightning.tracking.plots.network import costs, fields
from cifar_lightning.tracking.plots.save import save_png

__all__ = [
    "activation_maps",
    "captioned_grid",
    "class_accuracies",
    "confusion_matrix",
    "costs",
    "feature_maps",
    "fields",
    "filters",
    "learning_curves",
    "reliability",
    "robustness",
    "save_png",
]
