"""Networks on the Hugging Face Hub, or a folder of its form, by the Hub's own client."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from checkpoints import changed_record
from hub_server import TOKEN, HubServer, hub_server

from cifar_lightning.errors import UserError
from cifar_lightning.run import rebuild

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from cifar_lightning.hub import HubModel

FILES = {"README.md", "config.json", "model.safetensors"}
IMAGES = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub of the tests, which is the only one that its client knows in this process."""
    with hub_server() as running, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", running.url)
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        patch.delenv("HF_TOKEN", raising=False)
        yield running


@pytest.fixture(scope="module")
def hub_model(server: HubServer) -> "type[HubModel]":
    # Imported here, as the client reads the variables when it is imported.
    from huggingface_hub import constants

    from cifar_lightning.hub import HubModel

    assert server.url == constants.ENDPOINT
    return HubModel


@pytest.fixture(scope="module")
def best(trained_run: Path) -> Path:
    return trained_run / "checkpoints" / "best.ckpt"


@pytest.fixture
def saved(hub_model: "type[HubModel]", best: Path, tmp_path: Path) -> Path:
    hub_model.from_checkpoint(best).save_pretrained(tmp_path / "net")
    return tmp_path / "net"


def assert_gives_the_logits_of(checkpoint: Path, model: "HubModel") -> None:
    classifier, info = rebuild(checkpoint)
    assert model.classes == tuple(info.classes)
    assert not model.training
    expected = classifier.network.state_dict()
    assert model.network.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in model.network.state_dict().items())
    with torch.inference_mode():  # the classifier's layout is another, which rounds otherwise
        torch.testing.assert_close(model(IMAGES), classifier(IMAGES), rtol=0, atol=1e-4)


def test_a_folder_gives_the_network_of_the_checkpoint_back(
    saved: Path, hub_model: "type[HubModel]", best: Path
) -> None:
    assert {file.name for file in saved.iterdir()} == FILES
    assert_gives_the_logits_of(best, hub_model.from_pretrained(saved))
    for file in saved.iterdir():  # nothing of this machine
        assert str(best.parents[2]).encode() not in file.read_bytes()
    with pytest.raises(UserError, match=r"net is not an empty folder\. Name a new one"):
        hub_model.from_checkpoint(best).save_pretrained(saved)


