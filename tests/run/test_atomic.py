import os
from pathlib import Path

import pytest
import torch

from cifar_lightning.checkpoints.io import AtomicCheckpointIO
from cifar_lightning.system.atomic import atomic_write, remove_leftovers


def test_a_file_is_replaced_when_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_never_passes_through_the_systems_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    AtomicCheckpointIO().save_checkpoint({"x": torch.ones(3)}, tmp_path / "a" / "b.ckpt")
    assert torch.load(tmp_path / "a" / "b.ckpt", weights_only=True)["x"].sum() == 3


def test_what_a_killed_program_was_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    inner = tmp_path / "checkpoints"
    inner.mkdir()
    kept = [tmp_path / "mine.tmp", tmp_path / "x.12.txt", inner / "last.ckpt"]
    for file in (*kept, inner / "last.ckpt.123.tmp", tmp_path / "metrics.csv.7.tmp"):
        file.touch()
    remove_leftovers(tmp_path, ["*.ckpt", "metrics.csv"])
    assert not (tmp_path / "metrics.csv.7.tmp").exists()
    assert (inner / "last.ckpt.123.tmp").exists()  # not below
    remove_leftovers(inner, ["*"])
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == {*kept}


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    """The system's own full device stands where the temporary file goes."""
    path = tmp_path / "x"
    path.write_text("old")
    (tmp_path / f"x.{os.getpid()}.tmp").symlink_to("/dev/full")

    def save() -> None:
        with atomic_write(path) as file:
            torch.save({"x": torch.ones(1000, 1000)}, file)

    with pytest.raises(OSError, match="No space left on device"):
        save()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
