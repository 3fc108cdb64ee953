import pytest

from cifar_lightning.system import processes
from cifar_lightning.system.processes import Launch

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
SRUN = {
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_PROCID": "0",
}
SPREAD = {
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "8",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "0",
}


@pytest.mark.parametrize(
    ("variables", "started", "is_first"),
    [
        ({}, None, True),
        (TORCHRUN | {"LOCAL_RANK": "1"}, Launch("torchrun", 3, 4, 2), False),
        (TORCHRUN | {"LOCAL_RANK": "0", "RANK": "2"}, Launch("torchrun", 2, 4, 2), False),
        (TORCHRUN | {"RANK": "0"}, Launch("torchrun", 0, 4, 2), True),
        (SRUN, Launch("srun", 0, 8, 4), True),
        (SRUN | {"SLURM_PROCID": "4", "SLURM_LOCALID": "0"}, Launch("srun", 4, 8, 4), False),
        # srun --nodes=2 --ntasks=8, and a step on one of an allocation's two nodes.
        (SPREAD, Launch("srun", 0, 8, 4), True),
        (SPREAD | {"SLURM_STEP_NUM_NODES": "1"}, Launch("srun", 0, 8, 8), True),
        # torchrun on a machine that SLURM gave.
        (SRUN | TORCHRUN, Launch("torchrun", 3, 4, 2), False),
        # A shell there.
        (SRUN | {"SLURM_JOB_NAME": "interactive"}, None, True),
        (SRUN | {"SLURM_JOB_NAME": "bash", "LOCAL_RANK": "1"}, None, False),
        # Processes that Lightning starts itself.
        ({"LOCAL_RANK": "0"}, None, True),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, None, False),
    ],
)
def test_a_process_knows_which_it_is(
    variables: dict[str, str],
    started: Launch | None,
    is_first: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*TORCHRUN, *SRUN, *SPREAD, "SLURM_STEP_NUM_NODES", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processes.launch() == started
    assert processes.is_first() == is_first
