"""Image files, decoded once into one memory-mapped uint8 array."""

from __future__ import annotations

import contextlib
import io
import json
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np

from umeta.data.archives import File
from umeta.errors import LeftOut, UserError
from umeta.runtime import artifacts

if TYPE_CHECKING:
    from PIL.Image import Image

BLOCK = 2048  # pictures decoded before they are written
ONE_LARGE = threading.Lock()  # one picture at a time of those that take hundreds of megabytes
# Of the formats that Pillow knows; not those that it hands to another program (EPS) or that hold what is no picture.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
FOREIGN = (".cr2", ".dng", ".heic", ".heif", ".nef", ".psd", ".raw", ".svg")  # pictures of formats that are not read
NAMED = 20  # files that a message names, at most
COLOURED = 30  # difference of a pixel's channels that the eye takes for colour, and JPEG does not make of grey


@dataclass(frozen=True)
class Rule:
    """How an image of any size becomes `size` x `size`: the largest centred square, resized with antialiasing."""

    size: int
    channels: Literal[1, 3]
    invert: bool = False
    """black on white becomes white on black"""
    pad: bool = False
    """the whole image instead, on a square of the colour that its border has"""


def open_image(data: bytes, rule: Rule, *, quick: bool = False) -> np.ndarray:
    """One image file's bytes as uint8 [C, size, size]. Pillow raises nearly anything when it is not an image.

    quick: a JPEG is decoded at a fraction of its size, which takes a fraction of the time and is not quite the same.
    """
    from PIL import Image

    picture = Image.open(io.BytesIO(data), formats=known_formats())
    if quick:
        picture.draft(None, (2 * rule.size, 2 * rule.size))
    if picture.width * picture.height <= (Image.MAX_IMAGE_PIXELS or 0):
        return square_pixels(picture, rule)
    with ONE_LARGE:
        picture.draft(None, (4 * rule.size, 4 * rule.size))  # a JPEG is decoded at a fraction of its size
        return square_pixels(shrink(picture, 4 * rule.size), rule)


