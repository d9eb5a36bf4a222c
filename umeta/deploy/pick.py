"""`umeta pick`: which pictures to label first."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from umeta import seeds
from umeta.data.spreadsheet import guard
from umeta.deploy.adapted import load_source, refuse_to_overwrite
from umeta.deploy.seen import Seen, see
from umeta.draw import mosaic
from umeta.errors import UserError
from umeta.runtime import artifacts
from umeta.tasks.clustering import kmeans

NEIGHBOURS = 20  # that say how typical a picture is
MEMBERS = 4000  # of a cluster that are looked at


def choose(vectors: np.ndarray, count: int, labelled: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """Choose the most typical item of each of the largest clusters without a label (TypiClust, Hacohen et al. 2022).

    There are as many clusters as items that are labelled and to be chosen. Typical is what is near to its neighbours.

    vectors: [n, d]. labelled: indices of those that have a label. Returns at most `count` indices, best first.
    """
    known = np.zeros(len(vectors), dtype=bool)
    known[np.array([] if labelled is None else labelled, dtype=int)] = True
    z = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    clusters = min(count + int(known.sum()), len(z))
    member = kmeans(z.astype(np.float32), clusters, 20, seeds.integer(seed, "pick"))[0]
    sizes, taken = np.bincount(member, minlength=clusters), np.bincount(member[known], minlength=clusters)
    chosen = []
    for cluster in np.lexsort((-sizes, taken))[:count]:
        inside = np.flatnonzero((member == cluster) & ~known)
        if len(inside):
            chosen.append(inside[typicality(z[inside[:MEMBERS]]).argmax()])
    return np.array(chosen, dtype=int)


def typicality(z: np.ndarray) -> np.ndarray:
    """Return the mean cosine of each of the vectors [n, d] of length 1 with its nearest neighbours among them: [n]."""
    neighbours = min(NEIGHBOURS, len(z) - 1)
    if neighbours < 1:
        return np.ones(len(z))
    similar = z @ z.T
    np.fill_diagonal(similar, -np.inf)
    return np.partition(similar, -neighbours, axis=1)[:, -neighbours:].mean(1)


def pick(
    run: Path, photos: Path, out: Path, count: int, *, device: str = "auto", allow_plugin: bool = False
) -> list[str]:
    """Choose pictures and write `out`: `pick.csv` with an empty label each, `pick.png`, and `pictures/` to be sorted.

    Raises:
        UserError: a run or pictures that cannot be used, or `out` exists.
    """
    if count < 1:
        raise UserError(f"pick -n {count}: expected 1 or more")
    refuse_to_overwrite(out)
    source, _ = load_source(run, device=device, trusted=None if allow_plugin else ())
    seen = see(source, photos)
    if out.resolve().is_relative_to(photos.resolve()):
        raise UserError(f"{out}: lies within the pictures of {photos}; choose a place outside of them")
    order = choose(seen.vectors, count)
    write(seen, photos, order, out)
    return [str(photos / seen.files[i].name) for i in order]


def write(seen: Seen, photos: Path, order: np.ndarray, out: Path) -> None:
    """Write the chosen pictures as a list, as a sheet to look at, and as files to be put into a folder per class."""
    with artifacts.replace_atomically(out) as temporary:
        (temporary / "pictures").mkdir(parents=True)
        with open(temporary / "pick.csv", "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["path", "label", "original"])
            for rank, i in enumerate(order):
                copy = f"{rank:0{len(str(len(order)))}}-{Path(seen.files[i].name).name}"
                (temporary / "pictures" / copy).write_bytes(seen.files[i].read())
                table.writerow([guard(f"pictures/{copy}"), "", guard(str(photos / seen.files[i].name))])
        tiles = [mosaic.tile(seen.items[i], size=2 * mosaic.TILE) for i in order]
        columns = min(8, math.ceil(len(tiles) ** 0.5))
        rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
        mosaic.save(mosaic.mosaic(rows), temporary / "pick.png")
