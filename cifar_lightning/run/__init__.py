"""Builds a run from its configuration, and rebuilds one from a checkpoint.

This is the only package that instantiates configurations; everything else takes plain arguments.
"""

from cifar_lightning.run.build import (
    build_classifier,
    build_data,
    build_data_or_rehearse,
    build_module,
    build_network,
    instantiate_part,
    make_network,
)
from cifar_lightning.run.check import check_config
from cifar_lightning.run.from_checkpoint import add_distillation, rebuild, rebuild_data
from cifar_lightning.run.trainer import (
    build_callbacks,
    build_trainer,
    open_loggers,
    will_validate,
)

__all__ = [
    "add_distillation",
    "build_callbacks",
    "build_classifier",
    "build_data",
    "build_data_or_rehearse",
    "build_module",
    "build_network",
    "build_trainer",
    "check_config",
    "instantiate_part",
    "make_network",
    "open_loggers",
    "rebuild",
    "rebuild_data",
    "will_validate",
]
