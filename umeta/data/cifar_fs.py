"""CIFAR-FS and FC100: the hundred classes of CIFAR-100 dealt out to training, validation and test."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from annotated_types import Ge

from umeta.data import archives, decode
from umeta.data.folder import Folder
from umeta.data.images import Items, Split
from umeta.errors import UserError


@dataclass(frozen=True)
class CIFARFS:
    """CIFAR-FS, 600 colour images of 32x32 a class (Bertinetto, Henriques, Torr, Vedaldi 2019).

    `root`, or `cifar100` in it, holds the published `data/CLASS/*.png` and `splits/bertinetto/{train,val,test}.txt`, or
    else a folder per class in each of `meta-train`, `meta-val` and `meta-test`, or all of CIFAR-100, as `images.zip` or
    as folders of `images`, in each of which a class is a folder, and `splits/cifar-fs-{train,val,test}.txt`. 64 classes
    are train, 16 val, 20 test; of FC100 (Oreshkin, Rodriguez, Lacoste 2018), of which the last layout holds the lists
    too, 60, 20 and 20.
    """

    root: str = "data/cifar-fs"
    """the directory that holds data and splits"""
    size: Annotated[int, Ge(8)] = 32
    """pixels"""
    classes: Literal["cifar-fs", "fc100"] = "cifar-fs"
    """whose class lists deal them out"""
    skip_bad: bool = False
    """leave out files that are not images"""

    @property
    def rule(self) -> decode.Rule:
        """How a file becomes an item."""
        return decode.Rule(self.size, 3)

    def read(self, split: Split) -> Items:
        how = Folder("", size=self.size, skip_bad=self.skip_bad)
        for base in (Path(self.root), Path(self.root) / "cifar100"):
            layouts = [
                (base / name, base / "splits" / f"{self.classes}-{split}.txt") for name in ("images.zip", "images")
            ]
            if self.classes == "cifar-fs":
                layouts.append((base / "data", base / "splits" / "bertinetto" / f"{split}.txt"))
                if (base / "meta-train").is_dir():
                    return replace(how, test=str(base / f"meta-{split}")).read("test")  # which is read with its labels
            for images, lists in layouts:
                if images.exists():
                    return replace(how, root=str(images)).select(lists, name_folder)
        wanted = ["images.zip (and splits/fc100-train.txt)"]
        if self.classes == "cifar-fs":
            wanted = ["data/CLASS/*.png (and splits/bertinetto)", "meta-train/CLASS/*.png", "images.zip (and splits)"]
        raise UserError(f"{self.root}: holds no {', nor '.join(wanted)}; set data.root to where CIFAR-FS was unpacked")


def name_folder(file: archives.File) -> list[str]:
    """Return the name of the folder a file lies in: a class of CIFAR-100 lies in train/CLASS and in test/CLASS."""
    return [PurePosixPath(file.name).parent.name]
