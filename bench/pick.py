"""What choosing the pictures to label is worth: accuracy against the number of labels, beside random choice.

    python -m bench.pick results/pick.json --network NAME --weights FILE DATA.yaml ...

A file describes a data source with true classes, as `data` of a config. Each draw takes `EACH` random pictures of each
test class as somebody's folder; as many as there are classes, twice as many and so on are labelled, those that
`umeta pick` chooses, at once or in turn from the labels before, or random ones; all others are answered by prototypes,
those of a class without a label wrongly.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from bench.backbones import choose_pictures, record_each
from umeta.benchmarks.labelled import LabelledImages
from umeta.deploy.pick import choose
from umeta.models.backbone import Backbone

EACH, DRAWS, LABELS = 20, 20, (1, 2, 5)


def measure(
    vectors: np.ndarray, labels: np.ndarray, each: int, draws: int, budgets: tuple[int, ...]
) -> dict[str, dict]:
    """Return the mean and the 95 % interval over draws, for each number of labels a class.

    They are of pictures chosen all at once, in turn with labels between, and at random, and of the second's gain.

    vectors: [n, d] of length 1; labels: [n].
    """
    found: dict[str, dict] = {}
    classes = np.unique(labels)
    for budget in budgets:
        rows = []
        for draw in range(draws):
            random = np.random.default_rng(draw)
            folder = np.concatenate([random.permutation(np.flatnonzero(labels == c))[:each] for c in classes])
            z, y, count = vectors[folder], labels[folder], budget * len(classes)
            rows.append(
                [
                    answer(z, y, choose(z, count, seed=draw)),
                    answer(z, y, choose_in_turn(z, y, [n * len(classes) for n in budgets if n <= budget], draw)),
                    answer(z, y, random.permutation(len(y))[:count]),
                ]
            )
        found_so = 100 * np.array(rows)
        columns = dict(zip(("chosen", "in turn", "at random"), found_so.T, strict=True))
        columns["gain"] = columns["in turn"] - columns["at random"]
        found[str(budget)] = {
            name: {"mean": float(one.mean()), "interval": float(1.96 * one.std(ddof=1) / draws**0.5)}
            for name, one in columns.items()
        }
    return found


def choose_in_turn(z: np.ndarray, y: np.ndarray, counts: list[int], seed: int) -> np.ndarray:
    """Choose in rounds, up to each of these totals, each time with the labels of the rounds before."""
    chosen = choose(z, counts[0], seed=seed)
    for count in counts[1:]:
        more = choose(z, count - len(chosen), chosen, y[chosen], seed=seed)
        chosen = np.concatenate([chosen, more])
    return chosen


def answer(z: np.ndarray, y: np.ndarray, labelled: np.ndarray) -> float:
    """Return the share of the pictures without a label that prototypes of the labelled ones answer rightly."""
    known = np.unique(y[labelled])
    means = np.stack([z[labelled][y[labelled] == c].mean(0) for c in known])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    rest = np.setdiff1d(np.arange(len(y)), labelled)
    return float((known[(z[rest] @ means.T).argmax(1)] == y[rest]).mean())


def measure_source(data: Any, backbone: Backbone, asked: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return what choosing is worth on the test classes of a data source."""
    test = LabelledImages.load(data, "test")
    kept = choose_pictures(test, 2 * EACH)
    net = backbone.build(test.images.item_shape).eval()
    with torch.no_grad():
        z = torch.nn.functional.normalize(net(test.images.floats(kept))).numpy()
    about = {"classes": len(test.names), "pictures of each": EACH, "draws": DRAWS}
    return {**about, "labels a class": measure(z, test.labels[kept], EACH, DRAWS, LABELS)}


def main() -> None:
    record_each(__doc__, measure_source)


if __name__ == "__main__":
    main()
