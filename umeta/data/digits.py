"""The handwritten digits that ship with scikit-learn: nothing to download, seconds to learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from umeta.data.images import Items, Split
from umeta.errors import UserError


@dataclass(frozen=True)
class Digits:
    """1,797 digits of 8x8 pixels, enlarged to 28x28 (scikit-learn's `load_digits`, from Alpaydin and Kaynak 1998).

    Digits 0 to 4 are there to learn from, 5 to 9 to test on.
    """

    def read(self, split: Split) -> Items:
        from PIL import Image
        from sklearn.datasets import load_digits

        if split == "val":
            raise UserError("data: digits have no val split, only train (0 to 4) and test (5 to 9)")
        digits = load_digits()
        chosen = (digits.target < 5) == (split == "train")
        small = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)
        large = [np.asarray(Image.fromarray(one).resize((28, 28), Image.Resampling.BICUBIC)) for one in small]
        names, labels = np.unique(digits.target[chosen], return_inverse=True)
        return Items(np.stack(large)[:, None], labels.astype(np.int64), tuple(str(name) for name in names))