def shrink(picture: Image, side: int) -> Image:
    """Make a picture smaller, by a whole factor, to no less than `side` if it can be; no copy of its size is made."""
    factor = max(1, min(picture.size) // side)
    picture.load()
    orientation = picture.getexif().tobytes()  # what loading has not seen to
    if picture.mode in ("L", "RGB"):
        small = picture.reduce(factor)
    else:  # of palettes, say, there is no mean
        small = picture.resize((picture.width // factor, picture.height // factor), 0)
    small.info["exif"] = orientation
    return small


def is_picture(name: str) -> bool:
    """Whether a file's name ends like that of a picture, or has no ending; `notes.txt` and `Thumbs.db` do not."""
    from PIL import Image

    ending = PurePosixPath(name).suffix.lower()
    return not ending or ending in FOREIGN or Image.registered_extensions().get(ending) in FORMATS


def is_readable(file: File) -> bool:
    """Whether a file is an image."""
    return isinstance(try_decode(file.read, Rule(8, 3)), np.ndarray)


@cache
def known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def square_pixels(picture: Image, rule: Rule) -> np.ndarray:
    """Return a Pillow image of any size and mode as uint8 [C, size, size]."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits a pixel, or 32 of which that many or 8 are in use
        values = np.asarray(picture)
        shift = 8 if picture.mode != "I" or values.max(initial=0) > 255 else 0
        picture = Image.fromarray((values >> shift).clip(0, 255).astype(np.uint8))
    elif picture.mode == "F":
        values = np.asarray(picture)
        if not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"floats from {values.min():g} to {values.max():g}, expected 0 to 1")
        picture = Image.fromarray(np.rint(values * 255).astype(np.uint8))
    elif picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("L" if rule.channels == 1 else "RGB")
    side = max(picture.size) if rule.pad else min(picture.size)
    ground = border_colour(picture) if rule.pad else None
    if not rule.pad:
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side))
    if side != rule.size:
        filter = Image.Resampling.LANCZOS if side > rule.size else Image.Resampling.BICUBIC
        width, height = (max(1, round(length * rule.size / side)) for length in picture.size)
        picture = picture.resize((width, height), filter)
    array = np.asarray(picture, dtype=np.uint8).reshape(picture.height, picture.width, rule.channels)
    array = np.moveaxis(array if ground is None else pad_square(array, ground), -1, 0)
    return 255 - array if rule.invert else array


def border_colour(picture: Image) -> np.ndarray:
    """Return the median colour [C] of the outermost pixels."""
    width, height = picture.size
    strips = [(0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height)]
    pixels = [np.asarray(picture.crop(strip)).reshape(-1, len(picture.getbands())) for strip in strips]
    return np.median(np.concatenate(pixels), axis=0).astype(np.uint8)


def pad_square(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Put pixels [h, w, C] in the middle of a square of a colour [C]."""
    height, width, channels = pixels.shape
    side = max(height, width)
    square = np.empty((side, side, channels), np.uint8)
    square[:] = ground
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def has_colour(pixels: np.ndarray) -> bool:
    """Whether an image uint8 [3, h, w] has colour in at least a hundredth of it."""
    return float((np.ptp(pixels, axis=0) > COLOURED).mean()) >= 0.01


def try_decode(read: Callable[[], bytes], rule: Rule) -> np.ndarray | Exception:
    """`open_image` of what `read` gives, or why it cannot be read."""
    try:
        return open_image(read(), rule)
    except Exception as error:  # Pillow, zipfile and zlib raise nearly anything for damaged bytes
        return error


@contextlib.contextmanager
def silence_pillow() -> Iterator[None]:
    """Within the block Pillow gives no warnings. Not for several threads at once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is twice as large as what it warns of, Pillow refuses in any case
        yield


def describe_error(error: Exception) -> str:
    """Why a file is not readable."""
    if type(error).__name__ == "UnidentifiedImageError":  # which says no more than where in memory the file was
        return "of no known format"
    if type(error).__name__ == "DecompressionBombError":
        return "more than 178 million pixels; make it smaller"
    return f"{type(error).__name__}: {error}"


def describe_left_out(names: Sequence[str]) -> str:
    """Return what to tell of files that were left out: how many, and which."""
    some = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return f"{len(names)} left out, not readable as an image: {some}"


def decode(found: Sequence[File], rule: Rule, *, root: Path, skip_bad: bool = False) -> tuple[np.ndarray, list[int]]:
    """All images as uint8 [n, C, size, size], memory-mapped, and which of the files they are.

    Files that are no images and are not named like one are passed over. A damaged image is an error; with `skip_bad`
    it is left out, and a warning `LeftOut` names it. The result is cached by the place, the files' names, sizes and
    times (checksums in a zip) and the rule.

    Raises:
        UserError: an image cannot be read, which is named; or there is none.
    """
    identity = {
        "root": str(root.resolve()),
        "files": [(f.name, *f.stamp) for f in found],
        "rule": asdict(rule),
        "skip": skip_bad,
    }
    folder = artifacts.find_cached(f"images/{artifacts.hash_value(identity)}", "images")

    def make(folder: Path) -> list[str]:
        kept: list[int] = []
        bad: list[tuple[str, Exception]] = []

        def blocks() -> Iterator[np.ndarray]:
            with silence_pillow(), ThreadPoolExecutor(os.cpu_count()) as pool:
                for start in range(0, len(found), BLOCK):
                    some = found[start : start + BLOCK]
                    good = []
                    for i, result in enumerate(pool.map(lambda file: try_decode(file.read, rule), some), start):
                        if isinstance(result, np.ndarray):
                            kept.append(i)
                            good.append(result)
                        elif is_picture(found[i].name):
                            bad.append((found[i].name, result))
                    if good:
                        yield np.stack(good)

        artifacts.write_blocks(folder / "pixels.npy", blocks())
        if bad and not skip_bad:
            name, error = bad[0]
            more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
            raise UserError(
                f"{root}: '{name}' is not a readable image ({describe_error(error)}){more}; mend or remove "
                "it, or have it left out: data.skip_bad=true, and no --strict"
            )
        if not kept:
            why = f", such as '{bad[0][0]}' ({describe_error(bad[0][1])})" if bad else ""
            raise UserError(f"{root}: none of its {len(found)} files is a readable image{why}")
        artifacts.write_text(folder / "kept.json", json.dumps(kept))
        artifacts.write_json(folder / "bad.json", [f"{name} ({describe_error(error)})" for name, error in bad])
        return ["pixels.npy", "kept.json", "bad.json"]

    artifacts.make_cached(folder, "images", make)
    if bad := artifacts.read_json(folder / "bad.json"):
        warnings.warn(LeftOut(f"{root}: {describe_left_out(bad)}"), stacklevel=2)
    return artifacts.read_array(folder / "pixels.npy"), artifacts.read_json(folder / "kept.json")
