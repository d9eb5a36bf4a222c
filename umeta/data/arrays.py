"""Images that are already an array: `.npy` or `.npz`."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umeta.data.images import Items, Split, to_pixels
from umeta.errors import UserError
from umeta.runtime.allocator import available


@dataclass(frozen=True)
class Arrays:
    """Images in a `.npy`, or as `images` (and, for testing, `labels`) in a `.npz`.

    Images are [n, H, W], [n, H, W, C] or [n, C, H, W], uint8 or floats in [0, 1]; labels are [n] integers or words.
    """

    path: str
    """the unlabelled training images; labels beside them are not read"""
    test: str | None = None
    """a .npz with images and labels; read by `evaluate` only"""
    val: str | None = None
    """like test, for tuning"""

    def read(self, split: Split) -> Items:
        if split == "train":
            return Items(to_pixels(load(Path(self.path), "images")))
        path = self.test if split == "test" else self.val
        if path is None:
            raise UserError(f"data: there is no {split} split: set data.{split}=FILE.npz with images and labels")
        pixels, labels = to_pixels(load(Path(path), "images")), load(Path(path), "labels")
        if labels.shape != (len(pixels),):
            raise UserError(f"{path}: labels must have shape ({len(pixels)},), one per image, got {labels.shape}")
        names, index = np.unique(labels, return_inverse=True)
        return Items(pixels, index.astype(np.int64), tuple(str(name) for name in names))


def load(path: Path, key: str) -> np.ndarray:
    """Return the array of a `.npy`, or one named array of a `.npz`; no pickles.

    Raises:
        UserError: missing, damaged, or without that array.
    """
    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r")
        single = isinstance(loaded, np.ndarray)
        if not single:
            check_unpacked(loaded.zip, f"{key}.npy")
        array = loaded if single else loaded.get(key)
        if array is not None and array.dtype.kind not in "biufU":
            raise ValueError(f"expected numbers, or words as labels, found {array.dtype}")
    except Exception as error:  # numpy, zipfile and zlib raise nearly anything for damaged bytes
        raise UserError(f"{path}: not a readable .npy or .npz ({error})") from error
    if single and key == "labels":
        raise UserError(f"{path}: expected a .npz with the arrays images and labels")
    if array is None:
        raise UserError(f"{path}: has no array '{key}'; it has {', '.join(loaded.files)}")
    return array


def check_unpacked(archive: zipfile.ZipFile, name: str) -> None:
    """Raise ValueError for an array of a `.npz` that does not fit into memory, or says to be larger than it is."""
    if name not in archive.namelist():
        return
    size, free = archive.getinfo(name).file_size, available()
    if size > free // 2:  # pixels are copied once
        raise ValueError(f"'{name}' unpacks to {size:,} bytes, {free:,} are available; save it as a .npy of its own")
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"'{name}' is said to be {dtype} {shape}, and holds {size:,} bytes")
