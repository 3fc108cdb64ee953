"""Class folders of images, in a directory or an archive: read, or refused in one message."""

import bz2
import gzip
import io
import lzma
import os
import re
import shutil
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Bomb
from data_sets import (
    CLASS_FOLDERS,
    PNG,
    SOURCES,
    Files,
    bomb,
    data_set,
    folder_data,
    png,
    ready,
    small_data_set,
    tar_of,
    write_folder,
    write_tar,
    write_zip,
    zip_of,
)
from endings import altered, cases, ends_well, fresh_folder, leftovers, odd_names
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cifar_lightning.data import FolderData, archives
from cifar_lightning.errors import DataUnavailable, UserError

COMPRESSED: dict[str, Callable[..., bytes]] = {
    ".tar.gz": gzip.compress,
    ".tar.bz2": bz2.compress,
    ".tar.xz": lzma.compress,
    ".tar.lzma": lambda content: lzma.compress(content, lzma.FORMAT_ALONE),
}


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (3, 90, 7)).save(file, "jpeg")
    return file.getvalue()


def read_or_named(path: Path, image_size: int | None = 8) -> str:
    """Reads all batches of a directory or archive; the message of a failure, empty for none."""
    cache = path.parent / "cache"
    before = {*cache.glob("*.pt")}

    def work() -> None:
        data = ready(FolderData(path, cache, image_size, batch_size=1, val_size=0))
        for images, labels, _ in (*data.train_dataloader(), *data.test_dataloader()):
            assert images.dtype is torch.uint8
            assert int(labels.max()) < len(data.classes)

    message = ends_well(work)
    assert not leftovers(path.parent)
    if message is not None:
        assert {*cache.glob("*.pt")} == before
    return message or ""


# --------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("kind", SOURCES)
def test_directories_and_archives_give_the_same_images(tmp_path: Path, kind: str) -> None:
    above = "cifar10/deep/" if kind in ("tgz", "zip") else ""
    data = ready(folder_data(SOURCES[kind](tmp_path, small_data_set(above))))
    assert data.classes == ("cat", "dog")
    assert data.train.images.shape == (12, 3, 32, 32)
    assert data.train.images.dtype == torch.uint8
    # In the order of the numbers in the file names, the classes interleaved.
    assert data.train.images[:, 0, 0, 0].tolist() == [10 * i for i in range(12)]
    assert data.train.labels.tolist() == [0, 1] * 6
    assert data.test.labels.tolist() == [0, 1] * 2
    assert data.test.images[1, :, 5, 5].tolist() == [10, 0, 200]
    # A channel that never changes can be divided by.
    assert (data.mean[1], data.std[1]) == (0.0, 1.0)
    assert 0 < data.std[0] < 1


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
    changed = path / "train/cat/0.png"
    changed.write_bytes(png((77, 0, 0)))
    os.utime(changed, ns=(1, 1))
    data = ready(folder_data(path))
    assert len(decoded) == 32
    assert data.train.images[0, 0, 0, 0] == 77
    (path / "train/cat/12.png").write_bytes(png((1, 2, 3)))
    assert len(ready(folder_data(path)).train) == 13


def test_image_size_resizes_and_has_a_cache_of_its_own(tmp_path: Path) -> None:
    files = small_data_set() | {"train/cat/0.png": png((9, 9, 9), (40, 64))}
    path = write_folder(tmp_path / "set", files)
    for size in (24, 36):
        images = ready(folder_data(path, image_size=size)).train.images
        assert images.shape[2:] == (size, size)


def test_oblong_images_are_refused_until_they_are_cut(tmp_path: Path) -> None:
    files = {f"{folder}/0.png": png((9, 9, 9), (40, 30)) for folder in CLASS_FOLDERS}
    path = write_folder(tmp_path / "set", files)
    with pytest.raises(UserError, match=r"40 x 30 pixels; .* data\.image_size=30 crops each"):
        ready(FolderData(path, tmp_path / "cache", batch_size=1, val_size=0))
    assert not read_or_named(path, image_size=30)


# -------------------------------------------------------------------- mistakes in the data

