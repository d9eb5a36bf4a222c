"""What a source yields, and `UnlabelledImages`: all that `propose` and `metatrain` ever see of it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from umeta.errors import UserError
from umeta.runtime import artifacts
from umeta.runtime.devices import keep, send

LARGE = 1 << 30  # bytes of pictures on disk, from which on they stay there
BLOCK = 4096  # pictures in memory while they are put in order

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Items:
    """What a source holds in one split, in the source's own order."""

    pixels: np.ndarray  # [n, C, H, W] uint8
    labels: np.ndarray | None = None  # [n] int64 index into names; None where the source has no classes
    names: tuple[str, ...] = ()
    attributes: np.ndarray | None = None  # [n, len(names)] bool, where tasks are made of attributes and not of classes


class Source(Protocol):
    """A data set: a dataclass whose fields are its options."""

    def read(self, split: Split) -> Items: ...


@dataclass(frozen=True)
class UnlabelledImages:
    """Images without labels, names or paths, ordered by a hash of their content.

    The order of a source often gives its classes away (files lie in class folders), so it is not kept.
    """

    pixels: np.ndarray  # [n, C, H, W] uint8
    rows: np.ndarray  # [n] position of each item in the source's own order, to align vectors computed elsewhere

    @classmethod
    def of(cls, pixels: np.ndarray) -> UnlabelledImages:
        """From an array [n, H, W], [n, H, W, C] or [n, C, H, W], uint8 or float in [0, 1].

        Raises:
            UserError: another shape, type or range, or no images.
        """
        on_disk = isinstance(pixels, np.memmap)
        pixels = to_pixels(pixels)
        if len(pixels) == 0:
            raise UserError("no images: the data is empty")
        hashes = hash_each(pixels)
        rows = np.array(sorted(range(len(pixels)), key=hashes.__getitem__), dtype=np.int64)
        if on_disk and pixels.nbytes > LARGE:
            return cls(reorder_on_disk(pixels, rows, b"".join(sorted(hashes))), rows)
        return cls(pixels[rows], rows)

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def item_shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all pixels and their shape; the order of the source does not matter to it."""
        digest = hashlib.blake2b(repr(self.pixels.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.pixels).data)
        return digest.hexdigest()

    def floats(self, index: slice | np.ndarray | Tensor, device: torch.device | str = "cpu") -> Tensor:
        """Return some of the images as float32 in [0, 1]: [m, C, H, W]. On a GPU all stay there, where they fit."""
        if torch.device(device).type == "cuda":
            if str(device) not in self._by_device:
                self._by_device[str(device)] = keep(share(self.pixels), device)
            if (there := self._by_device[str(device)]).is_cuda:
                some = index if isinstance(index, slice) else send(torch.as_tensor(index), device)
                return to_float(there[some])
        index = index.cpu().numpy() if isinstance(index, Tensor) else index
        return to_float(send(share(self.pixels[index]), device))

    @cached_property
    def _by_device(self) -> dict[str, Tensor]:
        """The images by device, on it or not."""
        return {}


def reorder_on_disk(pixels: np.ndarray, rows: np.ndarray, content: bytes) -> np.ndarray:
    """Return `pixels[rows]` as a memory map in the cache, so that memory need not hold them."""
    key = hashlib.blake2b(repr(pixels.shape).encode() + content, digest_size=16).hexdigest()
    folder = artifacts.cache_folder() / "sorted" / key

    def make(temporary: Path) -> list[str]:
        blocks = (pixels[rows[start : start + BLOCK]] for start in range(0, len(rows), BLOCK))
        artifacts.write_blocks(temporary / "pixels.npy", blocks)
        return ["pixels.npy"]

    artifacts.make_cached(folder, "sorted images", make)
    return artifacts.read_array(folder / "pixels.npy")


def share(array: np.ndarray) -> Tensor:
    """Return an array that nothing writes to as a tensor, on the same memory; a memory map stays on disk."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(np.require(array, requirements="C"))


def hash_each(pixels: np.ndarray | Sequence[np.ndarray], size: int = 16) -> list[bytes]:
    """Hash the content of each image [n, C, H, W]; size: bytes of a hash."""
    return [hashlib.blake2b(item.tobytes(), digest_size=size).digest() for item in pixels]


def to_float(pixels: Tensor) -> Tensor:
    """uint8 in [0, 255] to float32 in [0, 1]; floats pass."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels


def to_pixels(array: np.ndarray) -> np.ndarray:
    """Any usual image array as uint8 [n, C, H, W].

    Raises:
        UserError: not images, or of a range that may mean several things; the message says what to give instead.
    """
    array = np.asarray(array)
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3):
        array = np.moveaxis(array, -1, 1)
    if array.ndim != 4 or array.shape[1] not in (1, 3) or 0 in array.shape[1:]:
        hint = "; with transparency, give images[..., :3]" if array.ndim == 4 and 4 in array.shape[1::2] else ""
        raise UserError(
            f"images: expected shape [n, H, W], [n, H, W, C] or [n, C, H, W] with C 1 or 3, got {array.shape}{hint}"
        )
    if array.dtype == bool:
        return array.astype(np.uint8) * np.uint8(255)
    if not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
        raise UserError(f"images: expected numbers, 0 to 255 or floats in [0, 1], got {array.dtype}")
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    whole = np.issubdtype(array.dtype, np.integer)
    if whole and low >= 0 and high <= 255 and high != 1:
        return array.astype(np.uint8, copy=False)
    if not whole and low >= 0 and high <= 1:
        return np.rint(array * 255).astype(np.uint8)
    if whole and low >= 0 and high == 1:
        hint = "of integers 255 is white; give 255 * images, or images > 0"
    elif whole and low >= 0:
        hint = f"give images / {np.iinfo(array.dtype).max if array.itemsize < 4 else high:g}"
    else:
        hint = "give (images + 1) / 2" if low >= -1 and high <= 1 else "divide by what is white, or give files"
    raise UserError(
        f"images: expected integers from 0 to 255, or floats in [0, 1], got {array.dtype} from {low:g} to {high:g}; "
        f"{hint}"
    )
