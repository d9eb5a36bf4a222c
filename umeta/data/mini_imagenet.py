"""miniImageNet: a hundred classes of ImageNet, 600 photographs each."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge

from umeta.data import archives, decode
from umeta.data.images import Items, Split
from umeta.errors import UserError


@dataclass(frozen=True)
class MiniImageNet:
    """miniImageNet (Vinyals et al. 2016), in the class split of Ravi and Larochelle (2017): 64 / 16 / 20 classes.

    `root` holds `train.csv`, `val.csv` and `test.csv`, with the columns `filename` and `label`, and the photographs
    they name in `images` or `images.zip` (read in place).
    """

    root: str = "data/mini-imagenet"
    """the directory that holds the lists and images"""
    size: Annotated[int, Ge(8)] = 84
    """pixels"""
    skip_bad: bool = False
    """leave out files that are not images"""

    @property
    def rule(self) -> decode.Rule:
        """How a file becomes an item."""
        return decode.Rule(self.size, 3)

    def read(self, split: Split) -> Items:
        path = Path(self.root) / f"{split}.csv"
        listed = rows(path)
        images = Path(self.root) / "images"
        images = images if images.is_dir() else images.with_suffix(".zip")
        present = {Path(file.name).name: file for file in archives.list_files(images)}
        if missing := [name for name, _ in listed if name not in present]:
            raise UserError(f"{path}: '{missing[0]}' and {len(missing) - 1} more are not in {images}")
        pixels, kept = decode.decode(
            [present[name] for name, _ in listed], self.rule, root=images, skip_bad=self.skip_bad
        )
        names, labels = np.unique([listed[i][1] for i in kept], return_inverse=True)
        return Items(pixels, labels.astype(np.int64), tuple(str(name) for name in names))


def rows(path: Path) -> list[tuple[str, str]]:
    """File name and label of each row of a list.

    Raises:
        UserError: missing, not text, without the two columns, or without rows.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if not {"filename", "label"} <= set(table.fieldnames or ()):
                raise UserError(f"{path}: expected a header with filename and label, found {table.fieldnames}")
            found = [(row["filename"], row["label"]) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: expected a list of images with the columns filename and label ({error})") from error
    if not found:
        raise UserError(f"{path}: lists no image")
    if any(not (name and label) for name, label in found):
        raise UserError(f"{path}: line {2 + [all(row) for row in found].index(False)} lacks a filename or label")
    return found
