"""Fashion-MNIST: 70,000 pictures of clothes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from umeta.data.mnist import MNIST


@dataclass(frozen=True)
class FashionMNIST(MNIST):
    """Pictures of clothes, 28x28 pixels, in the format of MNIST (Xiao, Rasul, Vollgraf 2017).

    `root` holds `FashionMNIST/raw` with the four unpacked files; `download=true` fetches, or unpacks, them with
    torchvision.

    There are ten classes only, so all ten are in every split, as with `mnist`: train is the 60,000 training images but
    the last `held_out`, which are val; test is the 10,000 test images.
    """

    root: str = "data"
    """the directory that holds FashionMNIST/raw"""

    published: ClassVar[str] = "FashionMNIST"
