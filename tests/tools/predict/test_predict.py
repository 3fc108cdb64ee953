"""Predictions of image files, in this process."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import changed
from conftest import TINY
from data_sets import PNG, folder_data, ready, small_data_set, write_folder
from endings import altered, cases, ends_well, fresh_folder, leftovers, odd_names
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich import get_console

from cifar_lightning import run
from cifar_lightning.config.compose import compose
from cifar_lightning.config.overrides import prepare_arguments
from cifar_lightning.data import ImageData
from cifar_lightning.errors import UserError
from cifar_lightning.predict import classify, predict, predictions
from cifar_lightning.run.inference import Inference
from cifar_lightning.tracking.plots import captioned_grid

Start = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def data(trained_run: Path) -> ImageData:
    return run.build_data(compose(TINY, trained_run))


@pytest.fixture
def start(trained_run: Path) -> Start:
    """As typed after the command."""

    def predict_with(*overrides: str) -> dict[str, Any]:
        checkpoint = f"checkpoint={trained_run}/checkpoints/best.ckpt"
        arguments = prepare_arguments([checkpoint, "trainer.gpus=0", *overrides])
        return predict(compose(arguments, config_name="predict"))

    return predict_with


@pytest.fixture
def photos(tmp_path: Path, data: ImageData) -> Path:
    """The test images of the training as files, numbered from 0."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(data.test.images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    return folder


def rows(table: str | Path) -> list[dict[str, str]]:
    with Path(table).open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_of_the_training(
    start: Start, photos: Path, trained_run: Path, data: ImageData
) -> None:
    """To the last digit, in either format."""
    result = start("images=photos", "output=new/table.csv", "batch_size=25")
    assert (result["images"], result["broken"], result["left_out"]) == (60, {}, 0)
    table = rows("new/table.csv")
    columns = "image,class,probability,class2,probability2,class3,probability3"
    assert ",".join(table[0]) == columns
    assert [row["image"] for row in table] == [f"photos/{number}.png" for number in range(60)]
    classifier, info = run.rebuild(trained_run / "checkpoints" / "best.ckpt")
    logits = Inference(classifier, 0, info.precision).logits(data.test.images, 25)
    likeliest = logits.softmax(1).sort(dim=1, descending=True, stable=True)
    for number, key in enumerate(("", "2", "3")):
        expected = [data.classes[i] for i in likeliest.indices[:, number].tolist()]
        assert [row[f"class{key}"] for row in table] == expected
        probabilities = [float(row[f"probability{key}"]) for row in table]
        assert probabilities == pytest.approx(likeliest.values[:, number].tolist(), abs=6e-7)
    labels = [data.classes[label] for label in data.test.labels.tolist()]
    right = sum(row["class"] == label for row, label in zip(table, labels, strict=True))
    metrics = json.loads((trained_run / "metrics.json").read_text())
    assert right / 60 == pytest.approx(metrics["test/acc"], abs=1e-6)

    start("images=photos", "output=table.jsonl", "batch_size=25")
    lines = [json.loads(line) for line in Path("table.jsonl").read_text().splitlines()]
    assert [{k: str(v) for k, v in line.items()} for line in lines] == table
    assert all(isinstance(line["probability"], float) for line in lines)


def test_without_an_output_a_folder_is_made(start: Start, trained_run: Path, photos: Path) -> None:
    result = start("images=photos/7.png")
    (folder,) = Path("runs/predict").iterdir()
    assert folder.name.endswith("_dilated_dw")
    assert {file.name for file in folder.iterdir()} == {"predictions.csv", "predictions.png"}
    assert result["output"] == str(folder / "predictions.csv")
    # And a checkpoint does not choose where.
    odd = Path(shutil.copy(trained_run / "checkpoints" / "best.ckpt", "odd.ckpt"))
    changed(odd, lambda content: content["hyper_parameters"].update(model="a/../../../out"))
    output = Path(start("checkpoint=odd.ckpt", "images=photos/7.png")["output"])
    assert output.is_file()
    assert output.parent.parent == Path("runs/predict")


