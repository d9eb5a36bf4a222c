"""Omniglot: 1,623 characters of 50 alphabets, 20 drawings each."""

from __future__ import annotations

import lzma
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from umeta import seeds
from umeta.data import archives, decode
from umeta.data.folder import folders_of, read_class_list
from umeta.data.images import Items, Split
from umeta.errors import UserError

HERE = Path(__file__).parent
PACKED, CHARACTERS = HERE / "packed/omniglot.xz", HERE / "packed/omniglot-characters.txt"
SIDE, EACH, BACKGROUND = 28, 20, 964  # packed: pixels, drawings of a character, characters of the background set


@dataclass(frozen=True)
class Omniglot:
    """Omniglot handwritten characters (Lake, Salakhutdinov, Tenenbaum, Science 2015).

    All drawings come with the library, at 28 pixels. For other sizes set `root`, which holds
    `omniglot-py/images_background` and `images_evaluation`, as folders or as the published zips (read in place);
    `download=true` fetches them with torchvision. Ink is 1, paper 0.

    Splits of the characters into train / val / test:
    `cactus`: a seeded random 1100 / 100 / 423 (sizes of CACTUs, Hsu et al. 2019);
    `vinyals`: the class lists 1028 / 172 / 423 (Vinyals et al. 2016, as used by Snell et al. 2017);
    `alphabets`: the data set's own 30 background / 20 evaluation alphabets, 964 / - / 659.
    """

    root: str | None = None
    """the directory that holds omniglot-py; by default the drawings that come with the library"""
    split: Literal["cactus", "vinyals", "alphabets"] = "cactus"
    """which characters to learn from and which to test on"""
    split_seed: int = 0
    """of the random split"""
    train_on_val: bool = False
    """learn from the validation characters too, once nothing is left to choose on them"""
    size: Annotated[int, Ge(8)] = 28
    """pixels"""
    download: bool = False
    """fetch the published files into root, by default `data`"""
    skip_bad: bool = False
    """leave out files that are not images"""

    @property
    def rule(self) -> decode.Rule:
        """How a file becomes an item."""
        return decode.Rule(self.size, 1, invert=True)

    def read(self, split: Split) -> Items:
        """Read the drawings [n, 1, size, size] of a split, and their characters.

        Raises:
            UserError: the split has no characters, `root` does not hold the published files, or another size is asked
                for without them.
        """
        pixels, labels, names, background = self.read_all()
        rank = np.array(self._classes(split, names, background))
        if self.train_on_val and split == "val":
            raise UserError("data: val characters are learnt from (train_on_val); choose on them before that")
        if self.train_on_val and split == "train":
            rank = np.sort([*rank, *self._classes("val", names, background)])
        if not len(rank):
            raise UserError(f"data: the '{self.split}' split of Omniglot has no {split} characters")
        keep = np.flatnonzero(np.isin(labels, rank))
        order = np.full(len(names), -1, dtype=np.int64)
        order[rank] = np.arange(len(rank))
        return Items(np.asarray(pixels)[keep], order[labels[keep]], tuple(names[i] for i in rank))

    def _classes(self, split: Split, names: list[str], background: int) -> list[int]:
        """List the indices of the split's characters; the first `background` are the background set's."""
        if self.split == "alphabets":
            ranges = {"train": range(background), "val": range(0), "test": range(background, len(names))}
            return list(ranges[split])
        if self.split == "vinyals":
            index = {name: i for i, name in enumerate(names)}
            listed = read_class_list(HERE / "splits" / f"omniglot-vinyals-{split}.txt")
            if missing := [name for name in listed if name not in index]:
                raise UserError(f"{self.root}: character '{missing[0]}' and {len(missing) - 1} more are missing")
            return sorted(index[name] for name in listed)
        order = seeds.choose(seeds.key(self.split_seed, "omniglot split"), len(names), len(names))
        bounds = {"train": slice(0, 1100), "val": slice(1100, 1200), "test": slice(1200, None)}
        return sorted(order[bounds[split]].tolist())

    def read_all(self) -> tuple[np.ndarray, np.ndarray, list[str], int]:
        """Read all images, their classes, the classes' names, and how many classes are the background set's."""
        if self.root is None and not self.download:
            if self.size != SIDE:
                raise UserError(
                    f"data.size={self.size}: the Omniglot that comes with the library has {SIDE} pixels; for another "
                    "size set data.root to the directory that holds the published omniglot-py, or data.download=true"
                )
            names = read_class_list(CHARACTERS)
            return unpack(), np.repeat(np.arange(len(names)), EACH), names, BACKGROUND
        base = Path(self.root or "data")
        found: list[archives.File] = []
        names = []
        background = 0
        for part in ("images_background", "images_evaluation"):
            root = self._find_part(base, part)
            # the archive holds the folder of its own name, the unpacked tree is that folder
            part_files = [
                archives.File(f.name.removeprefix(f"{part}/"), f.stamp, f.read) for f in archives.list_files(root)
            ]
            part_files = [file for file in part_files if folders_of(file)]
            found += part_files
            names += sorted({folders_of(file)[0] for file in part_files})
            background = background or len(names)
        pixels, kept = decode.decode(found, self.rule, root=base, skip_bad=self.skip_bad)
        index = {name: i for i, name in enumerate(names)}
        return pixels, np.array([index[folders_of(found[i])[0]] for i in kept]), names, background

    def _find_part(self, base: Path, part: str) -> Path:
        for place in (base / "omniglot-py" / part, base / part):
            for path in (place, place.with_suffix(".zip")):
                if path.exists():
                    return path
        if self.download:
            from torchvision.datasets import Omniglot as Published

            try:
                Published(str(base), background=part == "images_background", download=True)
            except (OSError, RuntimeError) as error:
                raise UserError(f"{base}: Omniglot could not be downloaded ({error})") from error
            return base / "omniglot-py" / part
        raise UserError(
            f"{base}: holds neither omniglot-py/{part} nor omniglot-py/{part}.zip; set data.root, or "
            "data.download=true, or neither for the drawings that come with the library"
        )


@cache
def unpack() -> np.ndarray:
    """Unpack the drawings that come with the library: uint8 [32460, 1, 28, 28], read-only, in order of character.

    Raises:
        UserError: the packed file is missing or damaged.
    """
    try:
        content = lzma.decompress(PACKED.read_bytes())
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UserError(f"{PACKED}: missing or damaged ({error}); install umeta again, or set data.root") from error
    columns = np.frombuffer(content, np.uint8).reshape(-1, 1, SIDE, SIDE)
    pixels = np.ascontiguousarray(columns.swapaxes(2, 3))  # laid out in memory like decoded files
    pixels.flags.writeable = False  # every source shares it
    return pixels
