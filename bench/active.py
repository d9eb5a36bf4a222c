"""What a learner's own doubt is worth as the choice of the next label: accuracy after some labels, beside random ones.

    python -m bench.active results/active.json runs/NAME ...

Each draw takes `WAY` random test classes of the run's data, `EACH` pictures of each to choose from and as many to
answer. One of each class has a label; the next are chosen one at a time: at random, where the entropy of the learner's
probabilities is largest, or as `umeta pick` does, by the doubt of prototypes or by that entropy. The gain is that of
entropy over random labels, of the same draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umeta.benchmarks.labelled import LabelledImages
from umeta.deploy.adapted import AdaptedLearner, MetaLearnt
from umeta.deploy.pick import choose, find_entropy
from umeta.evaluation.result import Cell, summarize
from umeta.runtime import artifacts
from umeta.stages.runs import load_run

WAY, EACH, DRAWS, LABELS = 10, 10, 20, (1, 1.5, 2)  # labels are of each class


@dataclass(frozen=True)
class State:
    """What there is to choose from when some of it has a label."""

    learner: AdaptedLearner  # to those
    pool: np.ndarray  # [n, C, H, W] uint8
    vectors: np.ndarray  # [n, d] features of the pool
    labelled: np.ndarray  # indices
    random: np.random.Generator

    def find_entropy(self) -> np.ndarray:
        return find_entropy(self.learner.probabilities(self.pool))


def choose_at_random(state: State) -> int:
    return int(state.random.choice(np.setdiff1d(np.arange(len(state.pool)), state.labelled)))


def choose_by_entropy(state: State) -> int:
    doubt = state.find_entropy()
    doubt[state.labelled] = -1
    return int(doubt.argmax())


def choose_as_pick(state: State) -> int:
    return int(choose(state.vectors, 1, state.labelled, state.learner.labels)[0])


def choose_as_pick_by_entropy(state: State) -> int:
    return int(choose(state.vectors, 1, state.labelled, doubt=state.find_entropy())[0])


CHOICES: dict[str, Callable[[State], int]] = {
    "at random": choose_at_random,
    "entropy": choose_by_entropy,
    "pick": choose_as_pick,
    "pick by entropy": choose_as_pick_by_entropy,
}


def measure(source: MetaLearnt, pixels: np.ndarray, labels: np.ndarray, draws: int) -> dict[str, dict[str, Cell]]:
    """Return accuracy in percent, and the gain, for each number of labels a class: mean and interval over draws."""
    found: dict[str, dict[str, list[float]]] = {str(n): {name: [] for name in CHOICES} for n in LABELS}
    for draw in range(draws):
        random = np.random.default_rng(draw)
        classes = random.choice(np.unique(labels), WAY, replace=False)
        drawn = np.stack([random.permutation(np.flatnonzero(labels == c))[: 2 * EACH] for c in classes])
        pool, test = pixels[drawn[:, :EACH].ravel()], pixels[drawn[:, EACH:].ravel()]
        y, vectors = np.repeat(np.arange(WAY), EACH), source.features(pool).numpy()
        for name, choice in CHOICES.items():
            labelled = np.arange(WAY) * EACH
            while True:
                learner = AdaptedLearner.adapt(source, pool[labelled], y[labelled])
                if (told := f"{len(labelled) / WAY:g}") in found:
                    found[told][name].append(100 * float((learner.answers(test)[0] == y).mean()))
                if len(labelled) == WAY * LABELS[-1]:
                    break
                labelled = np.append(labelled, choice(State(learner, pool, vectors, labelled, random)))
    return {
        told: {name: summarize(values) for name, values in columns.items()}
        | {"gain": summarize(np.subtract(columns["entropy"], columns["at random"]))}
        for told, columns in found.items()
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("record", type=Path)
    options.add_argument("runs", type=Path, nargs="+")
    asked = options.parse_args()
    results = artifacts.read_json(asked.record) if asked.record.exists() else {}
    for path in asked.runs:
        run = load_run(path)
        test = LabelledImages.load(run.config.data, "test")
        judged = measure(MetaLearnt.of(run), test.images.pixels, test.labels, DRAWS)
        name = run.config.title or run.config.name
        results[name] = {"way": WAY, "pictures of each": EACH, "draws": DRAWS, "labels a class": judged}
        artifacts.write_json(asked.record, results)
        print(name, judged)


if __name__ == "__main__":
    main()