def test_the_contact_sheet_shows_some_of_many(
    start: Start, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}

    def watched(images: Any, captions: list[str], title: str, columns: int) -> Any:
        drawn.update(images=images, captions=captions, title=title)
        return captioned_grid(images, captions, title, columns)

    monkeypatch.setattr(predictions, "captioned_grid", watched)
    (photos / "3.png").write_text("broken")
    start("images=photos", "output=t.csv")
    with Image.open("t.png") as sheet:
        assert sheet.size[0] == 1200
    assert drawn["title"] == "48 of 59 images, evenly spaced"
    table = {Path(row["image"]).name: row for row in rows("t.csv")}
    assert len(set(drawn["captions"])) == 48
    for image, caption in zip(drawn["images"], drawn["captions"], strict=True):
        pick, name = caption.split("\n")
        assert np.array_equal(image, np.asarray(Image.open(photos / name)))
        assert pick == f"{table[name]['class']} {float(table[name]['probability']):.1%}"
    assert drawn["captions"][0].endswith("\n0.png")
    assert drawn["captions"][-1].endswith("\n58.png")
    start("images=photos/1?.png", "output=u.csv")
    assert drawn["title"] == "10 of 10 images"

    # Broken images between them shift no caption.
    monkeypatch.setattr(classify, "ON_SHEET", 6)
    for number in range(2, 60, 2):
        (photos / f"{number}.png").write_text("broken")
    start("images=photos", "output=v.csv")
    assert drawn["title"] == "6 of 30 images, evenly spaced"
    shown = [caption.split("\n")[1] for caption in drawn["captions"]]
    assert shown == [f"{number}.png" for number in (0, 11, 21, 31, 41, 51)]
    for image, name in zip(drawn["images"], shown, strict=True):
        assert np.array_equal(image, np.asarray(Image.open(photos / name)))


