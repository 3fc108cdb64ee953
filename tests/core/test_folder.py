"""Class folders of images, in a directory or an archive."""

import io
import os
import shutil
from pathlib import Path

import pytest
import torch
from data_sets import SOURCES, Files, folder_data, png, ready, small_data_set, write_folder
from PIL import Image

from cifar_lightning.data import FolderData
from cifar_lightning.errors import DataUnavailable, UserError


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("above", ["", "cifar10/deep/"])
def test_folders_and_archives_give_the_same_images(tmp_path: Path, kind: str, above: str) -> None:
    data = ready(folder_data(SOURCES[kind](tmp_path, small_data_set(above))))
    assert data.classes == ("cat", "dog")
    assert data.train.images.shape == (12, 3, 32, 32)
    assert data.train.images.dtype == torch.uint8
    # In the order of the file names, the classes interleaved.
    assert data.train.images[:, 0, 0, 0].tolist() == [10 * i for i in range(12)]
    assert data.train.labels.tolist() == [0, 1] * 6
    assert data.test.labels.tolist() == [0, 1] * 2
    assert data.test.images[1, :, 5, 5].tolist() == [10, 0, 200]


def test_numbers_in_names_count_by_value(tmp_path: Path) -> None:
    files = {}
    for part, count in (("train", 12), ("test", 4)):
        for i in range(count):
            kind = ("cat", "dog")[i % 2]
            files[f"{part}/{kind}/{i}_{kind}.png"] = png((10 * i, 0, 0))  # as fast.ai names them
    data = ready(folder_data(write_folder(tmp_path / "set", files)))
    assert data.train.images[:, 0, 0, 0].tolist() == [10 * i for i in range(12)]


