"""Distributed training, started by Lightning, by torchrun, and as srun does it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Compose
from programs import (
    Program,
    finish_all,
    free_port,
    read_json,
    run_command,
    srun,
    start,
    start_two,
)

from cifar_lightning import run
from cifar_lightning.config.compose import PACKAGE
from cifar_lightning.errors import UserError
from cifar_lightning.tracking.run_folder import read_rows
from cifar_lightning.train import train

# Odd numbers of images: of three validation batches a second process gets one, and then none.
OPTIONS = (
    *(typed for typed in TINY if not typed.startswith(("logger", "trainer.gpus"))),
    "data.batch_size=24",
    "data.val_size=51",
    "data.test_size=61",
    "trainer.max_epochs=4",
    "target_accuracy=0.8",
    "+callbacks.plan._target_=watching.Plan",
    "+callbacks.spy._target_=watching.Spy",
)


@dataclass(frozen=True)
class Ended:
    """Programs that ran together, in one folder.

    Attributes:
        folder: that they ran in.
        codes: their exit codes.
        outputs: what each printed.
    """

    folder: Path
    codes: list[int | None]
    outputs: list[str]

    def seen_by(self, rank: int) -> dict[str, Any]:
        return read_json(self.folder.parent / f"{self.folder.name}-{rank}.json")

    @property
    def run_dir(self) -> Path:
        (found,) = (self.folder / "runs" / "train").iterdir()
        return found

    @property
    def files(self) -> list[str]:
        """All of them, without the names that no two runs share."""
        names = sorted(str(p.relative_to(self.run_dir)) for p in self.run_dir.rglob("*"))
        others = (p for p in self.folder.glob("*/*/*") if p.parent.name != "train")
        return [*names, *sorted(re.sub(r"run-.*", "run", str(p.name)) for p in others)]


def make_folder(folder: Path) -> dict[str, str]:
    """Makes a folder to run in; returns the variables of programs there."""
    folder.mkdir(parents=True)
    return os.environ | {
        # `watching`, and the package that is tested here, wherever an installed one may be.
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(PACKAGE.parent)]),
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(folder),
    }


def run_two(folder: Path, *typed: str) -> Ended:
    """Two processes that are started as srun does."""
    return finish_in(folder, start_two(*typed, cwd=folder, env=make_folder(folder)))


def run_one(folder: Path, *typed: str) -> Ended:
    return finish_in(folder, [start("train", *typed, cwd=folder, env=make_folder(folder))])


def finish_in(folder: Path, programs: Sequence[Program | subprocess.Popen[str]]) -> Ended:
    outputs = finish_all(programs)
    return Ended(folder, [program.returncode for program in programs], outputs)


def options(folder: Path) -> tuple[str, ...]:
    return (*OPTIONS, f"+callbacks.spy.folder={folder}")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """One process."""
    folder = tmp_path_factory.mktemp("one") / "cwd"
    return run_one(folder, *options(folder), "trainer.gpus=0")


def by_lightning(folder: Path) -> Ended:
    return run_one(folder, "trainer=ddp_sim", *options(folder))


def by_torchrun(folder: Path) -> Ended:
    """On two machines."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}",
        "--local-addr=127.0.0.1",
        *("-m", "cifar_lightning.train", "trainer=ddp_sim", *options(folder)),
        *("trainer.num_nodes=2", "trainer.devices=1"),
    ]
    env = make_folder(folder) | {"OMP_NUM_THREADS": "1"}
    machines = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    return finish_in(folder, machines)


def by_srun(folder: Path) -> Ended:
    return run_two(folder, "trainer=ddp_sim", *options(folder))


