"""Hands the sweeper of `cifar_lightning.sweep` to Hydra, which looks for plugins here alone."""

from cifar_lightning.sweep.sweeper import Sweeper


class GridSweeper(Sweeper):
    """As conf/hydra/sweeper/grid.yaml names it; its arguments are the keys there."""
