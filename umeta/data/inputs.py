"""Images as a person has them (arrays, files, Pillow images), turned into items of a learner."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from umeta.data import archives, decode
from umeta.data.images import to_pixels
from umeta.errors import UserError
from umeta.parts import SourceTraits


@dataclass(frozen=True)
class Format:
    """What the items of a learner are, so that new images become the same.

    Files and Pillow images of any size and mode go the way of the learner's own data source: the largest centred
    square, or the whole where the source pads, resized with antialiasing, inverted where it inverts. Arrays count as
    items already: they must have the shape and are neither resized nor inverted.
    """

    shape: tuple[int, ...]  # C, H, W
    invert: bool = False
    pad: bool = False

    @classmethod
    def of(cls, source: Any, shape: tuple[int, ...]) -> Format:
        """Return the format of a data source whose items have this shape."""
        rule = SourceTraits.of(source).rule
        return cls(shape, rule.invert, rule.pad) if rule else cls(shape)

    @property
    def rule(self) -> decode.Rule:
        """How a picture becomes an item. Raises UserError when items are not square."""
        channels, height, width = self.shape
        if height != width or channels not in (1, 3):
            raise UserError(
                f"images: the learner's items are {self}, and only square ones in grey or colour are made out of "
                "files and Pillow images; decode yours into an array of that size"
            )
        return decode.Rule(height, 1 if channels == 1 else 3, self.invert, self.pad)

    def __str__(self) -> str:
        return "x".join(map(str, self.shape))

    def items(self, images: Any) -> np.ndarray:
        """Items uint8 [n, C, H, W] of a sequence of images (see `sequence`).

        Raises:
            UserError: a file that is not an image, or arrays of another shape.
        """
        images = sequence(images)
        return self._decoded(images) if isinstance(images, list) else self.arrays(images)

    def batches(self, images: Any, size: int) -> Iterator[np.ndarray]:
        """Yield `items` in lists of `size`: no more are held in memory."""
        images = sequence(images)
        for start in range(0, len(images), size):
            yield self.items(images[start : start + size])

    def arrays(self, array: np.ndarray) -> np.ndarray:
        """Items uint8 [n, C, H, W] of an array of images; raise UserError when it is of another shape or range."""
        pixels = to_pixels(array)
        if pixels.shape[1:] != self.shape:
            raise UserError(
                f"images: the learner takes arrays of {self} (channels, height, width), got "
                f"{'x'.join(map(str, pixels.shape[1:]))}; give files or Pillow images to have them resized"
            )
        return pixels

    def _decoded(self, pictures: list[Any]) -> np.ndarray:
        rule = self.rule

        def one(picture: Any) -> np.ndarray | Exception:
            if isinstance(picture, str | Path):
                return decode.try_decode(partial(archives.read_contents, Path(picture)), rule)
            try:
                return decode.square_pixels(picture, rule)
            except Exception as error:  # Pillow reads lazily, and raises nearly anything for damaged bytes
                return error

        with decode.silence_pillow(), ThreadPoolExecutor(os.cpu_count()) as pool:
            results = list(pool.map(one, pictures))
        for i, result in enumerate(results):
            if isinstance(result, Exception):
                name = pictures[i] if isinstance(pictures[i], str | Path) else f"image {i}"
                raise describe_unreadable(name, result)
        return np.stack([result for result in results if isinstance(result, np.ndarray)])


def describe_unreadable(name: Any, error: Exception) -> UserError:
    """Return what to tell about a file that cannot be decoded."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{name}: no such file")
    return UserError(f"{name}: not a readable image ({decode.describe_error(error)})")


def sequence(images: Any) -> np.ndarray | list[Any]:
    """Images as an array of numbers, or as a list of paths (`str`, `Path`) and Pillow images.

    Takes arrays and tensors [n, H, W], [n, H, W, C] or [n, C, H, W], and lists of arrays, paths or Pillow images.

    Raises:
        UserError: one image instead of several, none, or things that are no images.
    """
    from PIL.Image import Image

    found = images if isinstance(images, list | tuple) else np.asarray(images)
    if isinstance(images, Image) or (isinstance(found, np.ndarray) and found.ndim == 0):
        raise UserError(f"images: expected several, got {images!r}; put a single one into a list")
    if len(found) == 0:
        raise UserError("images: there are none")
    if isinstance(found, np.ndarray) and found.dtype.kind not in "OU":
        return found
    pictures = [isinstance(one, str | Path | Image) for one in found]
    if all(pictures):
        return list(found)
    if any(pictures):
        raise UserError("images: arrays and files cannot be mixed; give one or the other")
    try:
        return np.asarray(list(found))
    except ValueError as error:
        raise UserError("images: the arrays differ in shape; give files or Pillow images to be resized") from error
