"""Exported files, run with the libraries that a user would use."""

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped]
import pytest
import torch
from checkpoints import changed
from omegaconf import DictConfig
from safetensors import safe_open
from test_networks import NETWORKS, smallest
from torch import Tensor, nn

from cifar_lightning import run
from cifar_lightning.checkpoints.io import ModelInfo
from cifar_lightning.config.compose import compose
from cifar_lightning.errors import UserError
from cifar_lightning.export import NEEDS, export, formats, verify
from cifar_lightning.training.augment import Augment
from cifar_lightning.training.module import Classifier
from cifar_lightning.training.optim import linear_schedule

SOME = torch.randint(0, 256, (256, 3, 32, 32), dtype=torch.uint8)
OURS, TORCH = (str(Path(module.__file__ or "").parent) for module in (formats, torch))


@pytest.fixture
def best(trained_run: Path, tmp_path: Path) -> Path:
    """A checkpoint out of its run's folder."""
    (tmp_path / "checkpoints").mkdir()
    return Path(shutil.copy(trained_run / "checkpoints" / "best.ckpt", tmp_path / "checkpoints"))


@pytest.fixture
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are checked on fewer images, which takes less time."""
    monkeypatch.setattr(verify, "IMAGES", 16)


def config_of(checkpoint: Path, *overrides: str) -> DictConfig:
    return compose([f"checkpoint='{checkpoint}'", *overrides], config_name="export")


def logits_of(checkpoint: Path, images: Tensor) -> Tensor:
    classifier, _ = run.rebuild(checkpoint)
    with torch.inference_mode():
        return classifier(images)  # type: ignore[no-any-return]


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def files_beside(checkpoint: Path) -> set[str]:
    return {file.name for file in checkpoint.parent.iterdir()}


@pytest.mark.slow
def test_an_onnx_file_gives_the_logits_of_the_checkpoint(trained_run: Path, tmp_path: Path) -> None:
    run_dir = shutil.copytree(trained_run, tmp_path / "run")
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    result = export(config_of(checkpoint))
    session = onnxruntime.InferenceSession(checkpoint.with_suffix(".onnx"))
    (images,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type) == ("images", "tensor(uint8)")
    assert images.shape == ["batch", 3, 32, 32]
    assert (logits.name, logits.type) == ("logits", "tensor(float)")
    assert logits.shape == ["batch", 10]
    for count in (1, 3, 256):
        (found,) = session.run(None, {"images": SOME[:count].numpy()})
        assert_close(torch.from_numpy(found), logits_of(checkpoint, SOME[:count]))

    # The result says what was measured.
    file = checkpoint.with_suffix(".onnx")
    assert result["output"] == str(file)
    assert result["bytes"] == file.stat().st_size
    assert result["checkpoint_bytes"] == checkpoint.stat().st_size
    assert 0 <= result["largest_difference"] < 1e-4
    assert (result["images"], result["images_of"]) == (50, "validation")
    assert result["threads"] == torch.get_num_threads()
    for size in verify.TIMED:
        assert result[f"eager_ms_{size}"] > 0 < result[f"file_ms_{size}"]

    # The file says what it is, and nothing of the machine.
    content = file.read_bytes()
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    _, info = run.rebuild(checkpoint)
    assert json.loads(metadata["classes"]) == info.classes
    assert json.loads(metadata["mean"]) == info.mean
    assert json.loads(metadata["image_size"]) == 32
    assert (metadata["model"], metadata["data"]) == ("dilated_dw", "shapes")
    assert [entry.version for entry in model.opset_import] == [18]
    assert OURS.encode() not in content
    assert TORCH.encode() not in content
    # Of channels_last, the exporter makes a gather that other runtimes may not know.
    assert not {node.op_type for node in model.graph.node} & {"Gather", "Transpose", "Range"}


@pytest.mark.slow
def test_a_pt2_file_runs_where_this_package_is_not(
    best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):  # none is needed
        monkeypatch.setitem(sys.modules, name, None)
    export(config_of(best, "format=pt2"))
    assert files_beside(best) == {"best.ckpt", "best.pt2"}

    np.save("images.npy", SOME.numpy())
    program = (
        "import sys, json, warnings, numpy, torch; sys.modules['cifar_lightning'] = None\n"
        "warnings.simplefilter('error')\n"
        "images = torch.from_numpy(numpy.load('images.npy'))\n"
        "extra = {'metadata.json': ''}\n"
        "network = torch.export.load('checkpoints/best.pt2', extra_files=extra).module()\n"
        "print(json.dumps([network(images[:n]).tolist() for n in (1, 3, 256)]))\n"
        "print(extra['metadata.json'])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found, metadata = map(json.loads, ended.stdout.splitlines())
    assert [len(logits) for logits in found] == [1, 3, 256]
    for logits in found:
        assert_close(torch.tensor(logits), logits_of(best, SOME[: len(logits)]))
    _, info = run.rebuild(best)
    assert (metadata["classes"], metadata["network"]) == (info.classes, info.network)
    with zipfile.ZipFile(best.with_suffix(".pt2")) as archive:
        content = b"".join(map(archive.read, archive.namelist()))
    assert OURS.encode() not in content
    assert TORCH.encode() not in content


@pytest.mark.usefixtures("few_images")
def test_a_safetensors_file_holds_the_weights_under_their_names(
    best: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"starts": [], "data": {"_target_": "mine.Data"}}  # which is not here
    (best.parents[1] / "config.yaml").write_text(json.dumps(record))
    result = export(config_of(best, "format=safetensors"))
    shown = capsys.readouterr().out
    assert f"file       {best.with_suffix('.safetensors')}\n" in shown
    assert "network.load_state_dict(load_file(" in shown
    assert files_beside(best) == {"best.ckpt", "best.safetensors"}
    assert result["images_of"] == "noise"
    assert "file_ms_1" not in result  # there is no graph to run
    classifier, info = run.rebuild(best)
    with safe_open(best.with_suffix(".safetensors"), framework="pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    expected = classifier.network.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert json.loads(metadata["classes"]) == list(classifier.classes)
    assert json.loads(metadata["std"]) == info.std
    network = run.make_network(info.network)
    network.load_state_dict(weights)
    mean, std = (torch.tensor(json.loads(metadata[k])).view(3, 1, 1) for k in ("mean", "std"))
    with torch.inference_mode():
        logits = network.eval()((SOME / 255 - mean) / std)
    assert_close(logits, logits_of(best, SOME))


@pytest.mark.slow
@pytest.mark.parametrize("kind", NEEDS)
@pytest.mark.parametrize("model", NETWORKS)
def test_every_network_exports_whatever_the_classes_and_the_size(
    kind: str, model: str, tmp_path: Path
) -> None:
    config = compose([f"model={model}", "data=shapes"])
    size = 40 if smallest(model) else 32  # its file says that it takes other sizes
    networks = [run.build_network(config, num_classes=4, image_size=size) for _ in range(2)]
    facts: dict[str, Any] = {
        "classes": ["a", "b", "c", "ü"],
        "image_size": size,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.25, 0.2, 0.1],
    }
    classifier = Classifier(
        networks[0],
        **facts,
        optimizer=torch.optim.SGD,
        scheduler=linear_schedule,
        augment=Augment(),
    ).eval()
    info = ModelInfo("0", model, {}, "shapes", **facts, precision="auto", deterministic=False)
    file = tmp_path / f"four.{kind}"
    file.write_bytes(formats.make_file(kind, classifier, verify.describe(info)))
    runs = formats.run_file(kind, file, networks[1])
    images = torch.randint(0, 256, (9, 3, size, size), dtype=torch.uint8)
    assert runs(images).shape == (9, 4)
    with torch.inference_mode():
        assert_close(runs(images), classifier(images))


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize(
    ("wrong", "tolerance", "shown"), [(0.5, 0.1, r"5\.0e-01"), (float("nan"), 1e9, "nan")]
)
def test_a_file_that_differs_by_more_than_the_tolerance_is_not_kept(
    wrong: float, tolerance: float, shown: str, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = formats.run_file

    def differing(kind: str, file: Path, network: nn.Module) -> formats.Runner:
        assert file.stat().st_size > 0
        runs = run_file(kind, file, network)
        return lambda images: runs(images) + (wrong if len(images) == 1 else 0)

    monkeypatch.setattr(formats, "run_file", differing)
    best.with_suffix(".safetensors").write_text("an earlier file")
    with pytest.raises(UserError, match=f"safetensors file differ from PyTorch's by up to {shown}"):
        export(config_of(best, "format=safetensors", f"tolerance={tolerance}"))
    assert best.with_suffix(".safetensors").read_text() == "an earlier file"
    assert files_beside(best) == {"best.ckpt", "best.safetensors"}


@pytest.mark.usefixtures("few_images")
def test_what_gives_no_numbers_is_not_exported(best: Path) -> None:
    def ruin(content: dict[str, Any]) -> None:
        content["state_dict"]["network.layers.21.weight"][3] = 3e38  # a number, just so

    with pytest.raises(UserError, match="logits are NaN or infinite"):
        export(config_of(changed(best, ruin), "format=safetensors", "tolerance=1e9"))
    assert files_beside(best) == {"best.ckpt"}


def test_a_network_that_cannot_be_exported_says_why(best: Path) -> None:
    class Unsteady(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            if images.mean() > 0:
                return images.mean((2, 3))
            return images.amax((2, 3))

    classifier, info = run.rebuild(best)
    classifier.network = Unsteady()
    with (
        pytest.raises(UserError, match=r"(?s)unsteady: .*data-dependent"),
        verify.export_errors("unsteady"),
    ):
        formats.make_file("pt2", classifier, verify.describe(info))


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["format=tflite"], "format=tflite is unknown: choose one of onnx, pt2, safetensors."),
        (["output=best.pt2"], r"output=best.pt2: .* must end in \.onnx"),
        (["format=pt2", "output=folder"], r"output=folder: .* must end in \.pt2"),
        (["tolerance=small"], "tolerance=small"),
    ],
)
def test_a_mistake_is_named_before_anything_is_done(
    typed: list[str], message: str, best: Path
) -> None:
    with pytest.raises(UserError, match=message):
        export(config_of(best, *typed))
    assert files_beside(best) == {"best.ckpt"}


def test_a_checkpoint_is_never_written_over(best: Path) -> None:
    renamed = best.rename(best.with_suffix(".onnx"))
    content = renamed.read_bytes()
    with pytest.raises(UserError, match="is the checkpoint itself"):
        export(config_of(renamed))
    assert renamed.read_bytes() == content


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        UserError, match=r"format=onnx needs onnxscript, .*cifar-lightning\[export\]"
    ):
        export(config_of(Path("none.ckpt")))


def test_images_of_validation_or_training_are_checked_on_never_those_of_test(
    tiny: Callable[..., DictConfig],
) -> None:
    data = run.build_data(tiny("data.val_size=60"))  # as many as of test
    assert data.val is not None
    images, images_of = verify.real_images(data)
    assert torch.equal(images, data.val.images)
    assert not torch.equal(images, data.test.images)
    assert images_of == "validation"
    data = run.build_data(tiny("data.val_size=0"))
    images, images_of = verify.real_images(data)
    assert torch.equal(images, data.train.images[data.train_index])
    assert images_of == "train"