SMALL = small_data_set()
MISTAKES: dict[str, tuple[Files, str]] = {
    "mixed sizes": (
        SMALL | {"train/dog/11.png": png((0, 0, 0), (40, 30))},
        r"mixed sizes: \S+ has \d+ x \d+ pixels, \S+ has \d+ x \d+ pixels\.",
    ),
    "not an image": (
        SMALL | {"train/dog/a.png": b"hello"},
        "train/dog/a.png cannot be read as an image",
    ),
    "truncated image": (
        SMALL | {"train/dog/1.png": png((1, 2, 3))[:60]},
        "train/dog/1.png cannot be read as an image",
    ),
    "a class without test images": (
        SMALL | {"train/emu/0.png": PNG},
        "train and test differ in the classes emu",
    ),
    "two data sets": (SMALL | {"b/train/cat/0.png": PNG}, "more than one data set"),
    "no test split": (
        {name: content for name, content in SMALL.items() if "test" not in name},
        "no images for test. Expected: train/<class>/",
    ),
    "one class": (
        {name: content for name, content in SMALL.items() if "dog" not in name},
        "only one class, cat.",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("kind", ["folder", "tar.xz"])
def test_what_is_wrong_with_the_images_is_named(tmp_path: Path, kind: str, mistake: str) -> None:
    files, message = MISTAKES[mistake]
    assert re.search(message, read_or_named(SOURCES[kind](tmp_path, files), image_size=None))


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
@pytest.mark.parametrize("places", [("train/emu",), ("train/emu", "test/emu")])
def test_an_empty_class_folder_is_named(tmp_path: Path, kind: str, places: tuple[str, ...]) -> None:
    source = write_folder(tmp_path / "whole", small_data_set("deep/"))
    for place in (*places, ".hidden", "train/.hidden", "elsewhere"):
        (source / "deep" / place).mkdir(parents=True)
    if kind != "folder":
        source = Path(shutil.make_archive(str(tmp_path / "x"), kind, source))
    named = ", ".join(sorted(places))
    assert f"no images in the class folders {named}. Expected" in read_or_named(source)


def test_a_missing_path_and_what_is_no_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"nowhere: there is no such file"):
        folder_data(tmp_path / "nowhere").prepare_data()
    with pytest.raises(DataUnavailable, match="CIFAR10_FOLDER"):
        FolderData(None).prepare_data()
    os.mkfifo(tmp_path / "pipe.tar")  # would be waited for
    assert "is neither a file nor a directory" in read_or_named(tmp_path / "pipe.tar")


# --------------------------------------------------------------------------- directories

LINKS = ("to a file", "outside", "nowhere", "circle", "up")
KINDS = ("file", "file", "file", *LINKS, "pipe", "folder")


def put(file: Path, kind: str, content: bytes, outside: Path) -> None:
    if kind == "file":
        file.write_bytes(content)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        leads_to: dict[str, str | Path] = {
            "to a file": "0.png",
            "outside": outside / "secret.png",
            "nowhere": "nowhere",
            "circle": file.name,
            "up": "../..",
        }
        file.symlink_to(leads_to[kind])


@cases(60)
@given(
    odd=st.lists(
        st.tuples(
            st.sampled_from(CLASS_FOLDERS),
            odd_names,
            st.sampled_from(["", "/0.png", ".png"]),  # a class of that name, or a file
            st.sampled_from(KINDS),
            st.one_of(altered(PNG), altered(jpeg()), st.just(png((1, 2, 3), (9, 8)))),
        ),
        max_size=3,
    ),
    image_size=st.sampled_from([8, None]),
)
def test_any_files_in_a_directory_are_read_or_named(
    odd: list[tuple[str, bytes, str, str, bytes]], image_size: int | None
) -> None:
    folder = fresh_folder()
    (folder / "secret.png").write_bytes(PNG)
    path = write_folder(folder / "set", data_set())
    for place, name, ending, kind, content in odd:
        file = path / place / os.fsdecode(name + ending.encode())
        if file.parent.is_dir() or not os.path.lexists(file.parent):
            file.parent.mkdir(exist_ok=True)
            if not os.path.lexists(file):
                put(file, kind, content, folder)
    read_or_named(path, image_size)


def test_a_link_to_a_file_is_read_and_one_to_a_folder_is_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", data_set())
    (tmp_path / "mine.png").write_bytes(png((0, 0, 250), (8, 8)))
    (path / "train/cat/0.png").unlink()
    (path / "train/cat/0.png").symlink_to(tmp_path / "mine.png")
    data = ready(FolderData(path, tmp_path / "cache", batch_size=1, val_size=0))
    assert data.train.images[0, :, 0, 0].tolist() == [0, 0, 250]
    (path / "train/dog").rename(tmp_path / "dog")
    (path / "train/dog").symlink_to(tmp_path / "dog")
    message = read_or_named(path)
    assert "no images in the class folders train/dog" in message
    assert "Links to folders are not followed" in message


def test_what_no_memory_holds_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", data_set())
    message = read_or_named(path, image_size=10**6)
    assert "8 images of 1,000,000 x 1,000,000 pixels would need 72,000.0 GB" in message
    with (path / "train/cat/1.png").open("wb") as file:
        file.truncate(10**13)  # none of it is on the disk
    assert "train/cat/1.png was not read, because it has 10,000,000,000,000 bytes" in read_or_named(
        path
    )


# ------------------------------------------------------------------------------ archives

members = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("/etc/x.png", "../x.png", "train/../../x.png", "train/cat/../../../x.png"),
                *("train/cat/0.png", "train/cat", "train/cat/", "train", "./train/cat/9.png", "//"),
                *("train/cat/a\nb.png", "train/cat/画 '\".png", "train/cat/\x1b[31m.png", "", "."),
                *("x/train/cat/1.png", "__MACOSX/train/cat/1.png", "train/.cat/1.png", "a\\b.png"),
            ]
        ),
        altered(PNG),
        st.sampled_from(
            [
                *(tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE),
                *(tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE, b"?"),
            ]
        ),
    ),
    max_size=3,
)


