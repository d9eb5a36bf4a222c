"""MNIST: 70,000 handwritten digits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from umeta.data.arrays import load
from umeta.data.images import Items, Split
from umeta.errors import UserError


@dataclass(frozen=True)
class MNIST:
    """Handwritten digits of 28x28 pixels (LeCun, Bottou, Bengio, Haffner 1998).

    `root` holds `mnist.npz`, as Keras keeps it, or `MNIST/raw` with the four unpacked files; `download=true` fetches,
    or unpacks, them with torchvision.

    There are ten classes only, so all ten are in every split, as in CACTUs (Hsu et al. 2019): train is the 60,000
    training images but the last `held_out`, which are val; test is the 10,000 test images. What is new to the learner
    at test are labels, and images, but not classes.
    """

    root: str = "data"
    """the directory that holds mnist.npz or MNIST/raw"""
    held_out: Annotated[int, Ge(0)] = 10_000
    """training images that make the val split and are not learnt from"""
    download: bool = False
    """fetch the published files into root"""

    published: ClassVar[str] = "MNIST"  # torchvision's name of it

    def read(self, split: Split) -> Items:
        return read(self.published, self.root, split, self.held_out, self.download)


def read(name: str, root: str, split: Split, held_out: int, download: bool) -> Items:
    """Read a split of torchvision's data set MNIST, or of another one in the same format.

    Raises:
        UserError: the files are not there, not of that format, or have no such split.
    """
    from torchvision import datasets

    published, part = getattr(datasets, name), "test" if split == "test" else "train"
    where = Path(root) / f"{name.lower()}.npz"
    if where.is_file():
        pixels, labels = load(where, f"x_{part}"), load(where, f"y_{part}")
    else:
        where = Path(root) / name / "raw"
        files = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        if missing := [file for file in files if not (where / file).is_file()]:
            if not download:
                raise UserError(f"{where}: '{missing[0]}' is missing; set data.root, or data.download=true")
            try:
                published(root, download=True)
            except (OSError, RuntimeError) as error:
                raise UserError(f"{root}: {name} could not be downloaded ({error})") from error
        try:
            found = published(root, train=split != "test")
        except Exception as error:  # torchvision checks the header by assertions, and lets through what torch raises
            raise UserError(f"{where}: damaged, not in the format of MNIST ({error!r}); fetch it again") from error
        pixels, labels = found.data.numpy(), found.targets.numpy()
    if (
        pixels.dtype != np.uint8
        or pixels.shape[1:] != (28, 28)
        or labels.shape != pixels.shape[:1]
        or not np.isin(labels, range(10)).all()
    ):
        raise UserError(
            f"{where}: expected images of 28x28 bytes and a label below 10 for each, found images {pixels.shape} of "
            f"{pixels.dtype} and labels {labels.shape} up to {labels.max(initial=0)}"
        )
    if split != "test":
        first = len(pixels) - held_out
        if first <= 0 or (split == "val" and not held_out):
            raise UserError(f"data.held_out: {held_out} of the {len(pixels)} training images leave no {split} split")
        chosen = slice(first, None) if split == "val" else slice(first)
        pixels, labels = pixels[chosen], labels[chosen]
    return Items(pixels[:, None], labels.astype(np.int64), tuple(published.classes))
