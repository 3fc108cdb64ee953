"""Image folders and archives of any kind: they are read, or one message says why not."""

import bz2
import gzip
import io
import lzma
import os
import resource
import tarfile
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
    bomb,
    data_set,
    folder_data,
    png,
    ready,
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

from cifar_lightning.data import FolderData

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


def endings_of(path: Path, image_size: int | None = 8) -> str | None:
    """How the data ends that are in a directory or archive."""
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
    return message


# --------------------------------------------------------------------------- directories

KINDS = (
    "file",
    "file",
    "file",
    "to a file",
    "outside",
    "nowhere",
    "circle",
    "up",
    "pipe",
    "folder",
)


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


@cases(120)
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
    endings_of(path, image_size)


def test_a_link_to_a_file_is_read_and_one_to_a_folder_is_named(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", data_set())
    (tmp_path / "mine.png").write_bytes(png((0, 0, 250), (8, 8)))
    (path / "train/cat/0.png").unlink()
    (path / "train/cat/0.png").symlink_to(tmp_path / "mine.png")
    data = ready(FolderData(path, tmp_path / "cache", batch_size=1, val_size=0))
    assert data.train.images[0, :, 0, 0].tolist() == [0, 0, 250]
    (path / "train/dog").rename(tmp_path / "dog")
    (path / "train/dog").symlink_to(tmp_path / "dog")
    message = endings_of(path)
    assert message is not None
    assert "no images in the class folders train/dog" in message
    assert "Links to folders are not followed" in message


def test_a_pipe_in_the_place_of_the_data_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.tar")
    message = endings_of(tmp_path / "pipe.tar")
    assert message is not None
    assert "is neither a file nor a directory" in message


def test_a_huge_file_in_a_directory_is_not_read(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", data_set())
    with (path / "train/cat/1.png").open("wb") as file:
        file.truncate(10**13)  # none of it is on the disk
    message = endings_of(path)
    assert message is not None
    assert "train/cat/1.png has 10,000,000,000,000 bytes" in message


def test_images_that_no_memory_holds_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "set", data_set())
    message = endings_of(path, image_size=10**6)
    assert message is not None
    assert "8 images of 1,000,000 x 1,000,000 pixels would need 72,000.0 GB" in message


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


@cases(200)
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
    endings_of(path)
    assert {file.name for file in folder.iterdir()} <= {path.name, "cache"}


def test_names_that_climb_out_of_an_archive_are_refused(tmp_path: Path) -> None:
    for number, name in enumerate(("/tmp/x/train/cat/1.png", "../train/cat/1.png")):
        for write, ending in ((write_tar, ".tar.xz"), (write_zip, ".zip")):
            path = write(tmp_path / f"{number}{ending}", {**data_set(), name: PNG})
            message = endings_of(path)
            assert message is not None
            assert "which points out of it. It was not read." in message


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
)
def test_links_and_devices_in_an_archive_are_no_images(tmp_path: Path, kind: bytes) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png((0, 250, 0), (8, 8)))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in data_set().items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        odd = tarfile.TarInfo("train/cat/5.png")
        odd.type, odd.linkname, odd.devmajor, odd.devminor = kind, str(secret), 1, 5  # /dev/zero
        archive.addfile(odd)
    path = tmp_path / "set.tar"
    path.write_bytes(file.getvalue())
    data = ready(folder_data(path, image_size=8))
    assert len(data.train) == 4
    assert not (data.train.images[:, 1] == 250).any()


def test_a_link_in_a_zip_is_the_text_that_it_is(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set.zip", data_set())
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("train/cat/5.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    message = endings_of(path)
    assert message is not None
    assert "train/cat/5.png is not an image that can be read: no image of a known format" in message


def test_an_encrypted_archive_and_one_of_another_compression_are_named(tmp_path: Path) -> None:
    for field, value, said in ((6, 1, "encrypted"), (8, 99, "compression")):
        content = bytearray(zip_of(data_set(), [], zipfile.ZIP_STORED))
        # In the headers of the first file, and in the directory at the end.
        content[field] = value
        content[content.index(b"PK\1\2") + 2 + field] = value
        path = tmp_path / f"{said}.zip"
        path.write_bytes(content)
        message = endings_of(path)
        assert message is not None
        assert said in message


# ---------------------------------------------------------------------------------- bombs


@pytest.mark.parametrize("kind", ["zip", "file", "name"])
def test_an_archive_that_unpacks_to_more_than_a_gigabyte_is_refused_and_not_unpacked(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / ("set.zip" if kind == "zip" else "set.tar.gz")
    path.write_bytes(bomb(kind))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = endings_of(path)
    assert message is not None
    assert "unpacks to more than 100 times its size" in message
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert used < 500_000  # kB


def test_a_single_large_file_in_an_archive_is_named(tmp_path: Path) -> None:
    files = {**data_set(), "train/cat/5.png": b"\0" * 100_000_001}
    for path in (
        write_tar(tmp_path / "set.tgz", files, "w:gz"),
        write_zip(tmp_path / "set.zip", files),
    ):
        message = endings_of(path)
        assert message is not None
        assert "train/cat/5.png has 100,000,001 bytes, and 100,000,000 are the limit" in message


def test_an_archive_in_an_archive_is_no_image(tmp_path: Path) -> None:
    inner = gzip.compress(b"\0" * 10**8)
    message = endings_of(write_tar(tmp_path / "set.tar", data_set() | {"train/cat/5": inner}, "w"))
    assert message is not None
    assert "train/cat/5 is not an image that can be read" in message


# ------------------------------------------------------------------------- decoded images


@cases(60)
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
