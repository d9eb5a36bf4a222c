"""What a folder of images is like, told from a sample of it."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umeta.data import archives, decode
from umeta.errors import UserError

SAMPLE = 300  # files looked at
LOOK = 128  # pixels a side that a picture is looked at in
ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
LONG = 1.45  # a picture longer than this, in widths, loses three tenths and more to the centred square


@dataclass(frozen=True)
class Look:
    """One picture."""

    width: int
    height: int
    colour: bool
    drawing: bool
    """thin strokes of one value on a flat ground of another"""
    light: bool
    """the ground is light"""


@dataclass(frozen=True)
class Survey:
    """The pictures of a folder, as a sample of them shows."""

    files: int
    width: int
    """usual width, pixels"""
    height: int
    """usual height, pixels"""
    side: int
    """usual shorter side, pixels: all that the largest centred square has"""
    colour: bool
    """at least a tenth of the pictures have colours"""
    drawings: bool
    """most pictures are grey line drawings"""
    dark_ink: bool
    """most of these drawings are dark on a light ground"""
    long: float
    """share of the pictures that are about 1.5 times as long as wide, or as wide as long, or more"""


def survey(root: Path) -> Survey:
    """Look at a sample of the images below a folder or in a zip.

    Files that are not images are passed over: reading them all is what finds those.

    Raises:
        UserError: no such folder or zip, no files in it, or no image among those looked at.
    """
    found = archives.list_files(root)
    sample = [found[i] for i in np.linspace(0, len(found) - 1, min(SAMPLE, len(found))).astype(int)]
    with decode.silence_pillow(), ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lambda file: attempt(file.read), sample))
    looks = [result for result in results if isinstance(result, Look)]
    if not looks:
        assert isinstance(results[0], Exception)
        raise UserError(
            f"{root}: none of the {len(sample)} files looked at is a readable image, such as '{sample[0].name}' "
            f"({decode.describe_error(results[0])})"
        )
    colour = float(np.mean([look.colour for look in looks])) >= 0.1
    drawings = [look for look in looks if look.drawing]
    return Survey(
        files=len(found),
        width=int(np.median([look.width for look in looks])),
        height=int(np.median([look.height for look in looks])),
        side=int(np.median([min(look.width, look.height) for look in looks])),
        colour=colour,
        drawings=not colour and 2 * len(drawings) > len(looks),
        dark_ink=2 * sum(look.light for look in drawings) > len(drawings),
        long=float(np.mean([max(look.width, look.height) > LONG * min(look.width, look.height) for look in looks])),
    )


def attempt(read: Callable[[], bytes]) -> Look | Exception:
    """`look` at what `read` gives, or why that cannot be done."""
    try:
        return look(read())
    except Exception as error:  # Pillow, zipfile and zlib raise nearly anything for damaged bytes
        return error


def look(data: bytes) -> Look:
    """One image file's bytes. Pillow raises nearly anything when it is not an image."""
    from PIL import Image

    picture: Image.Image = Image.open(io.BytesIO(data), formats=decode.known_formats())
    width, height = picture.size
    if picture.getexif().get(0x0112) in ROTATED:
        width, height = height, width
    picture.draft(None, (4 * LOOK, 4 * LOOK))  # a large JPEG is decoded at a fraction of its size, which is faster
    if max(picture.size) > LOOK:
        scale = LOOK / max(picture.size)
        small = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        # The nearest pixel, not a mean of several, so that a drawing keeps its two values.
        picture = picture.resize(small, Image.Resampling.NEAREST)
    pixels = decode.square_pixels(picture, decode.Rule(min(picture.size), 3))
    colour = decode.has_colour(pixels)
    drawing, light = strokes(pixels.mean(0))
    return Look(width, height, colour, drawing and not colour, light)


def strokes(grey: np.ndarray) -> tuple[bool, bool]:
    """Whether a picture [h, w] in [0, 255] is a line drawing, and whether its ground is light.

    It is when at least half of it is a flat ground, and at least half of the rest is near the value farthest from it:
    the shades of a photograph lie between.
    """
    low, high = float(grey.min()), float(grey.max())
    middle = float(np.median(grey))
    light = middle - low > high - middle
    span = high - low
    if span < 64:
        return False, light
    away = np.abs(grey - middle) / span  # from the ground, which is most of the picture
    rest = away[away > 0.2]
    return bool(rest.size <= grey.size / 2 and (rest > 0.6).mean() >= 0.5), light
