"""Finds image files, and decodes images of many formats to uint8 RGB arrays."""

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from cifar_lightning.system.natural import natural_key

# Formats that Pillow cannot decode itself; for EPS it calls Ghostscript, which runs the file.
NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
LARGE_FILE = 16_000  # bytes; an image of CIFAR-10 has about 1,000
# A large image is first reduced by an integer factor, which is fast, to at least this many times
# the wanted size. The slower filter then gives the same result as from all pixels.
REDUCING_GAP = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def find_images(images: str) -> tuple[list[Path], Counter[str]]:
    """List the image files that a path or a pattern matches, sorted by name.

    Args:
        images: a file; a folder, for all images below it; or a pattern such as
            `photos/**/*.jpg`. A path that exists is not read as a pattern.

    Returns:
        The images, 2.png before 10.png; and the number of other files in a folder, by extension,
        or as `hidden`. A file that is given, or that a pattern matches, may have any extension.
    """
    # Unlike pathlib's, these raise no error if a folder may be listed but not entered.
    path, is_folder = Path(images), os.path.isdir
    left_out: Counter[str] = Counter()
    extensions = image_extensions()
    if is_folder(path):
        files, found = _files_below(path)
        for file in files:
            extension = file.suffix.lower()
            hidden = any(p.startswith((".", "__MACOSX")) for p in file.relative_to(path).parts)
            if extension in extensions and not hidden:
                found.append(file)
            else:
                left_out["hidden" if hidden else extension or "without an extension"] += 1
    elif os.path.lexists(path):
        found = [path]
    else:
        # Not pathlib's glob, which refuses a pattern that begins at the root.
        matches = {Path(match) for match in glob.glob(str(path), recursive=True)}  # noqa: PTH207
        found = [m for m in matches if m.suffix.lower() in extensions or not is_folder(m)]
    return sorted(found, key=lambda file: [natural_key(part) for part in file.parts]), left_out


def image_extensions() -> frozenset[str]:
    """File name extensions of the formats that can be decoded: lower case, with the dot."""
    formats = Image.registered_extensions()
    decoded = {*Image.OPEN, "MPO"} - {*NOT_DECODED}  # MPO, of some cameras, is opened as JPEG
    return frozenset(extension for extension, name in formats.items() if name in decoded)


def _files_below(top: Path) -> tuple[list[Path], list[Path]]:
    """List all files below a folder, and the folders that may not be read.

    Links to folders are followed; no folder is read twice.
    """
    files: list[Path] = []
    unreadable: list[Path] = []
    seen = {top.resolve()}
    for folder, folders, names in os.walk(
        top, onerror=lambda error: unreadable.append(Path(error.filename)), followlinks=True
    ):
        files += [Path(folder, name) for name in names]
        for name in sorted(folders):
            target = Path(folder, name).resolve()
            if target in seen:
                folders.remove(name)
            seen.add(target)
    return files, unreadable


def map_images(
    decode: Callable[[Item], Result], items: Sequence[Item], size: int
) -> Iterator[Result]:
    """Apply `decode` to each item, in order, using threads if the images are large.

    Small images take three times as long in threads, which wait for one another.

    Args:
        decode: decodes one image.
        items: its arguments, one per image.
        size: of all files together, in bytes.

    Yields:
        The results, in order.
    """
    if size > LARGE_FILE * len(items):
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            yield from threads.map(decode, items)
    else:
        yield from map(decode, items)


def decode_image(source: Path | BinaryIO, size: int | None = None) -> NDArray[np.uint8]:
    """Decode an image of any format that Pillow decodes itself.

    Args:
        source: a path or an open file.
        size: the image is cropped to the square in its middle and resized to this height and width
            in pixels; None keeps all pixels.

    Returns:
        RGB, uint8 [H, W, 3]: upright, transparent pixels on white, the first frame of an animation.

    Raises:
        ValueError: if the image cannot be read; says why.
    """
    try:
        if isinstance(source, Path):
            if source.exists() and not (source.is_file() or source.is_dir()):
                raise ValueError("not a regular file")  # reading a pipe would never end
            if source.is_file() and source.stat().st_size == 0:
                raise ValueError("the file is empty")
        with Image.open(source) as opened:
            if opened.format in NOT_DECODED:
                raise ValueError(f"{opened.format} files are not supported")
            reduced = None
            if size is not None:  # a JPEG can be decoded to fewer pixels
                reduced = opened.draft(None, (REDUCING_GAP * size, REDUCING_GAP * size))
            opened.load()
            image = _rgb(opened)
            if size is not None:
                # The last pixels of a reduced image may lie half beyond its edge.
                width, height = reduced[1][2:] if reduced else image.size
                image = _middle_square(image, width, height, size)
            return np.asarray(_upright(image, opened))
    except UnidentifiedImageError as error:
        raise ValueError("not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels") from error
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    except Exception as error:  # damaged files make Pillow's decoders raise errors of all kinds
        raise ValueError(str(error) or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB: transparent pixels on white, more than 8 bits scaled to 8."""
    if image.mode.startswith("I;16"):
        image = _grey(np.asarray(image), 65535)
    elif image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        # The file does not say which value is white: take the smallest usual one that is enough.
        common = [white for white in (1, 255, 65535) if white >= values.max()]
        if common and values.min() >= 0:
            image = _grey(values, common[0])
        else:
            image = _grey(values - values.min(), np.ptp(values) or 1)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _grey(values: NDArray[np.generic], white: float) -> Image.Image:
    """Convert values [H, W] from 0 to `white` to a grey image."""
    scaled = values.astype(np.float64) * (255 / white)
    return Image.fromarray(scaled.round().astype(np.uint8))


def _middle_square(image: Image.Image, width: float, height: float, size: int) -> Image.Image:
    """Crop to the largest square in the middle and resize; an image of that size is unchanged."""
    side = min(width, height)
    left, above = (width - side) / 2, (height - side) / 2
    return image.resize(
        (size, size),
        Image.Resampling.LANCZOS,  # the least blurred: benchmarks/results/2026-11-24-predict.md
        box=(left, above, left + side, above + side),
        reducing_gap=REDUCING_GAP,
    )


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    """Rotate an image by its EXIF orientation, unless Pillow did so when it opened the file."""
    orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation == 1:
        return image
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(image)
