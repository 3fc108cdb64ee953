"""A training with W&B offline, for the test modules that name this one in `pytest_plugins`."""

import subprocess
import sys

import pytest
from conftest import TINY
from wandb_files import OfflineRun, recorded, run_folders, without_service

from cifar_lightning.tracking.wandb.code_state import code_state


@pytest.fixture(scope="session")
def offline_run(tmp_path_factory: pytest.TempPathFactory) -> OfflineRun:
    """It reaches its target."""
    folder = tmp_path_factory.mktemp("wandb")
    options = [*TINY, "plots=true", "logger=default", "logger.wandb.mode=offline"]
    options += [
        "optimizer.lr=0.05",
        "target_accuracy=0.05",
        "trainer.max_epochs=3",
        "+trainer.min_epochs=2",
    ]
    code = code_state()
    ended = subprocess.run(
        [sys.executable, "-m", "cifar_lightning.train", *options],
        cwd=folder,
        env=without_service(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stdout
    (run_dir,) = folder.glob("runs/train/*")
    (wandb_folder,) = run_folders(folder)
    return OfflineRun(run_dir, recorded(wandb_folder), ended.stdout, code)
