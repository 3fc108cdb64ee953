"""Finds image files and decodes any of them to the one kind of array that a network takes."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cifar_lightning.system.natural import natural_key

# What Pillow only recognises, or leaves to another program; Ghostscript would run what an EPS says.
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
LARGE = 16_000  # bytes of an image file; CIFAR-10's have about 1,000
# A large image is reduced by a whole factor first, to no less than this many times the wanted size:
# the filter that does the rest then sees all that it would make a difference of.
GAP = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def find_images(images: str) -> tuple[list[Path], Counter[str]]:
    """The files that a path or a pattern stands for, in the order of their names.

    Args:
        images: a file; a folder, for the images in it and in the folders in it; or a pattern such
            as `photos/**/*.jpg`. What exists is no pattern, whatever its name.

    Returns:
        The images, 2.png before 10.png, and how many files a folder held beside them: `hidden`, or
        by an ending that is no image's. A file that is named, or that a pattern fits, may have any
        ending.
    """
    # Here and below not pathlib's, which raise where a folder may be listed and no more.
    path, is_folder = Path(images), os.path.isdir
    left_out: Counter[str] = Counter()
    endings = image_endings()
    if is_folder(path):
        files, found = _files_below(path)
        for file in files:
            ending = file.suffix.lower()
            hidden = any(p.startswith((".", "__MACOSX")) for p in file.relative_to(path).parts)
            if ending in endings and not hidden:
                found.append(file)
            else:
                left_out["hidden" if hidden else ending or "without an ending"] += 1
    elif os.path.lexists(path):
        found = [path]
    else:
        # pathlib's takes no pattern that begins at the root.
        matches = {Path(match) for match in glob.glob(str(path), recursive=True)}  # noqa: PTH207
        found = [m for m in matches if m.suffix.lower() in endings or not is_folder(m)]
    return sorted(found, key=lambda file: [natural_key(part) for part in file.parts]), left_out


def image_endings() -> frozenset[str]:
    """The endings of the files that can be decoded, in lower case, with their dots."""
    formats = Image.registered_extensions()
    can = {*Image.OPEN, "MPO"} - {*NOT_DECODED}  # MPO, of some cameras, is opened as JPEG
    return frozenset(ending for ending, name in formats.items() if name in can)


def _files_below(top: Path) -> tuple[list[Path], list[Path]]:
    """All files in a folder and the folders in it, and those folders that may not be read.

    Linked folders are followed, but none is read twice.
    """
    files: list[Path] = []
    refused: list[Path] = []
    seen = {top.resolve()}
    for folder, folders, names in os.walk(
        top, onerror=lambda error: refused.append(Path(error.filename)), followlinks=True
    ):
        files += [Path(folder, name) for name in names]
        for name in sorted(folders):
            place = Path(folder, name).resolve()
            if place in seen:
                folders.remove(name)
            seen.add(place)
    return files, refused


def map_images(
    decode: Callable[[Item], Result], items: Sequence[Item], size: int, threads: Executor
) -> Iterable[Result]:
    """`decode` of each item, in order; in threads where they pay.

    They do where decoding is long: of small images, threads that wait for one another make three
    times the work of it.

    Args:
        decode: of one image.
        items: what it takes.
        size: of all the files together, in bytes.
        threads: to use or not.
    """
    return threads.map(decode, items) if size > LARGE * len(items) else map(decode, items)


def decode_image(source: Path | BinaryIO, size: int | None = None) -> NDArray[np.uint8]:
    """An image of any format as uint8 [H, W, 3], RGB: upright, on white, an animation's first.

    Args:
        source: a file.
        size: the image is cut to a square in its middle and resized to this many pixels; None
            leaves it as it is.

    Raises:
        ValueError: if it cannot be read; says why.
    """
    try:
        if isinstance(source, Path):
            _refuse_what_is_no_file(source)
        with Image.open(source) as opened:
            if opened.format in NOT_DECODED:
                raise ValueError(f"{opened.format} files are not read")
            reduced = None
            if size is not None:  # a JPEG can be decoded to fewer pixels
                reduced = opened.draft(None, (GAP * size, GAP * size))
            opened.load()
            image = _rgb(opened)
            if size is not None:
                # The last pixels of a reduced image may lie half beyond its edge.
                width, height = reduced[1][2:] if reduced else image.size
                image = _middle_square(image, width, height, size)
            return np.asarray(_upright(image, opened))
    except UnidentifiedImageError as error:
        raise ValueError("no image of a known format") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from error
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except Exception as error:  # Pillow's decoders raise whatever they meet
        raise ValueError(str(error) or type(error).__name__) from error


def _refuse_what_is_no_file(path: Path) -> None:
    if path.is_dir():
        os.listdir(path)  # noqa: PTH208  # which says so where it may not be read
        raise ValueError("a folder")
    if path.is_symlink() and not path.exists():
        raise ValueError("a link that leads nowhere")
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise ValueError("no regular file")
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")


def _rgb(image: Image.Image) -> Image.Image:
    """In RGB: what is transparent on white, more than 8 bits scaled to 8."""
    if image.mode.startswith("I;16"):
        image = _grey(np.asarray(image), 65535)
    elif image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        # These say nowhere what is white: the smallest of the usual values that is enough.
        usual = [white for white in (1, 255, 65535) if white >= values.max()]
        if usual and values.min() >= 0:
            image = _grey(values, usual[0])
        else:
            image = _grey(values - values.min(), np.ptp(values) or 1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey(values: NDArray[np.generic], white: float) -> Image.Image:
    """A grey image of values [H, W] from 0 to `white`."""
    scaled = values.astype(np.float64) * (255 / white)
    return Image.fromarray(scaled.round().astype(np.uint8))


def _middle_square(image: Image.Image, width: float, height: float, size: int) -> Image.Image:
    """The largest square in the middle, resized; what has that size stays as it is to the bit."""
    side = min(width, height)
    left, above = (width - side) / 2, (height - side) / 2
    return image.resize(
        (size, size),
        Image.Resampling.LANCZOS,  # the least blurred: benchmarks/results/2026-11-24-predict.md
        box=(left, above, left + side, above + side),
        reducing_gap=GAP,
    )


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    """An image turned as its file says, and as formats that turn it themselves do no more."""
    orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation == 1:
        return image
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)
