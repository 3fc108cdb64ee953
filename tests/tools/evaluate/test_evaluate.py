import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY, Sure
from data_sets import small_data_set, write_tar
from omegaconf import DictConfig
from PIL import Image
from programs import read_json

from cifar_lightning import run
from cifar_lightning.config.compose import compose
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.data import ShapesData
from cifar_lightning.data.shapes import SHAPES
from cifar_lightning.errors import DataUnavailable, UserError
from cifar_lightning.evaluate import evaluate, evaluation, main
from cifar_lightning.evaluate.corruptions import CORRUPTIONS
from cifar_lightning.run.inference import Inference
from cifar_lightning.train import train
from cifar_lightning.training import metrics

Compose = Callable[..., DictConfig]

PICTURES = {"confusion_matrix.png", "reliability.png", "mistakes.png", "robustness.png"}


def typed(*overrides: str) -> DictConfig:
    return compose(prepare_arguments(overrides), config_name="evaluate")


@pytest.fixture
def run_dir(trained_run: Path, tmp_path: Path) -> Path:
    """A trained run, in the folder `run` of the test."""
    return shutil.copytree(trained_run, tmp_path / "run")


def evaluated(run_dir: Path, *overrides: str) -> dict[str, Any]:
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    return evaluate(typed(f"checkpoint={checkpoint}", "trainer.gpus=0", *overrides))


def test_the_accuracy_is_that_of_the_training_to_the_last_digit(
    tiny: Compose, tmp_path: Path
) -> None:
    # Half trained, on many images: one prediction that differs would show.
    options = ("data.train_size=400", "data.test_size=300")
    metrics = train(tiny(*options, "trainer.precision=bf16-mixed", "target_accuracy=null"))
    results = evaluated(tmp_path / "run", "robustness=false")
    assert results["test/acc"] == metrics["test/acc"]
    assert results["test/loss"] == pytest.approx(metrics["test/loss"], abs=2e-6)
    assert results["precision"] == metrics["precision"] == "bf16-mixed"
    assert 0.2 < results["test/acc"] < 0.999