@pytest.fixture(scope="module", params=[by_lightning, by_torchrun, by_srun])
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Two processes, started in each of the ways that there are."""
    launch: Callable[[Path], Ended] = request.param
    ended = launch(tmp_path_factory.mktemp(launch.__name__) / "cwd")
    assert ended.codes == [0] * len(ended.codes), "\n".join(ended.outputs)
    return ended


@pytest.mark.slow
def test_two_processes_share_each_batch_of_one(one: Ended, two: Ended) -> None:
    alone = one.seen_by(0)["epochs"]
    shares = [two.seen_by(rank)["epochs"] for rank in (0, 1)]
    assert len(alone) == 2
    assert alone[0] != alone[1]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert len(set(chain(*whole))) == 6 * 24
        for batch, left, right in zip(whole, *parts, strict=True):
            assert len(left) == len(right) == 12
            assert sorted(left + right) == sorted(batch)


@pytest.mark.slow
def test_two_processes_have_the_same_weights(two: Ended) -> None:
    left, right = (two.seen_by(rank) for rank in (0, 1))
    assert left["trained"] == right["trained"]
    assert left["tested"] == right["tested"]
    assert left["best"] == right["best"] == str(two.run_dir / "checkpoints" / "best.ckpt")


@pytest.mark.slow
def test_two_processes_stop_at_the_target_together(two: Ended) -> None:
    left, right = (two.seen_by(rank) for rank in (0, 1))
    assert left["val/acc"] == right["val/acc"] == [0.5, 1.0]
    assert left["test/acc"] == right["test/acc"]
    metrics = read_json(two.run_dir / "metrics.json")
    assert metrics["stopped_by"] == "target"
    assert metrics["epochs"] == 2
    assert metrics["world_size"] == 2
    assert metrics["train_images"] == 2 * 6 * 24


@pytest.mark.slow
def test_two_processes_leave_the_files_of_one_and_speak_with_one_voice(
    one: Ended, two: Ended
) -> None:
    assert two.files == one.files
    assert [path.name for path in two.folder.iterdir()] == ["runs"]
    assert len(list(two.folder.glob("runs/wandb/offline-run-*"))) <= 1  # with W&B
    said = "".join(two.outputs)
    assert said.count("multiply-adds per image") == 1
    assert said.count("epoch 2/4") == 1
    assert "Warning" not in said


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    # Batch norm would see half a batch in each process; without it both must do the same. The
    # second gets no validation images, and the network would not take a batch of none.
    losses, predictions = {}, {}
    for devices, option, runs in ((1, "trainer.gpus=0", run_one), (2, "trainer=ddp_sim", run_two)):
        folder = tmp_path / str(devices)
        ended = runs(
            folder,
            *(typed for typed in TINY if "gpus" not in typed),
            option,
            "model._target_=watching.WithoutNorm",
            "budget.min_dilated=0",
            "budget.min_separable=0",
            "init=random",
            "augment=none",
            "optimizer=sgd",
            "trainer.max_epochs=3",
            "data.batch_size=50",
            "trainer.precision=32-true",
            "target_accuracy=null",
            *("+callbacks.spy._target_=watching.Spy", f"+callbacks.spy.folder={folder}"),
        )
        output = "".join(ended.outputs)
        assert not any(ended.codes), output
        assert "Warning" not in ended.outputs[0]
        assert output.count("multiply-adds per image") == 1  # one process speaks
        metrics = read_json(ended.run_dir / "metrics.json")
        assert (metrics["world_size"], metrics["epochs"]) == (devices, 3)
        losses[devices] = [
            value
            for row in read_rows(ended.run_dir)
            for name, value in sorted(row.items())
            if name.endswith(("/loss", "/acc"))
        ]
        seen = [ended.seen_by(rank) for rank in range(devices)]
        # All test images once and in order, in each process, whichever had them.
        assert [s["tested images"] for s in seen] == [list(range(60))] * devices
        predictions[devices] = [s["predictions"] for s in seen]
    (alone,), (first, second) = predictions[1], predictions[2]
    assert first == second
    # Rounding may decide one that is between two classes.
    assert sum(a != b for a, b in zip(alone, first, strict=True)) <= 1
    assert len(losses[1]) == 3 * 4 + 2
    assert losses[2] == pytest.approx(losses[1], rel=1e-3)
    assert losses[1][:4] != losses[1][4:8]  # it does train


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_with_two_in_its_own_folder(
    tiny: Compose, tmp_path: Path
) -> None:
    data = [typed for typed in OPTIONS if typed.startswith("data")]
    train(tiny(*data, "target_accuracy=null"))
    before = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    ended = run_two(
        tmp_path / "cwd",
        f"resume={tmp_path}/run/checkpoints/last.ckpt",
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "+callbacks.spy._target_=watching.Spy",
        "+callbacks.spy.folder=${run_dir}/seen",
    )
    assert ended.codes == [0, 0], ended.outputs
    assert read_json(tmp_path / "run" / "metrics.json")["world_size"] == 2
    assert [row["epoch"] for row in read_rows(tmp_path / "run") if "lr" in row] == [1.0, 2.0]
    left, right = (read_json(tmp_path / "run" / f"seen-{rank}.json") for rank in (0, 1))
    assert left["trained"] == right["trained"]
    assert len(left["epochs"]) == len(right["epochs"]) == 1
    after = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert {name for name in after - before if "__pycache__" not in name} == {
        "cwd",
        "run/.lock",
        "run/train.log",
        "run/seen-0.json",
        "run/seen-1.json",
    }


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["trainer.gpus=0"], "srun started 1 x 2 processes (machines x processes on each), but"),
        (["trainer=ddp_sim", "optimizer.lr=1e30"], "The loss became NaN or infinite"),
    ],
)
def test_a_mistake_of_all_processes_is_said_once(typed: list[str], message: str) -> None:
    data = [o for o in OPTIONS if o.startswith("data")]
    two = start_two(*data, "logger=csv", *typed)
    output = "".join(finish_all(two, kill_on_bad_exit=True))
    assert 1 in [program.returncode for program in two]
    assert output.count("\nError: ") == 1
    assert f"\nError: {message}" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_what_is_wrong_on_one_machine_alone_is_said_there(tmp_path: Path) -> None:
    ended = run_command("train", "modle=x", env=os.environ | srun(1, 2, free_port()))
    assert ended.returncode == 1
    assert "Error: There is no 'modle' in the configuration." in ended.stderr
    assert not list(tmp_path.iterdir())


def test_devices_that_cannot_share_a_batch_are_refused_before_they_start(tiny: Compose) -> None:
    with pytest.raises(UserError, match=r"2 devices cannot share data\.batch_size=25 evenly"):
        run.build_trainer(tiny("trainer=ddp_sim"), {})


def test_several_machines_need_a_launcher(tiny: Compose) -> None:
    with pytest.raises(UserError, match="num_nodes=2, but this process was started alone"):
        run.build_trainer(tiny("trainer.num_nodes=2"), {})


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        (["trainer.gpus=0"], "1 x 1"),
        (["trainer=ddp_sim"], "1 x 2"),
        (["trainer=ddp_sim", "trainer.num_nodes=2", "trainer.devices=2"], "2 x 2"),
    ],
)
def test_the_processes_must_be_those_that_were_asked_for(
    typed: list[str], wanted: str, tiny: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in srun(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")  # on two machines
    with pytest.raises(UserError, match=f"srun started 2 x 1 processes .* asks for {wanted}[.]"):
        run.build_trainer(tiny(*typed, "data.batch_size=24"), {})
    config = tiny("trainer.num_nodes=2", "data.batch_size=24")
    assert run.build_trainer(config, {}).num_nodes == 2


def test_the_gpus_of_all_machines_share_the_batch(
    tiny: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in srun(0, 2, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    config = tiny("trainer.num_nodes=2", "trainer.gpus=auto", "data.batch_size=12")
    with pytest.raises(UserError, match=r"the configuration asks for 2 x 3[.]"):
        run.build_trainer(config, {})


def test_a_sweep_under_torchrun_is_refused() -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ended = run_command("train", "-m", "seed=0,1", env=os.environ | torchrun)
    assert ended.returncode == 1
    assert "torchrun starts the processes of one run: leave -m out" in ended.stderr
