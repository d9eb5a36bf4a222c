"""Pictures as arrays: mosaics of images with coloured frames and captions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from umeta.runtime import artifacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG, PLAIN, EXAMPLE = (34, 160, 80), (214, 50, 50), (255, 255, 255), (60, 90, 200)
TILE = 56  # pixels of one image in a mosaic
ROWS, COLUMNS = 30, 12  # of a picture of classes, at most


def save(array: np.ndarray, path: Path) -> None:
    """Write a picture [H, W, 3] uint8 as PNG."""
    from PIL import Image

    with artifacts.replace_atomically(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


def tile(pixels: np.ndarray, frame: tuple[int, int, int] = PLAIN, size: int = TILE) -> np.ndarray:
    """Enlarge or reduce an image [C, H, W] uint8 to [size, size, 3] with a frame."""
    from PIL import Image

    array = np.moveaxis(np.broadcast_to(pixels, (3, *pixels.shape[1:])), 0, -1)
    out = np.full((size, size, 3), 255, dtype=np.uint8)
    out[1:-1, 1:-1] = frame  # the white line around it keeps neighbours apart
    out[4:-4, 4:-4] = np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize((size - 8, size - 8)))
    return out


def mosaic(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Put rows of tiles below each other, padded with white to the longest."""
    width = max(len(row) for row in rows)
    blank = np.full_like(rows[0][0], 255)
    return np.concatenate([np.concatenate([*row, *[blank] * (width - len(row))], axis=1) for row in rows])


def render(figure: Figure, dpi: int = 110) -> np.ndarray:
    """Render a figure as an array [H, W, 3] uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def add_captions(rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> np.ndarray:
    """Put rows of tiles, at least one in each, right of their captions: [H, W, 3] uint8."""
    captions = np.concatenate([caption(text) for text, _ in rows])
    return np.concatenate([captions, mosaic([tiles for _, tiles in rows])], axis=1)


def caption(text: str, width: int = 160) -> np.ndarray:
    """Draw a line of text as high as a tile, cut where it is too long: [TILE, width, 3] uint8."""
    from PIL import Image, ImageDraw, ImageFont

    text = " ".join(text.split())
    known = {path: glyphs(path) for path in dict.fromkeys([own_font(), *others_for(text)])}
    best = max(known, key=lambda path: sum(ord(c) in known[path] for c in text))
    text = "".join(c if ord(c) in known[best] else f"U+{ord(c):04X}" for c in text)
    font = ImageFont.truetype(best, 13)
    picture = Image.new("RGB", (width, TILE), PLAIN)
    while len(text) > 1 and font.getlength(text) > width - 12:
        text = text[:-2] + "…"
    ImageDraw.Draw(picture).text((6, TILE // 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(picture)


@cache
def own_font() -> str:
    """Return the file of the font that comes with matplotlib."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@cache
def glyphs(font: str) -> frozenset[int]:
    """Return the characters that a font draws; it draws a box for any other."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(font).get_charmap())
    except (OSError, RuntimeError):  # it is in matplotlib's list, and no longer there
        return frozenset()


def others_for(text: str) -> list[str]:
    """List the fonts of this machine, where the text has characters that our own font does not draw."""
    if all(ord(c) in glyphs(own_font()) for c in text):
        return []
    from matplotlib.font_manager import fontManager

    boxes = "Last Resort"  # which draws a box for every character there is
    return [font.fname for font in fontManager.ttflist if font.style == "normal" and boxes not in font.name]


def side_by_side(shown: Sequence[np.ndarray], width: int = 160) -> np.ndarray:
    """Reduce pictures to `width`, and put them in rows of four with a line of white between."""
    from PIL import Image

    height = round(width * shown[0].shape[0] / shown[0].shape[1])
    small = [np.asarray(Image.fromarray(one).resize((width - 4, height - 4))) for one in shown]
    framed = [np.pad(one, ((2, 2), (2, 2), (0, 0)), constant_values=255) for one in small]
    return mosaic([framed[i : i + 4] for i in range(0, len(framed), 4)])