def test_what_an_evaluation_prints_and_leaves_behind(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = read_json(run_dir / "metrics.json")
    evaluated(run_dir)
    printed = capsys.readouterr()
    assert printed.err == ""
    accuracy = f"{metrics['test/acc']:.2%}"
    for text in (accuracy, "most often taken for", "jpeg", "images/s", "calibration error"):
        assert text in printed.out

    folder = run_dir / "evaluation"
    assert {path.name for path in folder.iterdir()} == PICTURES | {"evaluation.json"}
    for name in PICTURES:
        with Image.open(folder / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5
    results = read_json(folder / "evaluation.json")
    assert results["test/acc"] == metrics["test/acc"]
    assert (results["model"], results["data"], results["images"]) == ("dilated_dw", "shapes", 60)
    assert set(results["test/acc_by_class"]) > {"bar", "disk"}
    matrix = np.array(results["confusion_matrix"])
    assert matrix.sum() == 60
    assert matrix.trace() / 60 == pytest.approx(results["test/acc"], abs=1e-6)
    assert results["test/top2_flip"] >= results["test/acc_flip"]
    curves = results["robustness"]
    assert list(curves) == ["mean_acc", "noise", "blur", "brightness", "jpeg", "shift"]
    everything = [a for name in list(curves)[1:] for a in curves[name]["acc"]]
    assert len(everything) == 25
    assert curves["mean_acc"] == pytest.approx(sum(everything) / 25, abs=1e-5)

    # Another checkpoint's has a folder of its own, and leaves no picture of one before.
    last = run_dir / "checkpoints" / "last.ckpt"
    shutil.copytree(folder, folder / "last")
    evaluate(typed(f"checkpoint={last}", "trainer.gpus=0", "robustness=false"))
    assert read_json(folder / "evaluation.json") == results
    again = read_json(folder / "last" / "evaluation.json")
    assert (again["checkpoint"], again["robustness"]) == (str(last), None)
    assert not (folder / "last" / "robustness.png").exists()


def test_nothing_of_the_users_is_overwritten_or_found_only_at_the_end(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "robustness.png").write_bytes(b"mine")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "evaluation.json").write_text('["mine"]')
    (tmp_path / "file").touch()
    monkeypatch.setattr(evaluation, "measure", None)
    for output, message in (
        ("mine", r"would overwrite .*robustness\.png, which evaluate did not write"),
        ("notes", r"would overwrite .*evaluation\.json, which evaluate did not write"),
        ("file/in", r"file is a file, where a folder is needed"),
    ):
        with pytest.raises(UserError, match=message):
            evaluated(run_dir, "robustness=false", f"output={tmp_path}/{output}")
    assert (tmp_path / "mine" / "robustness.png").read_bytes() == b"mine"


def test_a_checkpoint_that_was_moved_is_evaluated_where_it_is(
    run_dir: Path, tmp_path: Path
) -> None:
    metrics = read_json(run_dir / "metrics.json")
    (run_dir / "config.yaml").write_text("seed: [1")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read: "):
        evaluated(run_dir)
    (tmp_path / "config.yaml").write_text("mine: 1")  # not a record
    moved = tmp_path / "far away=[1], 2"
    moved.mkdir()
    (run_dir / "checkpoints" / "best.ckpt").rename(moved / "mine.ckpt")
    options = (f"checkpoint={moved}/mine.ckpt", "robustness=false", "trainer.gpus=0")
    with pytest.raises(UserError, match=r"is not in its run's folder.* data=OPTION"):
        evaluate(typed(*options))
    data = ("data=shapes", "data.train_size=200", "data.test_size=60")
    assert evaluate(typed(*options, *data))["test/acc"] == metrics["test/acc"]
    assert (moved / "evaluation" / "mine" / "evaluation.json").exists()


def test_data_of_another_place_are_named_anew_and_keep_the_training_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_tar(tmp_path / "set.tar.xz", small_data_set())
    options = ("data.batch_size=2", "data.val_size=4")
    trained = [option for option in TINY if not option.startswith("data")]
    monkeypatch.setenv("CIFAR10_FOLDER", str(archive))
    config = compose([*trained, "data=folder", *options], tmp_path / "run")
    metrics = train(config)
    elsewhere = archive.rename(tmp_path / "moved.tar.xz")
    with pytest.raises(
        DataUnavailable, match=r"data that the run was trained on\. data=OPTION gives other"
    ):
        evaluated(tmp_path / "run", "robustness=false")
    again = ("data=folder", f"data.path={elsewhere}", "robustness=false")
    results = evaluated(tmp_path / "run", *again)
    assert (results["test/acc"], results["batch_size"]) == (metrics["test/acc"], 2)
    source = "from the environment variable CIFAR10_FOLDER"
    said = f"{elsewhere}, {source}; the run was trained on {archive}"
    assert said not in capsys.readouterr().out
    monkeypatch.setenv("CIFAR10_FOLDER", str(elsewhere))
    assert evaluated(tmp_path / "run", "robustness=false")["test/acc"] == metrics["test/acc"]
    assert said in capsys.readouterr().out


def test_data_too_small_for_a_training_can_be_evaluated_with_other_settings(
    run_dir: Path, tmp_path: Path
) -> None:
    generator = np.random.default_rng(0)
    for part, count in (("train", 1), ("test", 3)):
        for name in SHAPES:
            folder = tmp_path / "small" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    settings = ("data.batch_size=15", "trainer.precision=32-true", f"output={tmp_path}/out [2]")
    again = ("data=folder", f"data.path={tmp_path}/small", "robustness=false", *settings)
    results = evaluated(run_dir, *again)
    assert (results["images"], results["batch_size"]) == (30, 15)  # of 10 training images
    assert results["precision"] == "32-true"
    assert read_json(tmp_path / "out [2]" / "evaluation.json") == results


def test_data_of_other_classes_or_sizes_are_refused(run_dir: Path, tmp_path: Path) -> None:
    archive = write_tar(tmp_path / "set.tar.xz", small_data_set())
    other = ("data=folder", f"data.path={archive}", "data.val_size=4", "data.batch_size=2")
    with pytest.raises(UserError, match=r"but the checkpoint was trained on 10 classes \(bar"):
        evaluated(run_dir, *other)
    with pytest.raises(
        UserError, match=r"at 40 x 40 pixels, but the checkpoint was trained on .* 32 x 32"
    ):
        evaluated(run_dir, "data=shapes", "data.image_size=40")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Which checkpoint? As in: checkpoint=runs/train/"),
        (["checkpoint=none.ckpt"], "checkpoint=none.ckpt: there is no such file"),
        (["checkpoint=."], "is a folder. Give a checkpoint"),
        (["checkpoint=noise.ckpt", "robustness=some"], "robustness=some should be a"),
        (["checkpoint=noise.ckpt", "data=folders"], "There is no data=folders"),
    ],
)
def test_mistakes_end_in_one_message(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "noise.ckpt").write_bytes(b"no checkpoint")
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value).startswith("\nError: ")
    assert message in str(ended.value)
    assert not list(tmp_path.glob("*/"))  # nothing was made


