"""Pictures as arrays: mosaics of images with coloured frames, and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from umeta import artifacts
from umeta.types import EpisodeSpec, TaskDistribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIGHT, WRONG, PLAIN, EXAMPLE = (34, 160, 80), (214, 50, 50), (255, 255, 255), (60, 90, 200)
TILE = 56  # pixels of one image in a mosaic
ROWS, COLUMNS = 30, 12  # of a picture of classes, at most


def save(array: np.ndarray, path: Path) -> None:
    """[H, W, 3] uint8 as PNG."""
    from PIL import Image

    with artifacts.replacing(path) as temporary:
        Image.fromarray(array).save(temporary, format="PNG")


def tile(pixels: np.ndarray, frame: tuple[int, int, int] = PLAIN, size: int = TILE) -> np.ndarray:
    """One image [C, H, W] uint8 enlarged or reduced to [size, size, 3] with a frame."""
    from PIL import Image

    array = np.moveaxis(np.broadcast_to(pixels, (3, *pixels.shape[1:])), 0, -1)
    out = np.full((size, size, 3), 255, dtype=np.uint8)
    out[1:-1, 1:-1] = frame  # the white line around it keeps neighbours apart
    out[4:-4, 4:-4] = np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize((size - 8, size - 8)))
    return out


def mosaic(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Rows of tiles, padded with white to the longest."""
    width = max(len(row) for row in rows)
    blank = np.full_like(rows[0][0], 255)
    return np.concatenate([np.concatenate([*row, *[blank] * (width - len(row))], axis=1) for row in rows])


def proposed(tasks: TaskDistribution, episode: EpisodeSpec, most: int = 12) -> np.ndarray:
    """Items of proposed classes, one class a row, from the first tasks."""
    batch = tasks.sample(np.arange(-(-most // episode.way)), episode=episode, seed=0)
    support, query = batch.support(), batch.query()
    x = torch.cat([support.x, query.x], dim=1).mul(255).byte().cpu().numpy()
    y = torch.cat([support.y, query.y], dim=1).cpu().numpy()
    classes = [x[t][y[t] == label] for t in range(len(x)) for label in range(episode.way)]
    return mosaic([[tile(image) for image in images[:most]] for images in classes[:most]])


def curve(path: Path, steps: Sequence[float], values: Mapping[str, Sequence[float]], xlabel: str) -> None:
    """Lines over steps, one panel each, smoothed over a twentieth of their length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(values), 2.6), layout="constrained")
    for axis, (name, ys) in zip(figure.subplots(1, len(values), squeeze=False)[0], values.items(), strict=True):
        window = max(1, len(ys) // 20)
        smooth = np.convolve(ys, np.ones(window) / window, mode="valid")
        axis.plot(steps, ys, color="#bcd", linewidth=0.8)
        axis.plot(list(steps)[window - 1 :], smooth, color="#05a")
        axis.set(xlabel=xlabel, title=name)
    save(rendered(figure), path)


def rendered(figure: Figure, dpi: int = 110) -> np.ndarray:
    """A figure as an array [H, W, 3] uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def captioned(rows: Sequence[tuple[str, Sequence[np.ndarray]]]) -> np.ndarray:
    """Rows of tiles, at least one in each, right of their captions: [H, W, 3] uint8."""
    captions = np.concatenate([caption(text) for text, _ in rows])
    return np.concatenate([captions, mosaic([tiles for _, tiles in rows])], axis=1)


def caption(text: str, width: int = 160) -> np.ndarray:
    """A line of text as high as a tile, cut where it is too long: [TILE, width, 3] uint8."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 13)
    picture = Image.new("RGB", (width, TILE), PLAIN)
    text = " ".join(text.split())
    while len(text) > 1 and font.getlength(text) > width - 12:
        text = text[:-2] + "…"
    ImageDraw.Draw(picture).text((6, TILE // 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(picture)
