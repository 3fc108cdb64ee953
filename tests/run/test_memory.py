"""Free memory of a machine, a container and a batch job, as Linux reports it."""

from pathlib import Path

import pytest
from data_sets import write_folder

from cifar_lightning.system.memory import free_memory

MB = 10**6
MACHINE = {"proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 8000000 kB\n"}
CGROUP = "sys/fs/cgroup"
VERSION_2 = {
    "proc/self/cgroup": "0::/\n",
    f"{CGROUP}/memory.max": f"{3000 * MB}\n",
    f"{CGROUP}/memory.current": f"{2900 * MB}\n",
    # Of which the page cache is given back when somebody needs it.
    f"{CGROUP}/memory.stat": f"inactive_file {300 * MB}\nactive_file {100 * MB}\n",
}
JOB = "slurm/job_1"
VERSION_1 = {
    "proc/self/cgroup": f"5:cpu,cpuacct:/\n4:memory:/{JOB}/step_0\n0::/\n",
    f"{CGROUP}/memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",  # no limit
    f"{CGROUP}/memory/memory.usage_in_bytes": f"{7000 * MB}\n",
    f"{CGROUP}/memory/memory.stat": "total_inactive_file 0\n",
    f"{CGROUP}/memory/{JOB}/memory.limit_in_bytes": f"{2000 * MB}\n",
    f"{CGROUP}/memory/{JOB}/memory.usage_in_bytes": f"{1500 * MB}\n",
    f"{CGROUP}/memory/{JOB}/memory.stat": f"inactive_file 0\ntotal_inactive_file {200 * MB}\n",
}
UNLIMITED = {**VERSION_2, f"{CGROUP}/memory.max": "max\n"}
# Of a container that sees its own group as the root, and its outer name for it.
CONTAINER_1 = {
    "proc/self/cgroup": "4:memory:/docker/abc\n",
    f"{CGROUP}/memory/memory.limit_in_bytes": f"{900 * MB}\n",
    f"{CGROUP}/memory/memory.usage_in_bytes": f"{500 * MB}\n",
    f"{CGROUP}/memory/memory.stat": "cache 0\n",
}


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (MACHINE, 8192 * MB),
        ({**MACHINE, **UNLIMITED}, 8192 * MB),
        ({**MACHINE, **VERSION_2}, 500 * MB),
        ({**MACHINE, **VERSION_1}, 700 * MB),
        ({**MACHINE, **CONTAINER_1}, 400 * MB),
    ],
    ids=["machine", "no limit", "version 2", "version 1", "container of version 1"],
)
def test_free_memory_is_what_is_left(tmp_path: Path, files: dict[str, str], free: int) -> None:
    write_folder(tmp_path, {name: text.encode() for name, text in files.items()})
    assert free_memory(tmp_path) == free
