import platform
import resource

import pytest
import torch
from programs import FORKS

from cifar_lightning.errors import UserError
from cifar_lightning.run import devices
from cifar_lightning.system.counted import counted


@pytest.mark.parametrize(
    ("gpus", "available", "nodes", "expected"),
    [
        ("auto", 0, 1, ("cpu", 1)),
        ("auto", 4, 1, ("gpu", 4)),
        ("auto", 5, 1, ("gpu", 4)),  # that share batches of 12 evenly
        ("auto", 4, 2, ("gpu", 3)),  # of each machine
        ("auto", 4, 12, ("gpu", 1)),
        (0, 2, 1, ("cpu", 1)),
        (1, 2, 1, ("gpu", 1)),
        (2, 2, 1, ("gpu", 2)),
        ([0, 2], 3, 1, ("gpu", [0, 2])),
    ],
)
def test_devices(gpus: str | int | list[int], available: int, nodes: int, expected: object) -> None:
    assert devices.choose_devices(gpus, available, 12, num_nodes=nodes) == expected


def test_a_job_of_a_sweep_gets_one_device() -> None:
    assert devices.choose_devices("auto", 4, 256, one_device="trains on one device") == ("gpu", 1)
    assert devices.choose_devices("auto", 0, 256, one_device="trains on one device") == ("cpu", 1)
    assert devices.choose_devices([3], 4, 256, one_device="trains on one device") == ("gpu", [3])
    for gpus in (2, [0, 1]):
        with pytest.raises(UserError, match="trains on one device"):
            devices.choose_devices(gpus, 4, 256, one_device="trains on one device")


def test_one_gpu_where_there_is_none_is_a_warning_that_cannot_be_missed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert devices.choose_devices(1, 0, 256) == ("cpu", 1)
    assert "has no GPU: training runs on the CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gpus", "available", "message"),
    [
        (2, 1, "machine has 1 GPU"),
        (2, 0, "machine has 0 GPUs"),
        ([0, 2], 2, r"has 2 GPUs, counted from 0"),
        ([0], 0, r"This machine has none\."),
        ([1, 1], 2, "must name existing GPUs, each once"),
        ([], 2, "must name existing GPUs, each once"),
        (-1, 2, "must be auto, a count, or a list"),
        ("many", 2, "must be auto, a count, or a list"),
        (1.5, 2, "must be auto, a count, or a list"),
        (True, 2, "must be auto, a count, or a list"),
    ],
)
def test_devices_that_are_not_there_are_refused(
    gpus: str | int | list[int], available: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        devices.choose_devices(gpus, available, 256)


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("fpu avx512_bf16 amx_tile", "bf16-mixed"),
        ("fpu amx_bf16", "bf16-mixed"),
        ("fpu avx512f avx512bw", "32-true"),
        ("", "32-true"),
    ],
)
def test_precision_on_a_cpu_asks_the_chip(
    flags: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_cpu_info", lambda: {"flags": flags})
    assert devices.choose_precision("cpu", 1) == precision


@pytest.mark.parametrize(
    ("chosen", "precision"),
    [(1, "16-mixed"), (2, "16-mixed"), ([1], "bf16-mixed"), ([2, 1], "bf16-mixed")],
)
def test_precision_on_a_gpu_asks_the_chips_that_were_chosen(
    chosen: int | list[int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chips = [(7, 5), (9, 0), (8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: chips[index])
    assert devices.choose_precision("gpu", chosen) == precision


def test_the_device_has_its_own_name() -> None:
    name, _, threads = devices.device_name(torch.device("cpu")).rpartition(", ")
    assert name
    assert threads == counted(torch.get_num_threads(), "thread")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back so")
def test_memory_that_a_step_freed_is_there_for_the_next() -> None:
    # In a process of its own, whose C library it changes.
    with FORKS.Pool(1) as process:
        given_back, kept = process.apply(page_faults_before_and_after)
    assert kept < given_back / 10


def page_faults_before_and_after() -> tuple[int, int]:
    """The pages that the system has to hand out for 16 tensors, one after the other."""

    def page_faults() -> int:
        for _ in range(4):
            torch.zeros(2**26, dtype=torch.uint8)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(16):
            torch.zeros(2**26, dtype=torch.uint8)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    torch.set_num_threads(1)
    before = page_faults()
    devices.keep_freed_memory()
    return before, page_faults()