@cases(100)
@given(data=st.data(), odd=members, kind=st.sampled_from([*COMPRESSED, ".tar", "deflated", "zip"]))
def test_any_archive_is_read_or_refused_and_writes_nothing_beside_the_cache(
    data: st.DataObject, odd: list[tuple[str, bytes, bytes]], kind: str
) -> None:
    folder = fresh_folder()
    if kind in ("deflated", "zip"):
        method = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
        path = folder / "set.zip"
        whole = zip_of(data_set(1), odd, method)
    else:
        path = folder / f"set{kind}"
        whole = COMPRESSED.get(kind, bytes)(tar_of(data_set(1), odd))
    path.write_bytes(data.draw(altered(whole)))
    read_or_named(path)
    assert {file.name for file in folder.iterdir()} <= {path.name, "cache"}


@pytest.mark.parametrize("kind", ["tar.xz", "tgz", "zip"])
@pytest.mark.parametrize(
    "name", ["../outside.png", "train/../../outside.png", "/train/cat/1.png", "../train/cat/1.png"]
)
def test_an_archive_cannot_write_outside(tmp_path: Path, kind: str, name: str) -> None:
    path = SOURCES[kind](tmp_path, data_set() | {name: PNG})
    assert "in it points outside of it." in read_or_named(path)
    assert not list(tmp_path.parent.rglob("outside.png"))


@pytest.mark.parametrize("kind", ["tar.xz", "tgz", "tar", "zip"])
def test_a_truncated_archive_is_named(tmp_path: Path, kind: str) -> None:
    path = SOURCES[kind](tmp_path, SMALL)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = read_or_named(path)
    assert "is damaged or not an archive" in message or "holds no images" in message


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
def test_links_and_devices_in_an_archive_are_no_images(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "set.tar"
    path.write_bytes(tar_of(data_set(), [("train/cat/5.png", b"", kind)]))
    assert len(ready(folder_data(path)).train) == 4


# ---------------------------------------------------------------------------------- bombs


@pytest.mark.parametrize("kind", ["zip", "file", "name"])
def test_an_archive_that_unpacks_to_more_than_a_gigabyte_is_refused_and_not_unpacked(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SMALL_ARCHIVE", 10**8)  # a tenth of it
    path = tmp_path / ("set.zip" if kind == "zip" else "set.tar.gz")
    path.write_bytes(bomb(kind, times=2))
    tracemalloc.start()
    message = read_or_named(path)
    _, used = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "unpacks to more than 100 times its size" in message
    assert used < 5 * 10**7


def test_a_single_large_file_in_an_archive_is_named(tmp_path: Path) -> None:
    files = {**data_set(), "train/cat/5.png": b"\0" * 100_000_001}
    for path in (write_tar(tmp_path / "set.tar", files), write_zip(tmp_path / "set.zip", files)):
        message = read_or_named(path)
        assert "train/cat/5.png was not read, because it has 100,000,001 bytes" in message
        assert "the limit for an image is 100,000,000" in message


# ------------------------------------------------------------------------- decoded images


@cases(30)
@given(data=st.data())
def test_an_altered_cache_is_made_anew(data: st.DataObject) -> None:
    folder = fresh_folder()
    path = write_folder(folder / "set", data_set(1))
    ready(FolderData(path, folder / "cache", batch_size=1, val_size=0))
    (cache,) = (folder / "cache").glob("*.pt")
    if data.draw(st.booleans()):
        # The last bytes of an image's own pixels nobody can tell from others.
        content = cache.read_bytes()
        cut = data.draw(st.integers(0, len(content) - 1))
        cache.write_bytes(content[:cut] + data.draw(st.binary(max_size=40)))
    else:
        content = torch.load(cache, weights_only=True)
        odd: st.SearchStrategy[Any] = st.sampled_from(
            [
                *(None, 5, "x", [], {}, [1], torch.tensor(5), torch.full((2,), 99)),
                *(torch.full((2,), -1), torch.zeros(2, 3, 8, 8), torch.zeros(0, 3, 8, 8).byte()),
                torch.zeros(1, dtype=torch.uint8).expand(10**6, 3, 10**6, 8),
            ]
        )
        for key in data.draw(st.lists(st.sampled_from(sorted(content)), min_size=1, max_size=2)):
            content[key] = data.draw(odd)
        torch.save(data.draw(st.sampled_from([content, [content], None])), cache)
    again = ready(FolderData(path, folder / "cache", batch_size=1, val_size=0))
    assert again.classes == ("cat", "dog")
    assert again.train.images[:, :, 0, 0].tolist() == [[200, 10, 10]] * 2


def test_code_in_the_cache_is_not_run(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", data_set())
    ready(folder_data(path))
    (cache,) = (tmp_path / "cache").glob("*.pt")
    torch.save(torch.load(cache, weights_only=True) | {"more": Bomb()}, cache)
    assert len(ready(folder_data(path)).train) == 4  # made anew
    assert not Path("was_called").exists()
    torch.save({"more": Bomb()}, cache)
    torch.load(cache, weights_only=False)  # it would have been
    assert Path("was_called").is_dir()