def test_what_was_pushed_can_be_loaded(
    server: HubServer,
    hub_model: "type[HubModel]",
    best: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = hub_model.from_checkpoint(best)
    with pytest.raises(UserError, match=rf"somebody/net was not pushed to {server.url}: .*token"):
        model.push_to_hub("somebody/net")
    assert server.files == {}
    with monkeypatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        for _ in range(2):  # also over itself
            address = model.push_to_hub("somebody/net")
    assert address.startswith(f"{server.url}/somebody/net/commit/")
    assert {*server.files["somebody/net"]} >= FILES
    assert 'from_pretrained("somebody/net")' in server.files["somebody/net"]["README.md"].decode()
    loaded = hub_model.from_pretrained("somebody/net")
    assert_gives_the_logits_of(best, loaded)
    # It can be pushed again by whoever has loaded it, with the same card.
    assert str(loaded.generate_model_card()) == str(model.generate_model_card())


def metadata(card: "ModelCard") -> dict[str, Any]:
    return dict(yaml.safe_load(card.content.split("---\n")[1]))


def test_the_card_has_the_results_of_the_checkpoint_that_was_tested(
    hub_model: "type[HubModel]", best: Path, trained_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    typed = ["seed=0", "data.path=/data/she", "logger=csv", "+logger.m._target_=a.B"]
    changed_record(run, lambda record: record["starts"][0].update(overrides=typed))
    metrics = json.loads((run / "metrics.json").read_text())
    tested = run / "checkpoints" / metrics["checkpoint"]
    card = hub_model.from_checkpoint(tested, dataset="shapes of ours").generate_model_card()
    ((result,),) = [model["results"] for model in metadata(card)["model-index"]]
    assert result["dataset"] == {"name": "shapes of ours", "type": "shapes", "split": "test"}
    assert [metric["value"] for metric in result["metrics"]] == [metrics["test/acc"]]
    assert f"**{metrics['test/acc']:.2%}** of the test images (shapes of ours)" in card.text
    assert "257,856\nparameters, and 44.2 M multiply-adds" in card.text
    assert f"| seed | {metrics['seed']} |" in card.text
    assert "    python -m cifar_lightning.train seed=0 data.path=PATH\n" in card.text

    # Of another checkpoint, or outside the folder, nothing of it is said.
    shutil.copy(tested, tmp_path / "elsewhere.ckpt")
    shutil.copy(tested, run / "checkpoints" / "other.ckpt")
    for other in (tmp_path / "elsewhere.ckpt", run / "checkpoints" / "other.ckpt"):
        card = hub_model.from_checkpoint(other).generate_model_card()
        assert "model-index" not in metadata(card)
        assert card.text.count("not recorded") == 2
        assert "%" not in card.text


def change_network(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["info"]["network"].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            change_network(_target_="os.mkdir", name="was_called"),
            "has at that key: model._target_=os",
        ),
        (change_network(num_classes="${oc.env:HOME}"), r"wants to evaluate '\$\{oc.env:HOME\}'"),
        (change_network(num_classes=9), r"does not fit .*DilatedDW: size mismatch"),
        (
            lambda content: content["info"].pop("mean"),
            r"config.json does not describe .*mean",
        ),
        (lambda content: content["info"].update(std=[1, 1, 0]), r"config.json .*greater than 0"),
        (lambda content: content.update(training={}), r"config.json does not describe"),
        (lambda content: content.clear(), r"config.json does not describe .*info"),
    ],
)
def test_a_configuration_that_is_wrong_runs_nothing(
    change: Callable[[dict[str, Any]], object],
    message: str,
    saved: Path,
    hub_model: "type[HubModel]",
) -> None:
    content = json.loads((saved / "config.json").read_text())
    change(content)
    (saved / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        hub_model.from_pretrained(saved)
    assert not Path("was_called").exists()


def test_weights_that_are_damaged_or_missing(saved: Path, hub_model: "type[HubModel]") -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        hub_model.from_pretrained(saved)
    file.unlink()
    # A pickle is no substitute, as it is for the client's own mixin.
    torch.save({}, saved / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model\.safetensors was not loaded: No such file"):
        hub_model.from_pretrained(saved)


def test_what_is_not_there(
    server: HubServer,
    hub_model: "type[HubModel]",
    best: Path,
    saved: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("nowhere", "./no/folder", "a/b/c"):
        with pytest.raises(UserError, match="neither a folder nor the name of a repository"):
            hub_model.from_pretrained(name)
    with pytest.raises(UserError, match="'net' is not the name of a repository"):
        hub_model.from_checkpoint(best).push_to_hub("net")
    with pytest.raises(
        UserError, match=rf"config\.json was not loaded from {server.url}: there is "
    ):
        hub_model.from_pretrained("no/one")
    # Weights, which may be large, are not downloaded for a configuration that is wrong.
    monkeypatch.setitem(server.files, "no/config", {"config.json": b"{}"})
    with pytest.raises(UserError, match=r"no/config/config\.json does not describe .*info"):
        hub_model.from_pretrained("no/config")
    monkeypatch.setitem(
        server.files, "no/weights", {"config.json": (saved / "config.json").read_bytes()}
    )
    with pytest.raises(UserError, match=r"model\.safetensors was not loaded from .*no such file"):
        hub_model.from_pretrained("no/weights")
    monkeypatch.setattr(server, "is_down", True)
    with pytest.raises(UserError, match=r"was not pushed to .*: .*503 Service Unavailable"):
        hub_model.from_checkpoint(best).push_to_hub("some/body")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "cifar_lightning.hub", raising=False)
    with pytest.raises(ImportError, match=r"needs huggingface_hub, .*cifar-lightning\[hub\]"):
        importlib.import_module("cifar_lightning.hub")