def test_other_modes_become_rgb_and_rotated_photographs_are_turned(tmp_path: Path) -> None:
    files = small_data_set()
    files["train/cat/00000.png"] = png((90, 90, 90), mode="L")
    files["train/cat/00002.png"] = png((90, 80, 70), mode="RGBA")
    photograph = Image.new("RGB", (32, 32))
    photograph.paste((255, 255, 255), (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # taken upside down
    file = io.BytesIO()
    photograph.save(file, "png", exif=exif)
    files["train/cat/00004.png"] = file.getvalue()
    images = ready(folder_data(write_folder(tmp_path / "set", files))).train.images
    assert images[0, :, 0, 0].tolist() == [90, 90, 90]
    assert images[2, :, 0, 0].tolist() == [90, 80, 70]
    assert images[4, 0, :, 0].tolist() == [0] * 16 + [255] * 16


def test_the_cache_spares_decoding_until_the_source_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_folder(tmp_path / "set", small_data_set())
    decoded = []
    original = Image.open

    def counting(file: io.BytesIO) -> Image.Image:
        decoded.append(file)
        return original(file)

    monkeypatch.setattr(Image, "open", counting)
    ready(folder_data(path))
    assert len(decoded) == 16
    ready(folder_data(path))
    assert len(decoded) == 16
    changed = path / "train/cat/00000.png"
    changed.write_bytes(png((77, 0, 0)))
    os.utime(changed, ns=(1, 1))
    data = ready(folder_data(path))
    assert len(decoded) == 32
    assert data.train.images[0, 0, 0, 0] == 77
    (path / "train/cat/00012.png").write_bytes(png((1, 2, 3)))
    assert len(ready(folder_data(path)).train) == 13


def test_a_channel_that_never_changes_can_be_divided_by(tmp_path: Path) -> None:
    data = ready(folder_data(write_folder(tmp_path / "set", small_data_set())))
    assert data.mean[1] == 0.0
    assert data.std[1] == 1.0
    assert 0 < data.std[0] < 1


def test_a_damaged_cache_is_made_anew(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", small_data_set())
    ready(folder_data(path))
    (cache,) = (tmp_path / "cache").glob("*.pt")
    cache.write_bytes(cache.read_bytes()[:1000])
    assert len(ready(folder_data(path)).train) == 12


def test_image_size_resizes_and_has_a_cache_of_its_own(tmp_path: Path) -> None:
    files = small_data_set() | {"train/cat/00000.png": png((9, 9, 9), (40, 64))}
    path = write_folder(tmp_path / "set", files)
    assert ready(folder_data(path, image_size=24)).train.images.shape[2:] == (24, 24)
    assert ready(folder_data(path, image_size=36)).train.images.shape[2:] == (36, 36)


MISTAKES: dict[str, tuple[Files, str]] = {
    "mixed sizes": (
        {"train/dog/00011.png": png((0, 0, 0), (40, 30))},
        r"mixed sizes: .* 32 x 32 pixels, train/dog/00011.png has 40 x 30 pixels\.",
    ),
    "not an image": ({"train/dog/notes.png": b"hello"}, "train/dog/notes.png is not an image"),
    "truncated image": (
        {"train/dog/00001.png": png((1, 2, 3))[:60]},
        "train/dog/00001.png is not an image that can be read",
    ),
    "a class without test images": ({"train/emu/0.png": png((1, 1, 1))}, "differ in .* emu"),
    "two data sets": ({"b/train/cat/0.png": png((1, 1, 1))}, "more than one data set"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("kind", ["folder", "tar.xz", "zip"])
def test_what_is_wrong_with_the_images_is_named(tmp_path: Path, kind: str, mistake: str) -> None:
    extra, message = MISTAKES[mistake]
    path = SOURCES[kind](tmp_path, small_data_set() | extra)
    with pytest.raises(UserError, match=message):
        folder_data(path).prepare_data()
    assert not list((tmp_path / "cache").glob("*.pt"))


@pytest.mark.parametrize("kind", ["folder", "tar.xz", "zip"])
@pytest.mark.parametrize("places", [("train/emu",), ("train/emu", "test/emu")])
def test_an_empty_class_folder_is_named(tmp_path: Path, kind: str, places: tuple[str, ...]) -> None:
    source = write_folder(tmp_path / "whole", small_data_set("deep/"))
    for place in (*places, ".hidden", "train/.hidden", "elsewhere"):
        (source / "deep" / place).mkdir(parents=True)
    path = {
        "folder": lambda: source,
        "tar.xz": lambda: Path(shutil.make_archive(str(tmp_path / "x"), "xztar", source)),
        "zip": lambda: Path(shutil.make_archive(str(tmp_path / "x"), "zip", source)),
    }[kind]()
    named = ", ".join(sorted(places))
    with pytest.raises(UserError, match=f"no images in the class folders {named}\\. Wanted"):
        folder_data(path).prepare_data()


@pytest.mark.parametrize("kind", ["tar.xz", "tgz", "zip"])
@pytest.mark.parametrize("name", ["../outside.png", "train/../../outside.png", "/outside.png"])
def test_an_archive_cannot_write_outside(tmp_path: Path, kind: str, name: str) -> None:
    path = SOURCES[kind](tmp_path, small_data_set() | {name: png((1, 1, 1))})
    with pytest.raises(UserError, match="points out of it"):
        folder_data(path).prepare_data()
    assert not list(tmp_path.rglob("outside.png"))
    assert not list(tmp_path.parent.glob("outside.png"))


@pytest.mark.parametrize("kind", ["tar.xz", "tgz", "tar", "zip"])
def test_a_truncated_archive_is_named(tmp_path: Path, kind: str) -> None:
    path = SOURCES[kind](tmp_path, small_data_set())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"set\.\S+ is damaged or not an archive|holds no images"):
        folder_data(path).prepare_data()


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    files = {name: content for name, content in small_data_set().items() if "test" not in name}
    with pytest.raises(UserError, match=r"no images for test\. Wanted: train/<class>/"):
        folder_data(write_folder(tmp_path / "set", files)).prepare_data()


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    files = {name: content for name, content in small_data_set().items() if "dog" not in name}
    with pytest.raises(UserError, match=r"one class, cat: .* Wanted: .*, of two classes or more"):
        folder_data(write_folder(tmp_path / "set", files)).prepare_data()


def test_oblong_images_are_refused_until_they_are_cut(tmp_path: Path) -> None:
    files = {
        f"{part}/{kind}/{i}.png": png((9 * i, 9, 9), (40, 30))
        for part in ("train", "test")
        for kind in ("cat", "dog")
        for i in range(4)
    }
    path = write_folder(tmp_path / "set", files)
    with pytest.raises(UserError, match=r"40 x 30 pixels; .* data\.image_size=30 cuts each"):
        ready(folder_data(path))
    assert ready(folder_data(path, image_size=30)).image_size == 30


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"nowhere: there is no such file"):
        folder_data(tmp_path / "nowhere").prepare_data()
    with pytest.raises(DataUnavailable, match="CIFAR10_FOLDER"):
        FolderData(None).prepare_data()
