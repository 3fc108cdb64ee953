"""The networks as torch.hub gives them."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import cifar_lightning
from cifar_lightning import run
from cifar_lightning.checkpoints.pretrained import WEIGHTS
from cifar_lightning.config.compose import CONF, compose

ROOT = CONF.parent
TRAINED = {path.stem for path in WEIGHTS.glob("*.safetensors")}
# Those that cifar_lightning.models exports; a file that was added beside them need not be here.
UNTRAINED = {
    path.stem
    for path in (CONF / "model").glob("*.yaml")
    if re.search(r"^_target_: cifar_lightning\.models\.\w+$", path.read_text(), re.MULTILINE)
}
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    """A cache of torch.hub's in which the checkout stands as if it had been downloaded."""
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    (tmp_path / "OWNER_cifar-lightning_main").symlink_to(ROOT, target_is_directory=True)
    yield
    torch.hub.set_dir(before)


def test_its_entry_points_are_the_networks_and_nothing_else() -> None:
    names = torch.hub.list("OWNER/cifar-lightning:main", trust_repo=True, verbose=False)
    assert set(names) == TRAINED | UNTRAINED
    for name in names:
        shown = torch.hub.help("OWNER/cifar-lightning:main", name, trust_repo=True)
        assert "takes" in shown


@pytest.mark.parametrize("name", sorted(TRAINED))
@pytest.mark.parametrize("source", ["github", "local"])
def test_a_trained_network_is_that_of_load(name: str, source: str) -> None:
    where = str(ROOT) if source == "local" else "OWNER/cifar-lightning:main"
    network = torch.hub.load(where, name, source=source, trust_repo=True, verbose=False)
    expected = cifar_lightning.load(name)
    with torch.inference_mode():
        assert torch.equal(network(IMAGES), expected(IMAGES))
    assert network.classes == expected.classes


@pytest.mark.parametrize("name", sorted(UNTRAINED))
def test_an_untrained_network_is_that_of_its_configuration(name: str) -> None:
    network = torch.hub.load(str(ROOT), name, source="local", num_classes=7)
    expected = run.build_network(compose([f"model={name}"]), num_classes=7, image_size=32)
    assert str(network) == str(expected)
    assert network(IMAGES / 255).shape == (4, 7)


def test_neither_the_package_nor_what_training_needs_has_to_be_installed(tmp_path: Path) -> None:
    program = f"""
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in finder.__module__]
for name in ("hydra", "omegaconf", "pytorch_lightning", "pydantic", "rich", "wandb", "matplotlib"):
    sys.modules[name] = None  # not to be imported
import torch
network = torch.hub.load({str(ROOT)!r}, "best_dilated_dw", source="local")
torch.hub.load({str(ROOT)!r}, "residual_dw_1m", source="local")
print(network(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape)
"""
    command = [sys.executable, "-P", "-c", program]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout == "torch.Size([2, 10])\n", ended.stderr
