"""Faults around a run: full or read-only disks, and unusual names."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import weights_of
from conftest import TINY, needs_unshare
from data_sets import small_data_set, write_tar
from programs import one_message, run_command

from cifar_lightning.checkpoints.io import read_checkpoint
from cifar_lightning.tracking.run_folder import read_rows


def train_on(
    disk: Path, size: str, *arguments: str, before: str = "true"
) -> subprocess.CompletedProcess[str]:
    """Train in a folder that is a file system of its own; what is on it is copied beside it.

    Args:
        disk: the folder.
        size: of the file system, as mount takes it.
        arguments: of the command.
        before: what the shell does once the file system is there.
    """
    disk.mkdir()
    place, copy = shlex.quote(str(disk)), shlex.quote(f"{disk}.copy")
    command = shlex.join([sys.executable, "-m", "cifar_lightning.train", *arguments])
    script = (
        f"mount -t tmpfs -o size={size} disk {place} && cd {place} && {before} && {command}; "
        f"code=$?; cp -r {place} {copy}; exit $code"
    )
    # A mount name space of its own: no other process sees the disk, and it goes with the last one.
    return subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"WANDB_DIR": str(disk)},
        timeout=300,
    )


own_disk = needs_unshare("--mount")

LONG = ("target_accuracy=null", "trainer.max_epochs=5")


@own_disk
@pytest.mark.slow
def test_a_disk_that_fills_up_in_training_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    # Room for one checkpoint of 2 MB and a little more, so that the next one does not fit.
    ended = train_on(tmp_path / "disk", "3m", *TINY, *LONG)
    message = one_message(ended)
    assert message.startswith("The disk is full")
    assert "resume=" in message
    assert "hydra.run.dir=FOLDER" in message
    (run_dir,) = (tmp_path / "disk.copy").glob("runs/train/*")
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    assert checkpoint.name == "best.ckpt"
    assert read_checkpoint(checkpoint).global_step == 6
    assert all(bool(weight.isfinite().all()) for weight in weights_of(checkpoint).values())


@own_disk
@pytest.mark.slow
def test_the_best_checkpoint_survives_a_disk_that_is_full_when_it_is_replaced(
    tmp_path: Path,
) -> None:
    # Room for both checkpoints, not for a third beside them, so that replacing one fails.
    ended = train_on(tmp_path / "disk", "5m", *TINY, *LONG)
    assert one_message(ended).startswith("The disk is full")
    (run_dir,) = (tmp_path / "disk.copy").glob("runs/train/*")
    files = sorted((run_dir / "checkpoints").iterdir())
    assert [file.name for file in files] == ["best.ckpt", "last.ckpt"]
    assert {read_checkpoint(file).global_step for file in files} == {6}
    # And the run can go on from there, as the message says.
    shutil.copytree(run_dir, tmp_path / "run")
    ended = run_command(
        "train", f"resume={tmp_path}/run/checkpoints/last.ckpt", "trainer.max_epochs=2"
    )
    assert ended.returncode == 0, ended.stderr
    assert [row["step"] for row in read_rows(tmp_path / "run") if "lr" in row] == [5.0, 11.0]


@own_disk
@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "40k"])
def test_a_disk_that_is_full_from_the_start_ends_in_one_message(tmp_path: Path, size: str) -> None:
    ended = train_on(tmp_path / "disk", size, *TINY, *LONG)
    assert one_message(ended).startswith("The disk is full")


@own_disk
@pytest.mark.slow
def test_a_cache_that_does_not_fit_on_the_disk_is_not_left_in_half(tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "set.tar.xz", small_data_set())
    options = ["data=folder", f"data.path={archive}", "data.batch_size=2", "data.val_size=4"]
    where = f"hydra.run.dir={tmp_path}/run"
    ended = train_on(tmp_path / "disk", "40k", *options, "data.image_size=64", "logger=csv", where)
    message = one_message(ended)
    assert message.startswith("The disk is full")
    assert "data.cache_dir=FOLDER" in message
    kinds = {file.suffix for file in (tmp_path / "disk.copy" / "data" / "cache").iterdir()}
    assert kinds == {".lock"}


@own_disk
@pytest.mark.slow
def test_a_disk_that_may_not_be_written_ends_in_one_message(tmp_path: Path) -> None:
    ended = train_on(tmp_path / "disk", "5m", *TINY, before="mount -o remount,ro .")
    message = one_message(ended)
    assert message.startswith("Read-only file system (")
    assert "hydra.run.dir=FOLDER" in message


@own_disk
@pytest.mark.slow
def test_a_disk_that_vanishes_in_training_ends_in_one_message_and_keeps_what_it_has(
    tmp_path: Path,
) -> None:
    disk, kept, run = (shlex.quote(str(tmp_path / name)) for name in ("disk", "kept", "disk/run"))
    options = [*TINY, "target_accuracy=null", "trainer.max_epochs=2000"]
    typed = shlex.join([sys.executable, "-m", "cifar_lightning.train", *options])
    script = (
        f"mkdir {disk} {kept}; mount -t tmpfs disk {disk}; mount --bind {disk} {kept}; "
        # When it has saved something, it goes.
        f"(until [ -f {run}/checkpoints/last.ckpt ]; do sleep 0.1; done; umount -l {disk}) & "
        f"{typed} hydra.run.dir={run}; code=$?; cp -r {kept}/run {disk}/../saved; "
        f"ls {disk} > {disk}/../in_its_place; exit $code"
    )
    ended = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
    )
    message = one_message(ended)
    assert message.startswith("No such file or directory (")
    assert "Is its disk still there? resume=LAST_CHECKPOINT resumes" in message
    assert (tmp_path / "in_its_place").read_text() == ""
    last = tmp_path / "saved" / "checkpoints" / "last.ckpt"
    epochs = read_checkpoint(last).global_step // 6
    assert epochs >= 1
    ended = run_command("train", f"resume={last}", f"trainer.max_epochs={epochs + 1}")
    assert ended.returncode == 0, ended.stderr
    assert read_checkpoint(last).global_step == 6 * (epochs + 1)


@own_disk
@pytest.mark.slow
def test_damaged_files_on_a_disk_that_may_not_be_written_are_named(tmp_path: Path) -> None:
    prepare = (
        "mkdir -p files/cifar-10-batches-py && echo x > files/cifar-10-batches-py/data_batch_1"
        " && mount -o remount,ro ."
    )
    options = ["data.root=files", "logger=csv", f"hydra.run.dir={tmp_path}/run"]
    message = one_message(train_on(tmp_path / "disk", "5m", *options, before=prepare))
    assert "is incomplete: data_batch_1 is damaged, data_batch_2 is missing" in message
    assert "It cannot be downloaded to that folder" in message
    assert "Read-only file system" in message
    assert "data.root=FOLDER" in message


@pytest.mark.slow
def test_a_nan_on_one_of_two_devices_ends_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one_nan.py").write_text(
        "import os\n"
        "from cifar_lightning.training.augment import Augment\n"
        "class OneNaN(Augment):\n"
        "    calls = 0\n"
        "    def __call__(self, images, index, epoch, generator):\n"
        "        images = super().__call__(images, index, epoch, generator) / 255\n"
        "        OneNaN.calls += len(images) > 2  # not when it is tried out\n"
        "        nan = OneNaN.calls == 4 and os.environ.get('LOCAL_RANK') == '1'\n"
        "        return images * float('nan') if nan else images\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = [option for option in TINY if "gpus" not in option]
    ended = run_command(
        "train",
        *options,
        "trainer=ddp_sim",
        "trainer.max_epochs=1",
        "data.batch_size=24",
        "augment._target_=one_nan.OneNaN",
        "callbacks.nan.every_n_steps=1",
    )
    message = one_message(ended)
    assert message.startswith("The loss became NaN or infinite: step 4, in epoch 1 (")


@pytest.mark.slow
def test_paths_with_equals_signs_commas_and_spaces_work_from_data_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "a=b, c (d) [e] 'f' ü"
    odd.mkdir()
    archive = write_tar(odd / "my=set, 1.tar.xz", small_data_set())
    monkeypatch.chdir(odd)
    options = [option for option in TINY if not option.startswith("data")]
    ended = run_command(
        "train",
        *options,
        "data=folder",
        f"data.path={archive}",
        f"data.cache_dir={odd}/the cache",
        "data.batch_size=2",
        "data.val_size=4",
        "target_accuracy=null",
        f"hydra.run.dir={odd}/lr=0.1, my run/${{now:%Y}}",
    )
    assert ended.returncode == 0, ended.stderr
    assert list((odd / "the cache").glob("*.pt"))
    (last,) = odd.glob("lr=0.1, my run/20*/checkpoints/last.ckpt")
    # As typed, and without the folder's own name, which the shell would have to quote.
    ended = run_command("train", f"resume={last}", "trainer.max_epochs=2")
    assert ended.returncode == 0, ended.stderr
    assert read_checkpoint(last).global_step == 8
    assert not (odd / "runs").exists()
