"""Finds this process among those that torchrun, srun or Lightning started for a run."""

import os
from typing import NamedTuple


class Launch(NamedTuple):
    """The processes that a launcher started.

    Attributes:
        by: the launcher's name.
        rank: of this process.
        total: number of processes on all machines.
        per_node: number of processes on each machine.
    """

    by: str
    rank: int
    total: int
    per_node: int


def launch() -> Launch | None:
    """Detect torchrun or srun, as Lightning does; None if neither started this process."""
    variables = os.environ
    if "TORCHELASTIC_RUN_ID" in variables:
        counts = (int(variables[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return Launch("torchrun", *counts)
    # A shell on an allocated machine has SLURM's variables too, though srun did not start it.
    if "SLURM_NTASKS" in variables and variables.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    ):
        total = int(variables["SLURM_NTASKS"])
        # Without --ntasks-per-node, srun spreads the tasks evenly over the nodes of its step.
        nodes = variables.get("SLURM_STEP_NUM_NODES") or variables.get("SLURM_NNODES") or 1
        per_node = int(variables.get("SLURM_NTASKS_PER_NODE") or total // int(nodes))
        return Launch("srun", int(variables.get("SLURM_PROCID", 0)), total, per_node)
    return None


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    started = launch()
    # Without a launcher, Lightning starts the other processes on a machine, and sets their rank.
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 if started is None else started.rank == 0
