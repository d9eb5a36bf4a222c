"""How often a learner is right on pictures whose classes are known: by class, and what it takes for what."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from umeta.data.archives import is_archive
from umeta.data.spreadsheet import guard
from umeta.deploy.adapt import find_examples
from umeta.draw import mosaic
from umeta.errors import UserError
from umeta.runtime import artifacts


class Truth:
    """True classes of pictures, from the folders they lie in, and the answers counted against them."""

    def __init__(self, images: Sequence[Path]) -> None:
        if arrays := [path for path in images if not path.is_dir() and not is_archive(path)]:
            raise UserError(f"--truth: {arrays[0]}: expected folders or archives with a folder per class")
        self.classes = {name: label for place in images for name, label, _ in find_examples(place)}
        self.counts: Counter[tuple[str, str]] = Counter()
        self.tiles: dict[tuple[str, str], list[np.ndarray]] = {}

    def count(self, paths: Sequence[str], answers: Sequence[str], items: np.ndarray) -> None:
        """Count some answers, and keep a few of the wrong pictures to be shown."""
        for path, answer, item in zip(paths, answers, items, strict=True):
            if (true := self.classes.get(path)) is None:
                continue
            self.counts[true, answer] += 1
            if true != answer and len(tiles := self.tiles.setdefault((true, answer), [])) < mosaic.COLUMNS:
                tiles.append(mosaic.tile(item, mosaic.WRONG))

    def summarize(self) -> dict[str, Any]:
        """Return accuracy, of all and by class, and the confusion: true class, then answer."""
        true = sorted({a for a, _ in self.counts})
        by_class = {}
        for name in true:
            count = sum(n for (a, _), n in self.counts.items() if a == name)
            by_class[name] = {"images": count, "right": self.counts[name, name]}
        right = sum(one["right"] for one in by_class.values())
        confusion = {name: {b: n for (a, b), n in sorted(self.counts.items()) if a == name} for name in true}
        return {"accuracy": right / max(1, self.counts.total()), "classes": by_class, "confusion": confusion}

    def write(self, out: Path) -> None:
        """Write the confusion matrix as a table, and the wrong pictures with what they were taken for beside it."""
        true, answers = sorted({a for a, _ in self.counts}), sorted({b for _, b in self.counts})
        with (
            artifacts.replace_atomically(out) as temporary,
            open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["true class", *map(guard, answers)])
            table.writerows([guard(a), *(self.counts[a, b] for b in answers)] for a in true)
        worst = [pair for pair, _ in self.counts.most_common() if pair in self.tiles][: mosaic.ROWS]
        if worst:
            rows = [(f"{a} taken for {b} ({self.counts[a, b]})", self.tiles[a, b]) for a, b in worst]
            mosaic.save(mosaic.add_captions(rows), out.with_suffix(".png"))
