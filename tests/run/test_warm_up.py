from pathlib import Path

import pytest
import torch
from checkpoints import weights_of
from conftest import Compose, exist
from torch import nn
from torch._inductor.cpp_builder import cpp_compiler_search

from cifar_lightning import run
from cifar_lightning.run import fit
from cifar_lightning.run.compile import WarmUp
from cifar_lightning.train import train


class Small(nn.Sequential):
    """A network that is compiled in a few seconds."""

    def __init__(self, num_classes: int, image_size: int) -> None:
        layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(8, num_classes))


@pytest.mark.slow
def test_compiling_is_done_before_the_first_step_and_changes_nothing(
    tiny: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_sizes = exist(resizing := "callbacks=progressive_resizing")
    small = [f"model._target_={__name__}.Small", "budget.min_dilated=0", "budget.min_separable=0"]
    options = ["trainer.compile=true", "trainer.precision=32-true", *([resizing] * two_sizes)]
    config = tiny(*small, *options)
    data = run.build_data(config)
    classifier, _ = run.build_classifier(config, data)
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    trainer = run.build_trainer(config, run.build_callbacks(config, data))
    warm_up = WarmUp(data, compiling=True)
    sizes: list[object] = []
    step = classifier.training_step

    def first_step(*arguments: object) -> object:
        if not sizes:
            assert warm_up.compile_seconds is not None
            after = classifier.state_dict()
            assert all(torch.equal(value, after[name]) for name, value in before.items())
            assert all(weight.grad is None for weight in classifier.parameters())
            torch._dynamo.config.error_on_recompile = True
        result = step(*arguments)  # type: ignore[arg-type]
        sizes.append(result["image_size"])
        return result

    monkeypatch.setattr(classifier, "training_step", first_step)
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", False)
    trainer.callbacks.append(warm_up)  # type: ignore[attr-defined]
    with fit.quiet():
        trainer.fit(classifier, data)
    assert sizes == ([24] * 4 + [32] * 2 if two_sizes else [32] * 6)
    # As without compiling, so that the checkpoint can be rebuilt.
    assert weights_of(tmp_path / "run" / "checkpoints" / "last.ckpt").keys() == before.keys()


@pytest.mark.slow
def test_without_a_compiler_the_training_goes_on_with_a_warning(
    tiny: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    cpp_compiler_search.cache_clear()  # it remembers the one that an earlier test found
    metrics = train(tiny("trainer.compile=true", "target_accuracy=null"))
    output = " ".join(capsys.readouterr().out.replace("│", " ").split())  # out of its frame
    assert "Not compiled" in output
    assert "No working C++ compiler found" in output
    assert metrics["epochs"] == 1
    cpp_compiler_search.cache_clear()