def test_broken_images_are_named_and_the_others_answered(
    start: Start,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(get_console(), "width", 100)
    for number in range(10, 22):
        (photos / f"{number}.png").write_bytes(b"")
    (photos / "2.png").write_text("hello")
    (photos / "notes.txt").touch()
    (photos / "gone.png").symlink_to("nowhere")
    Path("t.csv").touch()  # an earlier output
    start("images=photos", "output=t.csv")
    assert len(rows("t.csv")) == 47
    shown = capsys.readouterr().out
    assert "classified 47 of 61 images" in shown
    assert "unreadable photos/2.png: not an image of a known format" in shown
    assert "unreadable photos/18.png: the file is empty\nunreadable 4 more\n" in shown
    assert "photos/19.png" not in shown
    assert "ignored    1 other file: 1 .txt" in shown
    assert "… and 27 more" in shown


def test_if_none_can_be_read_nothing_is_written(start: Start, photos: Path) -> None:
    for file in photos.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    none = r"(?s)^No image could be read \(0 of 60\)\.\nphotos/0\.png: .*\n50 more$"
    with pytest.raises(UserError, match=none):
        start("images=photos", "output=new/t.csv")
    assert [file.name for file in Path.cwd().iterdir()] == ["photos"]


@pytest.mark.parametrize("name", ["a=b, it's", 'say "ü 猫"', "x(1)[2]{b}\\slash"])
def test_odd_names_can_be_typed(start: Start, photos: Path, name: str) -> None:
    folder = photos.rename(photos.with_name(name))
    (folder / "0.png").rename(folder / f"{name}.png")
    start(f"images={name}/{name}.png", f"output={name}.csv")
    assert [row["image"] for row in rows(f"{name}.csv")] == [f"{name}/{name}.png"]


def test_names_of_any_bytes_come_back(
    start: Start, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = [os.fsdecode(name) for name in (b"\xff.png", b"a\nb\r\x1b[31m.png", b'"$x_{$",.png')]
    Path("odd").mkdir()
    for number, name in enumerate(odd):
        (photos / f"{number}.png").rename(Path("odd", name))
    Path("odd", os.fsdecode(b"broken\n\xff.png")).touch()
    expected = {f"odd/{name}" for name in odd}
    start("images=odd", "output=t.csv")
    assert {row["image"] for row in rows("t.csv")} == expected
    shown = capsys.readouterr().out
    assert "broken\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}.png: the file is" in shown
    assert "\x1b[31m" not in shown
    start("images=odd", "output=t.jsonl")
    lines = Path("t.jsonl").read_text().splitlines()
    assert {json.loads(line)["image"] for line in lines} == expected


def test_what_pillow_warns_of_is_no_noise(
    start: Start, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # pytest makes an error of the warning
    Image.new("RGB", (50, 50)).save(photos / "60.png")
    result = start("images=photos/6*.png", "output=t.csv")
    assert result["images"] == 1
    assert result["broken"] == {"photos/60.png": "more than 2,000 pixels"}


MISTAKES = {
    ("images=null",): r"No images given\. Type images=PATH",
    ("images=nowhere",): r"images=nowhere: there is no such file or folder, and no file match",
    ("images=photos/*.jpg",): r"photos/\*\.jpg: there is no such",
    ("images=empty",): r"images=empty: this folder is empty\.",
    ("images=notes",): r"this folder has no image, only 2 other files: 2 \.txt\.",
    ("images=photos", "output=t.txt"): r"output=t\.txt must end in \.csv .* or \.jsonl",
    ("images=photos", "output=folder.csv"): r"folder\.csv is a folder",
    (
        "images=photos",
        "output=photos/1.csv",
    ): r"overwrite photos/1\.png, which is one of the images",
    (
        "images=photos",
        "output=photos/3.csv",
    ): r"overwrite photos/3\.png, which is one of the images",
    ("images=photos", "output=linked.csv"): r"overwrite linked\.png, which is one of the images",
    ("images=*.csv", "output=an_image.csv"): r"overwrite an_image\.csv, which is one of the images",
    ("images=photos", "output=mine.csv"): r"overwrite mine\.png with its contact sheet",
    ("images=photos", "output=labels.csv"): r"overwrite labels\.csv, which is not a table",
    ("images=photos", "output=labels.jsonl"): r"overwrite labels\.png with its contact sheet",
    ("images=photos", "output=mine.png/t.csv"): r"mine\.png is a file, where a folder is needed",
    ("images=photos", "batch_size=0"): r"batch_size=0 is invalid",
    ("images=photos", "batch_size=x"): r"batch_size=x should be a valid integer",
    ("images=photos", "trainer.precision=bad"): r"Precision 'bad' is invalid",
}


@pytest.mark.parametrize("overrides", MISTAKES, ids=" ".join)
def test_a_mistake_is_named_before_an_image_is_read(
    start: Start, photos: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    for name in ("empty", "notes", "folder.csv"):
        Path(name).mkdir()
    for name in ("notes/a.txt", "notes/b.txt", "mine.png"):
        Path(name).touch()
    Path("labels.csv").write_text("image,label\n1.png,cat\n")
    Path("labels.png").touch()
    Path("linked.png").symlink_to("photos/1.png")
    (photos / "3.csv").write_text(",".join(predictions.COLUMNS))  # an earlier table of predictions
    (photos / "2.png").rename("an_image.csv")
    before = {file: file.read_bytes() for file in Path().rglob("*") if file.is_file()}
    monkeypatch.setattr(classify, "decode_image", None)
    with pytest.raises(UserError, match=MISTAKES[overrides]):
        start(*overrides)
    after = {file: file.read_bytes() for file in Path().rglob("*") if file.is_file()}
    assert after == before


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_earlier_output_is_replaced(start: Start, photos: Path, kind: str) -> None:
    output = Path(f"t.{kind}")
    start("images=photos/1.png", f"output={output}")
    output.write_bytes(b"\xef\xbb\xbf" + output.read_bytes())  # as Excel saves it
    start("images=photos/2.png", f"output={output}")
    assert "photos/2.png" in output.read_text()
    assert "photos/1.png" not in output.read_text()


def test_many_images_come_in_whole_batches(
    start: Start, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start("images=photos/?.png", "output=a.csv", "batch_size=3")
    counts = []
    logits = Inference.logits

    def watched(inference: Inference, images: torch.Tensor, batch_size: int) -> torch.Tensor:
        counts.append(len(images))
        return logits(inference, images, batch_size)

    monkeypatch.setattr(Inference, "logits", watched)
    monkeypatch.setattr(classify, "CHUNK", 7)
    start("images=photos/?.png", "output=b.csv", "batch_size=3")
    assert counts == [6, 4]
    assert rows("a.csv") == rows("b.csv")


def test_after_ctrl_c_everything_is_as_it_was(
    start: Start, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("t.csv").write_text(earlier := f"{','.join(predictions.COLUMNS)}\n")
    before = set(Path().rglob("*"))

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Inference, "logits", interrupted)
    for output in ("output=t.csv", "output=null"):
        with pytest.raises(KeyboardInterrupt):
            start("images=photos", output)
    assert set(Path().rglob("*")) == before
    assert Path("t.csv").read_text() == earlier


def test_of_equally_likely_classes_the_first_counts(trained_run: Path, photos: Path) -> None:
    classifier, _ = run.rebuild(trained_run / "checkpoints" / "best.ckpt")
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.zero_()
    found = classify.classify([photos / "1.png"], Inference(classifier, 0, "32-true"), 8)
    assert [found.rows[0][key] for key in ("class", "class2", "class3")] == list(
        classifier.classes[:3]
    )
    assert found.rows[0]["probability"] == 0.1


def test_of_two_classes_the_third_pick_is_blank(tmp_path: Path, photos: Path) -> None:
    two = ready(folder_data(write_folder(tmp_path / "set", small_data_set())))
    classifier, _ = run.build_classifier(compose(TINY, tmp_path / "two"), two)
    found = classify.classify([photos / "1.png"], Inference(classifier, 0, "32-true"), 8)
    for output in ("t.csv", "t.jsonl"):
        predictions.save(found, Path(output))
    row = rows("t.csv")[0]
    assert {row["class"], row["class2"]} == {"cat", "dog"}
    assert float(row["probability"]) + float(row["probability2"]) == pytest.approx(1, abs=2e-6)
    assert (row["class3"], row["probability3"]) == ("", "")
    line = json.loads(Path("t.jsonl").read_text().splitlines()[0])
    assert (line["class3"], line["probability3"]) == (None, None)


@cases(10)
@given(files=st.dictionaries(odd_names, altered(PNG), min_size=1, max_size=4), ending=st.booleans())
def test_images_of_any_names_are_in_the_table_as_often_as_they_can_be_read(
    start: Start, files: dict[bytes, bytes], ending: bool
) -> None:
    folder = fresh_folder()
    (folder / "photos").mkdir()
    for name, content in files.items():
        (folder / "photos" / os.fsdecode(name + b".png" * ending)).write_bytes(content)
    result: dict[str, Any] = {}
    typed = (f"images={folder}/photos", f"output={folder}/t.csv")
    message = ends_well(lambda: result.update(start(*typed)), "predict")
    assert not leftovers(folder)
    written = {file.name for file in folder.iterdir()} - {"photos"}
    assert written == (set() if message else {"t.csv", "t.png"})
    if message is None:
        table = rows(folder / "t.csv")
        not_read = len(result["broken"]) + result["left_out"]
        assert len(table) == result["images"] == len(files) - not_read
        assert all(Path(row["image"]).is_file() for row in table)
