"""Which of a training's processes this one is: one of torchrun's, of srun's, or of Lightning's."""

import os
from typing import NamedTuple


class Launch(NamedTuple):
    """What another program says of the processes that it started.

    Attributes:
        by: its name.
        rank: of this process among all.
        total: processes on all machines.
        per_node: processes on each machine.
    """

    by: str
    rank: int
    total: int
    per_node: int


def launch() -> Launch | None:
    """What torchrun or srun says, told apart as Lightning does; None if neither started this."""
    variables = os.environ
    if "TORCHELASTIC_RUN_ID" in variables:
        counts = (int(variables[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return Launch("torchrun", *counts)
    # In a shell on an allocated machine there are SLURM's variables too, and no srun.
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
    """Whether this process is the one that writes files and speaks."""
    started = launch()
    # Lightning starts the other processes of a machine itself, and numbers them.
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 if started is None else started.rank == 0
