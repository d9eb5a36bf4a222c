"""A folder or archive of images: `photos/*.jpg`, or a folder per class where the labels are wanted for testing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Lt

from umeta import seeds
from umeta.data import archives, decode
from umeta.data.images import Items, Split
from umeta.errors import UserError, suggest
from umeta.runtime import artifacts


@dataclass(frozen=True)
class Folder:
    """Any folder, zip, tar or parquet of images, flat or a folder per class; shards in a folder are its folders.

    Without `splits` every image below `root` is training data, and `test` names the labelled test data, a folder per
    class, to which pictures in folders below it belong as well. With `splits`, a directory with the class lists
    `train.txt`, `val.txt` and `test.txt`, `root` holds all.
    Images become `size` x `size`: the largest centred square or, with `pad`, the whole, resized with antialiasing.
    """

    root: str
    """folder, zip, tar or parquet file"""
    test: str | None = None
    """folder or archive with a folder per class; read by `evaluate` only"""
    splits: str | None = None
    """directory of class lists, one class (a folder below root) a line"""
    size: Annotated[int, Ge(8)] = 84
    """pixels"""
    channels: Literal[1, 3] = 3
    """1 for grey, 3 for colour"""
    invert: bool = False
    """for black ink on white paper"""
    pad: bool = False
    """the whole of long images, on a square of their border's colour, and not the centred square of them"""
    hold_out: Annotated[float, Ge(0), Lt(1)] = 0.0
    """share of the training images that are kept back, without labels, as the split `val`"""
    skip_bad: bool = True
    """leave out damaged images, and name them at the end; else stop at the first"""

    @property
    def rule(self) -> decode.Rule:
        """How a file becomes an item."""
        return decode.Rule(self.size, self.channels, self.invert, self.pad)

    def read(self, split: Split) -> Items:
        root = Path(self.root)
        if self.splits is None:
            if split == "train" or (split == "val" and self.hold_out):
                found = archives.list_files(root)
                back = seeds.uniform(seeds.key(0, "hold out", np.arange(len(found)))) < self.hold_out
                found = [file for file, out in zip(found, back, strict=True) if out == (split == "val")]
                return Items(decode.decode(found, self.rule, root=root, skip_bad=self.skip_bad)[0])
            if split == "val" or self.test is None:
                raise UserError(
                    f"data: there is no {split} split: set data.test=DIR (a folder per class), or data.splits=DIR "
                    "(class lists train.txt, val.txt, test.txt)"
                )
            return self._decode(Path(self.test), classify(archives.list_files(Path(self.test)), Path(self.test)))
        return self.select(Path(self.splits) / f"{split}.txt")

    def select(self, classes: Path, places: Callable[[archives.File], list[str]] | None = None) -> Items:
        """Read the classes that a file lists.

        places: what a picture's class may be called; by default the folders it lies in.

        Raises:
            UserError: as `read_class_list`, or a class that is not there.
        """
        listed, places, root = read_class_list(classes), places or folders_of, Path(self.root)
        found = archives.list_files(root)
        present = {name for file in found for name in places(file)}
        for name in listed:
            if name not in present:
                raise UserError(f"{classes}: class '{name}' is not in {root}{suggest(name, present)}")
        wanted = set(listed)
        below = [(file, next((name for name in places(file) if name in wanted), None)) for file in found]
        return self._decode(root, {file: name for file, name in below if name is not None})

    def _decode(self, root: Path, classes: dict[archives.File, str]) -> Items:
        found = list(classes)
        pixels, kept = decode.decode(found, self.rule, root=root, skip_bad=self.skip_bad)
        names, labels = np.unique([classes[found[i]] for i in kept], return_inverse=True)
        return Items(pixels, labels.astype(np.int64), tuple(str(name) for name in names))


def folders_of(file: archives.File) -> list[str]:
    """Return the folders a file lies in, the innermost first."""
    return [str(place) for place in PurePosixPath(file.name).parents][:-1]


def classify(found: list[archives.File], root: Path) -> dict[archives.File, str]:
    """Give each file its class: a folder, at the depth of the uppermost pictures. Those in folders below belong to it.

    Files beside the class folders that are no pictures are passed over.

    Raises:
        UserError: a picture lies in no folder, or there is no picture.
    """
    pictures = [file for file in found if decode.is_picture(file.name)]
    for file in pictures:
        if not folders_of(file) and ("." in file.name or decode.is_readable(file)):
            raise UserError(
                f"{root}: '{file.name}' lies in no class folder; expected {root}/CLASS/IMAGE, a folder for each class"
            )
    depth = min((len(folders_of(file)) for file in pictures if folders_of(file)), default=0)
    if not depth:
        raise UserError(f"{root}: holds no images in folders; expected {root}/CLASS/IMAGE, a folder for each class")
    return {file: folders_of(file)[-depth] for file in found if len(folders_of(file)) >= depth}


def read_class_list(path: Path) -> list[str]:
    """Class names, one a line; empty lines are passed over.

    Raises:
        UserError: missing, empty, not text, or a name twice.
    """
    try:
        lines = [line.strip() for line in artifacts.read_text(path).splitlines()]
    except UserError as error:
        raise UserError(f"{path}: expected a text file with one class a line ({error})") from error
    names = [line for line in lines if line]
    if not names:
        raise UserError(f"{path}: lists no class")
    if len(set(names)) < len(names):
        raise UserError(f"{path}: lists '{next(n for n in names if names.count(n) > 1)}' twice")
    return names
