import logging
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import programs
import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from cifar_lightning.config.compose import CONF, compose
from cifar_lightning.data import ShapesData
from cifar_lightning.system import jobs
from cifar_lightning.train import train

Compose = Callable[..., DictConfig]

# What a shell starts by & ignores Ctrl-C, as would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

jobs.PRELOAD += programs.IMPORTED
programs.FORKS.set_forkserver_preload(jobs.PRELOAD)

# A whole run in about a second: 6 steps an epoch.
TINY = (
    "data=shapes",
    "data.train_size=200",
    "data.test_size=60",
    "data.val_size=50",
    "data.batch_size=25",
    "logger=csv",
    "plots=false",  # which take longer than the training
    "trainer.max_epochs=1",
    "trainer.gpus=0",
)


def exist(*typed: str) -> bool:
    """Whether conf/ has all chosen options; those of a part that was deleted it has not."""
    chosen = [option.split("=") for option in typed if (CONF / option.split("=")[0]).is_dir()]
    return all((CONF / group / f"{option}.yaml").exists() for group, option in chosen)


@pytest.fixture(autouse=True)
def _away_from_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tests write to a folder of their own, and never to anybody's W&B account."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # the tests' own servers are not behind one
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    logs = logging.getLogger().handlers[:]
    yield
    torch.set_num_threads(threads)
    for log in logging.getLogger().handlers[:]:
        # The command line's, called in this process: it ends with the process elsewhere.
        if isinstance(log, logging.FileHandler) and log not in logs:
            logging.getLogger().removeHandler(log)
            log.close()


@pytest.fixture
def tiny(tmp_path: Path) -> Compose:
    """Composes a tiny run on generated images, with overrides, in a folder of the test."""

    def compose_tiny(*overrides: str, run_dir: str = "run") -> DictConfig:
        return compose([*TINY, *overrides], tmp_path / run_dir)

    return compose_tiny


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one tiny run, which no test changes."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(compose([*TINY, "target_accuracy=null"], folder))
    return folder


@pytest.fixture(scope="session")
def shapes() -> ShapesData:
    data = ShapesData(train_size=400, test_size=100, val_size=100, batch_size=50)
    data.prepare_data()
    data.setup()
    return data


class Sure(nn.Module):
    """A network with another opinion of every image and of its mirror image, and sure of it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(3072, 10, generator=generator) / 10

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = images.flatten(1) @ self.weights
        return logits


# No machine can be relied on to have the images or to get them.
needs_cifar10 = pytest.mark.skipif(
    "CIFAR10_FOLDER" not in os.environ, reason="CIFAR10_FOLDER names no copy of CIFAR-10"
)


def not_installed(message: str) -> NoReturn:
    """Skip a test whose program is not on this machine; fail in CI, which installs them all."""
    if "CI" in os.environ:
        pytest.fail(message)
    pytest.skip(message)


def needs_unshare(what: str) -> pytest.MarkDecorator:
    """Where a process may have name spaces of its own, as on most Linux machines.

    Args:
        what: an option of unshare, as `--mount` for file systems, `--uts` for the machine's name.
    """
    command = f"unshare --map-root-user {what}"
    code = subprocess.call(["sh", "-c", f"{command} true 2>/dev/null"])
    return pytest.mark.skipif(code != 0, reason=f"{command} is not possible here")
