"""Finding and decoding images."""

import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from cifar_lightning.data.decode import decode_image, find_images

WHITE, GREY, RED = [255, 255, 255], [128, 128, 128], [200, 30, 40]


def encoded(picture: Image.Image, kind: str = "png", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def photograph(width: int, height: int) -> Image.Image:
    """Smooth shapes of many sizes with some noise, nowhere symmetric."""
    y, x = np.mgrid[0:height, 0:width] / min(width, height)
    channels = [np.sin(9 * x + 5 * y * k) + np.cos(4 * y * x * k + k) for k in (1, 2, 3)]
    noise = np.random.default_rng(0).normal(0, 6, (height, width, 3))
    return Image.fromarray((np.stack(channels, 2) * 60 + 128 + noise).clip(0, 255).astype("uint8"))


def fairly(picture: Image.Image, size: int) -> NDArray[np.int64]:
    """The middle square by the same filter, from all pixels."""
    fitted = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
    return np.asarray(fitted).astype(int)


# ---------------------------------------------------------------------------- decoding


def grey16(kind: str, dtype: str) -> io.BytesIO:
    values = np.array([[0, 0x80FF], [0x0180, 65535]], dtype=dtype)
    return encoded(Image.fromarray(values), kind)


PIXELS: dict[str, tuple[io.BytesIO, list[list[int]]]] = {
    "RGB": (encoded(Image.new("RGB", (1, 1), tuple(RED))), [RED]),
    "grey": (encoded(Image.new("L", (1, 1), 128)), [GREY]),
    "black and white": (encoded(Image.new("1", (1, 1), 1)), [WHITE]),
    "half transparent": (encoded(Image.new("RGBA", (1, 1), (0, 0, 0, 127))), [GREY]),
    "transparent grey": (encoded(Image.new("LA", (1, 1), (0, 0))), [WHITE]),
    "transparent colour": (encoded(Image.new("RGB", (1, 1)), transparency=(0, 0, 0)), [WHITE]),
    "palette": (encoded(Image.new("RGB", (1, 1), tuple(RED)).quantize()), [RED]),
    "transparent GIF": (encoded(Image.new("P", (1, 1), 0), "gif", transparency=0), [WHITE]),
    "16 bits PNG": (grey16("png", "<u2"), [[0] * 3, GREY, [1] * 3, WHITE]),
    "16 bits PGM": (
        io.BytesIO(b"P5 2 2 65535\n" + np.array([0, 0x80FF, 0x0180, 65535], ">u2").tobytes()),
        [[0] * 3, GREY, [1] * 3, WHITE],
    ),
    "32 bits": (
        encoded(Image.fromarray(np.array([[-1000, 1_000_000]], np.int32)), "tiff"),
        [[0] * 3, WHITE],
    ),
    "0 to 1": (
        encoded(Image.fromarray(np.array([[0.0, 0.502, np.nan, 1.0]], np.float32)), "tiff"),
        [[0] * 3, GREY, [0] * 3, WHITE],
    ),
    "0 to 255": (
        encoded(Image.fromarray(np.array([[0, 128.0, np.inf, 255]], np.float32)), "tiff"),
        [[0] * 3, GREY, [0] * 3, WHITE],
    ),
    "all alike, below 0": (
        encoded(Image.fromarray(np.array([[-5.0]], np.float32)), "tiff"),
        [[0] * 3],
    ),
    "CMYK": (encoded(Image.new("CMYK", (1, 1), (55, 225, 215, 0)), "tiff"), [RED]),
}


@pytest.mark.parametrize("kind", PIXELS)
def test_every_kind_of_pixel_becomes_rgb(kind: str) -> None:
    file, expected = PIXELS[kind]
    file.seek(0)
    decoded = decode_image(file)
    assert decoded.dtype == np.uint8
    assert decoded.reshape(-1, 3).tolist() == expected


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif", "bmp", "tiff", "jpeg2000", "avif"])
@pytest.mark.parametrize("size", [None, 32])
def test_an_image_of_the_right_size_is_as_pillow_decodes_it(kind: str, size: int | None) -> None:
    file = encoded(photograph(32, 32), kind)
    expected = np.asarray(Image.open(file).convert("RGB"))
    assert np.array_equal(decode_image(file, size), expected)


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_picture_counts(kind: str) -> None:
    first, *others = (Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue"))
    decoded = decode_image(encoded(first, kind, save_all=True, append_images=others, lossless=True))
    assert decoded[4, 4].tolist() == pytest.approx([255, 0, 0], abs=2)


# Odd sizes, of which eighths and quarters are no whole numbers.
@pytest.mark.parametrize("shape", [(640, 427), (33, 300)])
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_resized_images_are_what_all_pixels_give(kind: str, shape: tuple[int, int]) -> None:
    file = encoded(photograph(*shape), kind)
    difference = np.abs(decode_image(file, 32).astype(int) - fairly(Image.open(file), 32))
    assert difference.max() <= 3
    assert difference.mean() < 0.5


def test_the_middle_square_counts() -> None:
    picture = Image.new("RGB", (90, 30), "red")
    picture.paste("lime", (30, 0, 60, 30))
    for turned in (picture, picture.transpose(Image.Transpose.ROTATE_90)):
        red, green, _ = np.moveaxis(decode_image(encoded(turned), 10), 2, 0)
        assert green.min() > 230  # at the edge, the filter sees a little of what lies beyond
        assert red.max() < 25


@pytest.mark.parametrize(
    ("kind", "orientation", "size"),
    [("jpeg", 3, 32), ("jpeg", 5, 32), *((kind, 6, None) for kind in ("png", "tiff", "webp"))],
)
def test_photographs_are_turned_as_they_say(kind: str, orientation: int, size: int | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(photograph(302, 201), kind, exif=exif)
    plain = Image.open(encoded(photograph(302, 201), kind)).convert("RGB")
    plain.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(plain)
    expected = np.asarray(upright).astype(int) if size is None else fairly(upright, size)
    decoded = decode_image(file, size)
    assert decoded.shape == expected.shape
    assert np.abs(decoded.astype(int) - expected).max() <= 3


def test_damaged_exif_does_not_matter(recwarn: pytest.WarningsRecorder) -> None:
    file = encoded(photograph(32, 32), "jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    assert decode_image(file, 32).shape == (32, 32, 3)


def whole(kind: str) -> bytes:
    return encoded(photograph(64, 64), kind).getvalue()


BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing.png": (b"", "the file is empty"),
    "text.png": (b"hello", "not an image of a known format"),
    "half.png": (whole("png")[:2000], "image file is truncated"),
    "half.jpg": (whole("jpeg")[:1000], "image file is truncated"),
    "half.webp": (whole("webp")[:500], ""),
    "half.gif": (whole("gif")[:1500], "image file is truncated"),
    "drawing.png": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "EPS files are not supported",  # Ghostscript would run them
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_said(tmp_path: Path, name: str) -> None:
    content, reason = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason or "."):
        decode_image(tmp_path / name, 32)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("nowhere")
    (tmp_path / "circle.png").symlink_to("circle.png")
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (
        ("folder.png", "Is a directory"),
        ("link.png", "No such file"),
        ("circle.png", "Too many levels of symbolic links"),
        ("pipe.png", "not a regular file"),
    ):
        with pytest.raises(ValueError, match=reason):
            decode_image(tmp_path / name)


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(ValueError, match=r"more than 1,000 pixels"):
        decode_image(encoded(photograph(32, 32)), 32)


# ----------------------------------------------------------------------------- finding

Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    def make(*names: str) -> Path:
        for name in names:
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return tmp_path

    return make


def names(images: str) -> list[str]:
    return [str(path) for path in find_images(images)[0]]


def test_a_folder_is_its_images_and_its_folders_in_natural_order(tree: Tree) -> None:
    first, then = ["p/1.mpo", "p/2.JPG", "p/10.png"], ["p/b9/1.gif", "p/b10/1.tif", "p/x.png/1.png"]
    tree(*then[::-1], *first[::-1])
    assert names("p") == first + then
    tree(".cache/q/1.png")  # that the folder above is hidden does not matter
    assert names(".cache/q") == [".cache/q/1.png"]


def test_paths_are_as_they_were_typed(tree: Tree) -> None:
    folder = tree("p/1.png")
    assert names(f"{folder}/p") == names(f"{folder}/p/1.png") == [f"{folder}/p/1.png"]
    assert names(f"{folder}/*/1*") == [f"{folder}/p/1.png"]
    assert names("p/1.png") == names("p/") == names("p/*") == ["p/1.png"]
    assert names("p/../p/*.png") == ["p/../p/1.png"]


def test_what_a_folder_holds_beside_images_is_counted(tree: Tree) -> None:
    tree("p/1.png", "p/a.txt", "p/b.TXT", "p/.DS_Store", "p/._1.png", "p/.git/1.png", "p/README")
    tree("p/__MACOSX/1.png", "p/data.h5", "p/drawing.eps")
    found, left_out = find_images("p")
    assert found == [Path("p/1.png")]
    assert left_out == {".txt": 2, "hidden": 4, "without an extension": 1, ".h5": 1, ".eps": 1}


def test_a_pattern_takes_every_ending_and_no_folders(tree: Tree) -> None:
    tree("p/1.png", "p/notes", "p/q/2.png", "p/r.png/3.png")
    assert names("p/*") == ["p/1.png", "p/notes", "p/r.png"]  # which will be named as a folder
    assert names("p/**/*.png") == ["p/1.png", "p/q/2.png", "p/r.png", "p/r.png/3.png"]
    assert names("p/[0-9].png") == ["p/1.png"]
    assert names("nowhere") == names("p/*.jpg") == []


@pytest.mark.parametrize("name", ["a[1].png", "*.png", "?", "~copy.png"])
def test_a_path_that_exists_is_not_taken_for_a_pattern(tree: Tree, name: str) -> None:
    tree("a1.png", name)
    assert names(name) == [name]


def test_links_are_followed_once(tree: Tree) -> None:
    folder = tree("p/1.png", "elsewhere/2.png")
    (folder / "p/circle").symlink_to(folder / "p")
    (folder / "p/linked").symlink_to(folder / "elsewhere")
    (folder / "p/linked2").symlink_to(folder / "elsewhere")
    (folder / "p/nowhere.png").symlink_to("nowhere")
    (folder / "p/a.png").symlink_to("1.png")
    assert names("p") == ["p/1.png", "p/a.png", "p/linked/2.png", "p/nowhere.png"]
    assert names("p/nowhere.png") == ["p/nowhere.png"]


@pytest.fixture
def as_somebody() -> Iterator[Path]:
    """A folder of a user who is not root, whom this process is for the time."""
    folder = Path(tempfile.mkdtemp())
    was_root = os.geteuid() == 0
    if was_root:
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    yield folder
    if was_root:
        os.seteuid(0)
    shutil.rmtree(folder)


def test_what_may_not_be_read_is_named(as_somebody: Path) -> None:
    for name in ("1.png", "2.png", "locked/3.png", "listed/4.png"):
        (as_somebody / name).parent.mkdir(exist_ok=True)
        (as_somebody / name).write_bytes(whole("png"))
    for name, mode in (("2.png", 0), ("locked", 0), ("listed", 0o400)):
        (as_somebody / name).chmod(mode)
    found, _ = find_images(str(as_somebody))
    matches, _ = find_images(f"{as_somebody}/listed/*")
    reasons = {}
    for path in found:
        try:
            decode_image(path)
        except ValueError as error:
            reasons[path.name] = str(error)
    (as_somebody / "locked").chmod(0o700)
    (as_somebody / "listed").chmod(0o700)
    assert reasons == dict.fromkeys(("2.png", "4.png", "locked"), "Permission denied")
    assert [path.name for path in found] == ["1.png", "2.png", "4.png", "locked"]
    assert [path.name for path in matches] == ["4.png"]
