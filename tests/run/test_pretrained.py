"""The trained networks that come with the package."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import exist, needs_cifar10
from torch import Tensor

import cifar_lightning
from cifar_lightning import models, run
from cifar_lightning.checkpoints import pretrained
from cifar_lightning.checkpoints.pretrained import WEIGHTS, load
from cifar_lightning.config.compose import compose
from cifar_lightning.data import ImageSplit
from cifar_lightning.errors import UserError
from cifar_lightning.models.budget import check_budget, count_network

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
LOGITS = Path(__file__).parent / "pretrained_logits.json"
NAMES = sorted(json.loads(LOGITS.read_text()))
LARGEST = 4.2e6  # bytes

each = pytest.mark.parametrize("name", NAMES)


def images() -> Tensor:
    """Eight drawn images uint8 [8, 3, 32, 32], of integers alone: the same on every machine."""
    n, c = torch.arange(8).view(8, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1)
    y, x = torch.arange(32).view(1, 1, 32, 1), torch.arange(32).view(1, 1, 1, 32)
    return ((3 * (n + 1) * x + 5 * (c + 2) * y + n * x * y // 4) % 256).byte()


def card(name: str) -> str:
    return (WEIGHTS / f"{name}.md").read_text()


def test_every_file_of_weights_has_its_card_and_there_is_nothing_else() -> None:
    expected = {f"{name}{ending}" for name in NAMES for ending in (".md", ".safetensors")}
    assert {path.name for path in WEIGHTS.iterdir()} == expected


@each
def test_the_logits_are_those_that_were_stored(name: str) -> None:
    network = cifar_lightning.load(name)
    assert not network.training
    with torch.inference_mode():
        logits = network(images())
    assert logits.dtype == torch.float32
    expected = torch.tensor(json.loads(LOGITS.read_text())[name])
    assert logits.shape == expected.shape == (8, 10)
    assert torch.allclose(logits, expected, atol=1e-3)
    assert network.classes == tuple(CLASSES)


@each
def test_the_card_says_what_the_network_is(name: str) -> None:
    network = load(name).network
    counts = count_network(network)
    check_budget(counts)
    assert f"{counts.parameters:,} parameters" in card(name)
    assert f"{counts.multiply_adds / 1e6:.1f} M multiply-adds" in card(name)
    assert (WEIGHTS / f"{name}.safetensors").stat().st_size < LARGEST
    for heading in ("Data", "Recipe", "Accuracy", "Terms"):
        assert f"\n## {heading}\n" in card(name)


@pytest.mark.parametrize("name", [name for name in NAMES if exist(f"experiment={name}")])
def test_the_experiment_of_its_name_trains_the_same_network(name: str) -> None:
    network = run.build_network(compose([f"experiment={name}"]), 10, 32)
    expected = {key: tensor.shape for key, tensor in network.state_dict().items()}
    assert {k: t.shape for k, t in load(name).network.state_dict().items()} == expected
    assert type(load(name).network) is type(network)
    assert type(network).__name__ in models.__all__


@pytest.fixture(scope="module")
def cifar10_test(tmp_path_factory: pytest.TempPathFactory) -> ImageSplit:
    cache = tmp_path_factory.mktemp("cifar10")
    data = run.build_data(compose(["data=folder", f"data.cache_dir={cache}"]))
    assert list(data.classes) == CLASSES
    return data.test


@each
@pytest.mark.slow
@needs_cifar10
def test_the_card_says_what_the_weights_reach(name: str, cifar10_test: ImageSplit) -> None:
    network = load(name)
    with torch.inference_mode():
        guesses = torch.cat([network(part).argmax(1) for part in cifar10_test.images.split(500)])
    accuracy = (guesses == cifar10_test.labels).float().mean().item()
    (stated,) = re.findall(r"^test accuracy: (\d\d\.\d\d) %", card(name), flags=re.MULTILINE)
    # The last digits of float32 decide a few images, and they differ from machine to machine.
    assert accuracy * 100 == pytest.approx(float(stated), abs=0.05)


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(UserError, match=r"no weights 'best_2m'\. Available are: best_.*dilated_dw"):
        load("best_2m")


def test_damaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (WEIGHTS / "best_dilated_dw.safetensors").read_bytes()
    monkeypatch.setattr(pretrained, "WEIGHTS", tmp_path)
    (tmp_path / "best_dilated_dw.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"best_dilated_dw.safetensors is damaged"):
        load("best_dilated_dw")
