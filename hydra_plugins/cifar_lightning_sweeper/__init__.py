"""Makes the sweeper of `cifar_lightning.sweep` known to Hydra, which looks for plugins here."""

from cifar_lightning.sweep.sweeper import Sweeper


class GridSweeper(Sweeper):
    """The sweeper that conf/hydra/sweeper/grid.yaml names; its arguments are the keys there."""
