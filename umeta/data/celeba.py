"""CelebA: 202,599 faces with forty attributes each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge

from umeta.data import archives, decode
from umeta.data.images import Items, Split
from umeta.errors import UserError
from umeta.runtime import artifacts

PARTITIONS = {"train": "0", "val": "1", "test": "2"}  # as list_eval_partition.txt names them
ATTRIBUTES = {"train": slice(0, 20), "val": slice(20, 30), "test": slice(30, 40)}


@dataclass(frozen=True)
class CelebA:
    """Faces of celebrities with attributes (Liu, Luo, Wang, Tang 2015), in the splits of CACTUs (Hsu et al. 2019).

    `root` holds `celeba/img_align_celeba` (or its zip, read in place), `celeba/list_attr_celeba.txt` and
    `celeba/list_eval_partition.txt`; `download=true` fetches them with torchvision.

    Images are split by the published partition, about 163,000 / 20,000 / 20,000 in train / val / test; no person is in
    two of them. Tasks are made of attributes, 0 to 19 for train (used by an oracle only), 20 to 29 for val and 30 to 39
    for test, and are evaluated by the protocol `celeba` (umeta/benchmarks/labelled.py). Images become squares: of
    178x218 pixels the 178x178 in the middle, resized.
    """

    root: str = "data"
    """the directory that holds celeba"""
    size: Annotated[int, Ge(8)] = 84
    """pixels"""
    download: bool = False
    """fetch the published files into root"""
    skip_bad: bool = False
    """leave out files that are not images"""

    @property
    def rule(self) -> decode.Rule:
        """How a file becomes an item."""
        return decode.Rule(self.size, 3)

    def read(self, split: Split) -> Items:
        base = Path(self.root) / "celeba"
        images = base / "img_align_celeba"
        images = images if images.is_dir() else images.with_suffix(".zip")
        partition, attributes = base / "list_eval_partition.txt", base / "list_attr_celeba.txt"
        if missing := [path for path in (images, partition, attributes) if not path.exists()]:
            if not self.download:
                raise UserError(f"{missing[0]} is missing; set data.root, or data.download=true")
            self._fetch()
        wanted = [name for name, part in table(partition, 2) if part == PARTITIONS[split]]
        if not wanted:
            raise UserError(f"{partition}: has no image of the {split} split, which is {PARTITIONS[split]} there")
        names, has = read_attributes(attributes)
        present = {Path(file.name).name: file for file in archives.list_files(images)}
        for place, known in ((images, present), (attributes, has)):
            if absent := [name for name in wanted if name not in known]:
                raise UserError(f"{partition}: '{absent[0]}' and {len(absent) - 1} more are not in {place}")
        found = [present[name] for name in wanted]
        pixels, kept = decode.decode(found, self.rule, root=images, skip_bad=self.skip_bad)
        chosen = ATTRIBUTES[split]
        return Items(pixels, names=names[chosen], attributes=np.stack([has[wanted[i]] for i in kept])[:, chosen])

    def _fetch(self) -> None:
        from torchvision.datasets import CelebA as Published

        try:
            Published(self.root, download=True)
        except (OSError, RuntimeError, ImportError) as error:
            raise UserError(f"{self.root}: CelebA could not be downloaded ({error})") from error


def read_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return the names of the forty attributes, and which of them each image has [40] bool.

    Raises:
        UserError: not in the published format.
    """
    lines: list[list[str]] = [*words(path), [], []]
    first, names = lines[:2]
    count, *more = first or [""]
    if more or not count.isdigit() or len(names) != 40:
        raise UserError(
            f"{path}: expected a line with the number of images, then one with 40 names of attributes, found "
            f"{len(first)} and {len(names)} words"
        )
    rows = table(path, 41, header=2)
    values = np.array([row[1:] for row in rows])
    if wrong := set(np.unique(values)) - {"1", "-1"}:
        raise UserError(f"{path}: expected 1 or -1 for each attribute, found '{min(wrong)}'")
    return tuple(names), {row[0]: has for row, has in zip(rows, values == "1", strict=True)}


def table(path: Path, width: int, header: int = 0) -> list[list[str]]:
    """Return the lines of a list below its header, `width` words each; raise UserError when they are not."""
    rows = words(path)[header:]
    if not rows:
        raise UserError(f"{path}: lists no image")
    for i, row in enumerate(rows):
        if len(row) != width:
            raise UserError(f"{path}: expected {width} words in line {i + header + 1}, found {len(row)}")
    return rows


def words(path: Path) -> list[list[str]]:
    """Return the words of each line of a text file."""
    try:
        return [line.split() for line in artifacts.read_text(path).splitlines()]
    except UserError as error:
        raise UserError(f"{path}: expected a text file with one image a line ({error})") from error
