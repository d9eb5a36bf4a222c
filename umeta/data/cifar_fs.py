"""CIFAR-FS: the hundred classes of CIFAR-100 dealt out to training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from umeta.data import decode
from umeta.data.folder import Folder
from umeta.data.images import Items, Split
from umeta.errors import UserError


@dataclass(frozen=True)
class CIFARFS:
    """CIFAR-FS, 600 colour images of 32x32 a class (Bertinetto, Henriques, Torr, Vedaldi 2019).

    `root`, or `cifar100` in it, holds the published `data/CLASS/*.png` and `splits/bertinetto/{train,val,test}.txt`, or
    else a folder per class in each of `meta-train`, `meta-val` and `meta-test`. 64 classes are train, 16 val, 20 test.
    """

    root: str = "data/cifar-fs"
    """the directory that holds data and splits"""
    size: Annotated[int, Ge(8)] = 32
    """pixels"""
    skip_bad: bool = False
    """leave out files that are not images"""

    @property
    def rule(self) -> decode.Rule:
        """How a file becomes an item."""
        return decode.Rule(self.size, 3)

    def read(self, split: Split) -> Items:
        how = Folder("", size=self.size, skip_bad=self.skip_bad)
        for base in (Path(self.root), Path(self.root) / "cifar100"):
            if (base / "data").is_dir():
                return replace(how, root=str(base / "data"), splits=str(base / "splits" / "bertinetto")).read(split)
            if (base / "meta-train").is_dir():
                return replace(how, test=str(base / f"meta-{split}")).read("test")  # which is read with its labels
        raise UserError(
            f"{self.root}: holds neither data/CLASS/*.png (and splits/bertinetto) nor meta-train/CLASS/*.png; set "
            "data.root to where CIFAR-FS was unpacked"
        )
