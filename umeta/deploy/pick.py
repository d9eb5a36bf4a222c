"""`umeta pick`: which pictures to label first."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from umeta import seeds
from umeta.data.images import hash_each
from umeta.data.spreadsheet import guard
from umeta.deploy.adapted import AdaptedLearner, load_source, refuse_to_overwrite
from umeta.deploy.seen import BLOCK, Seen, see
from umeta.draw import mosaic
from umeta.errors import UserError
from umeta.models.weigh import unit
from umeta.runtime import artifacts
from umeta.tasks.clustering import kmeans

NEIGHBOURS = 20  # that say how typical a picture is
MEMBERS = 4000  # of a cluster that are looked at


def choose(
    vectors: np.ndarray,
    count: int,
    labelled: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    doubt: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Choose the most typical item of each of the largest clusters without a label (TypiClust, Hacohen et al. 2022).

    There are as many clusters as items that are labelled and to be chosen. Typical is what is near to its neighbours.
    With labels those clusters come first of which more is in doubt, and less by each label that they have.

    vectors: [n, d]. labelled: indices of those that have a label; labels: what these are, whole numbers; doubt: [n],
    from 0 to 1, in place of labels. Returns at most `count` indices, best first.
    """
    known = np.zeros(len(vectors), dtype=bool)
    known[np.array([] if labelled is None else labelled, dtype=int)] = True
    z = unit(vectors)
    clusters = min(count + int(known.sum()), len(z))
    member = kmeans(z.astype(np.float32), clusters, 20, seeds.integer(seed, "pick"))[0]
    taken = np.bincount(member[known], minlength=clusters)
    if doubt is None and labelled is not None and labels is not None:
        doubt = find_doubt(z, z[labelled], np.asarray(labels))
    if doubt is None:
        order = np.lexsort((-np.bincount(member, minlength=clusters), taken))
    else:
        order = np.argsort(-np.bincount(member, np.where(known, 0, doubt), clusters) / (1 + taken) ** 2, kind="stable")
    chosen: list[int] = []
    for cluster in order:
        inside = np.flatnonzero((member == cluster) & ~known)
        if len(inside) and len(chosen) < count:
            chosen.append(inside[typicality(z[inside[:MEMBERS]]).argmax()])
    return np.array(chosen, dtype=int)


def find_doubt(z: np.ndarray, shown: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return how unsure prototypes of items that are shown [m, d] are of the vectors z [n, d] of length 1: from 0 to 1.

    It is 1 where the two nearest prototypes are as near, and where there is only one.
    """
    means = unit(np.stack([shown[labels == one].mean(0) for one in np.unique(labels)]))
    cosines = np.sort(z @ means.T, axis=1)
    return 1 - (cosines[:, -1] - cosines[:, -2]) / 2 if len(means) > 1 else np.ones(len(z))


def find_entropy(probabilities: np.ndarray) -> np.ndarray:
    """Return how unsure answers [n, way] are: from 0, where they are certain, to 1, where all classes are as likely.

    It is 1 where there is only one class.
    """
    if probabilities.shape[1] == 1:
        return np.ones(len(probabilities))
    logs = np.log(probabilities.clip(np.finfo(np.float32).tiny))
    return -(probabilities * logs).sum(1) / math.log(probabilities.shape[1])


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

    run: or a learner that adapt wrote, whose examples have labels already.

    Raises:
        UserError: a run or pictures that cannot be used, or `out` exists.
    """
    if count < 1:
        raise UserError(f"pick -n {count}: expected 1 or more")
    refuse_to_overwrite(out)
    trusted = None if allow_plugin else ()
    learner = None
    if artifacts.read_manifest(run, "run", "learner")["kind"] == "learner":
        learner = AdaptedLearner.load(run, device=device, trusted=trusted)
    seen = see(learner.source if learner else load_source(run, device=device, trusted=trusted)[0], photos)
    if out.resolve().is_relative_to(photos.resolve()):
        raise UserError(f"{out}: lies within the pictures of {photos}; choose a place outside of them")
    order = choose_beside(learner, seen, count) if learner else choose(seen.vectors, count)
    if not len(order):
        raise UserError(f"{photos}: each of its pictures is an example of {run} already; there is none to choose")
    write(seen, photos, order, out)
    return [str(photos / seen.files[i].name) for i in order]


def choose_beside(learner: AdaptedLearner, seen: Seen, count: int) -> np.ndarray:
    """Choose pictures beside a learner's examples, which may be among them.

    In doubt is what the learner itself is unsure of; of one that compares features with prototypes these say so.
    """
    examples = dict(zip(hash_each(learner.support), learner.labels, strict=True))
    given = [(i, examples[key]) for i, key in enumerate(hash_each(seen.items)) if key in examples]
    vectors = np.concatenate([seen.vectors, learner.source.features(learner.support).float().cpu().numpy()])
    rows = np.array([*(i for i, _ in given), *range(len(seen.vectors), len(vectors))])
    if "prototypes" in learner.adapted.params:
        return choose(vectors, count, rows, np.array([*(label for _, label in given), *learner.labels]))
    blocks = (np.stack(seen.items[start : start + BLOCK]) for start in range(0, len(seen.items), BLOCK))
    unsure = [find_entropy(learner.probabilities(items)) for items in blocks]
    return choose(vectors, count, rows, doubt=np.concatenate([*unsure, np.zeros(len(learner.support))]))


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
