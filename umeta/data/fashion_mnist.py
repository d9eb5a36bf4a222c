"""Fashion-MNIST: 70,000 pictures of clothes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from umeta.data import mnist
from umeta.data.images import Items, Split


@dataclass(frozen=True)
class FashionMNIST:
    """Pictures of clothes, 28x28 pixels, in the format of MNIST (Xiao, Rasul, Vollgraf 2017).

    `root` holds `FashionMNIST/raw` with the four unpacked files; `download=true` fetches, or unpacks, them with
    torchvision.

    There are ten classes only, so all ten are in every split, as with `mnist`: train is the 60,000 training images but
    the last `held_out`, which are val; test is the 10,000 test images.
    """

    root: str = "data"
    """the directory that holds FashionMNIST/raw"""
    held_out: Annotated[int, Ge(0)] = 10_000
    """training images that make the val split and are not learnt from"""
    download: bool = False
    """fetch the published files into root"""

    def read(self, split: Split) -> Items:
        return mnist.read("FashionMNIST", self.root, split, self.held_out, self.download)