@pytest.fixture
def sure(tiny: Compose, shapes: ShapesData) -> Inference:
    """Of a classifier that is no good, but sure."""
    classifier, _ = run.build_classifier(tiny(), shapes)
    classifier.network = Sure()
    return Inference(classifier, 0, "32-true")


def test_an_evaluation_is_of_the_images_it_says(
    sure: Inference, shapes: ShapesData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "CORRUPTED_AT_A_TIME", 30)  # of 100
    found, logits = evaluation.measure(sure, shapes, 50, robustness=True)
    images, labels = shapes.test.images, shapes.test.labels
    predictions = logits.argmax(1)
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels.numpy(), predictions.numpy()), 1)
    assert found["confusion_matrix"] == matrix.tolist() != matrix.T.tolist()
    for number, name in enumerate(shapes.classes):
        right = (predictions[labels == number] == number).float().mean().item()
        assert found["test/acc_by_class"][name] == pytest.approx(right, abs=1e-6)
    mirrored = metrics.scores(sure.logits(images, 50, flip=True), labels)
    assert {k: found[f"test/{k}_flip"] for k in mirrored} == mirrored
    assert found["test/loss_flip"] != found["test/loss"]
    for name, corruption in CORRUPTIONS.items():
        for strength, acc in zip(
            corruption.strengths, found["robustness"][name]["acc"], strict=True
        ):
            hits = sure.logits(corruption.apply(images, strength), 50).argmax(1) == labels
            # Noise differs from image to image, so it depends on how many come at a time.
            slack = 0.1 if name == "noise" else 1e-6
            assert acc == pytest.approx(hits.float().mean().item(), abs=slack), name
    assert len({a for name in CORRUPTIONS for a in found["robustness"][name]["acc"]}) > 3


def test_mistakes_have_their_own_captions(sure: Inference, shapes: ShapesData) -> None:
    logits = sure.logits(shapes.test.images, 100)
    confidences, predictions = logits.softmax(1).max(1)
    wrong = metrics.confident_mistakes(predictions, confidences, shapes.test.labels, 36)
    figure = evaluation.draw_mistakes(logits, shapes, "t")
    assert figure is not None
    (axes,) = figure.axes
    for place, picture, text in zip(wrong.index, axes.images, axes.texts, strict=True):
        label, prediction = shapes.test.labels[place], logits[place].argmax()
        confidence = logits[place].softmax(0).max()
        expected = f"{shapes.classes[label]}\n{shapes.classes[prediction]} {confidence:.0%}"
        assert text.get_text() == expected
        shown = np.asarray(picture.get_array())
        assert np.array_equal(shown, shapes.test.images[place].permute(1, 2, 0).numpy())
