"""Calibration on proposed tasks, without any label: how sure an answer is, and when nothing known is near.

Both numbers are fitted on fresh tasks of the run's own distribution: as many classes and shots as the learner was
adapted to, and queries of those classes and of one class more that the support leaves out. The images and clusters of
those tasks were there in meta-training, and the learner does better on them than on new classes. So probabilities of
new classes stay overconfident, and where new classes are wider than the clusters were, more of them is refused as
unknown than was of the clusters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from umeta.errors import UserError
from umeta.types import Batch, EpisodeSpec, FeatureLearner, MetaLearner, TaskDistribution, Theta

QUERIES = 3  # of each class of a calibration task
IMAGES = 3000  # in all calibration tasks together, about
CHUNK = 4  # calibration tasks adapted at a time


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and on which tasks."""

    temperature: float
    """logits are divided by it"""
    threshold: float | None
    """answers whose `nearness` is below it are `unknown`; None for a learner without features of its own"""
    kept: float
    """share of the calibration queries of known classes that are not below the threshold"""
    refused: float
    """share of the calibration queries of left-out classes that are"""
    way: int
    shot: int
    tasks: int

    def __str__(self) -> str:
        unknown = (
            f"the threshold for unknown keeps {self.kept:.0%} of queries of known classes and refuses "
            f"{self.refused:.0%} of others"
            if self.threshold is not None
            else "no threshold for unknown"
        )
        return (
            f"calibrated on {self.tasks} proposed {self.way}-way {self.shot}-shot tasks: temperature "
            f"{self.temperature:.3g}; {unknown}"
        )


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """ECE (Guo, Pleiss, Sun, Weinberger 2017, arXiv 1706.04599, equation 3), 0 to 1.

    The mean gap between confidence (the largest probability) and accuracy over `bins` bins of equal width (a, b] of
    confidence, weighted by how many answers fall into each.

    probabilities: [n, way]; labels: [n] index of the right class.
    """
    found = reliability(probabilities, labels, bins)
    return sum(abs(one["accuracy"] - one["confidence"]) * one["count"] for one in found) / len(labels)


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> list[dict[str, float]]:
    """Mean confidence, accuracy and count of the answers in each bin that has any, as a reliability diagram shows them.

    Arguments as for `expected_calibration_error`.
    """
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        {
            "confidence": float(confidence[place == i].mean()),
            "accuracy": float(right[place == i].mean()),
            "count": int((place == i).sum()),
        }
        for i in np.unique(place)
    ]


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the T > 0 that minimises the cross-entropy of `softmax(logits / T)` (temperature scaling, Guo et al. 2017).

    The targets are smoothed as if every class had been seen once more (Platt 1999): T stays above zero even where every
    answer is right.

    logits: [n, way]; labels: [n] int64 below way.
    """
    z = logits.double()
    n, way = z.shape
    smooth = (F.one_hot(labels, way).double() * n + 1) / (n + way)
    wanted = (smooth * z).sum(1).mean()
    low, high = -12.0, 12.0  # of log(1 / T); the loss is convex in 1 / T, and this is its slope
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((z * np.exp(middle)).softmax(1) * z).sum(1).mean() - wanted
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.exp(-low))


def fit_threshold(known: np.ndarray, unknown: np.ndarray) -> tuple[float, float, float]:
    """Return the threshold that tells scores of known from scores of unknown best: (threshold, kept, refused).

    It maximises the mean of the share of `known` at or above it and the share of `unknown` below it (Youden 1950).

    known, unknown: [n], [m] scores, larger for known.
    """
    candidates = np.unique(np.concatenate([known, unknown]))
    candidates = np.append((candidates[1:] + candidates[:-1]) / 2, candidates[0])
    kept = 1 - np.searchsorted(np.sort(known), candidates) / len(known)
    refused = np.searchsorted(np.sort(unknown), candidates) / len(unknown)
    best = int(np.argmax(kept + refused))
    return float(candidates[best]), float(kept[best]), float(refused[best])


def class_means(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """Mean features of each class: [way, d] of [n, d]."""
    member = F.one_hot(labels, way).to(features.dtype)
    return member.mT @ features / member.sum(0)[:, None]


def nearness(features: Tensor, means: Tensor) -> Tensor:
    """Minus the squared distance to the nearest class mean: [n] of features [n, d] and means [way, d].

    Softmax probabilities only compare the known classes with each other, and tell an unknown class much worse.
    """
    return -torch.cdist(features, means).square().amin(1)


def calibrate(
    learner: MetaLearner, theta: Theta, tasks: TaskDistribution, *, way: int, shot: int, steps: int | None, seed: int
) -> Calibration:
    """Fits temperature and threshold on tasks of this way and shot, or the nearest below that there are.

    steps: inner steps, as for `adapt`. seed: of the tasks; another than meta-training's.

    Raises:
        UserError: the tasks cannot give even two classes and one left out, or the learner cannot do their way.
    """
    episode, count = feasible(tasks, way, shot, seed)
    own_features = has_own_features(learner, theta, tasks.spec.item_shape)
    logits, labels, known, unknown = [], [], [], []
    with torch.no_grad():
        for support, query in held_out(tasks, episode, count, seed):
            output = learner.predict(theta, learner.adapt(theta, support, steps=steps), query.x)
            inside = query.y < support.way
            logits.append(output[inside])
            labels.append(query.y[inside])
            for t in range(len(support) if own_features else 0):
                assert isinstance(learner, FeatureLearner)
                means = class_means(learner.features(theta, support.x[t]), support.y[t], support.way)
                score = nearness(learner.features(theta, query.x[t]), means)
                known.append(score[inside[t]])
                unknown.append(score[~inside[t]])
    threshold, kept, refused = (
        fit_threshold(torch.cat(known).cpu().numpy(), torch.cat(unknown).cpu().numpy())
        if own_features
        else (None, 0.0, 0.0)
    )
    temperature = fit_temperature(torch.cat(logits), torch.cat(labels))
    return Calibration(temperature, threshold, kept, refused, episode.way - 1, episode.shot, count)


def has_own_features(learner: MetaLearner, theta: Theta, shape: tuple[int, ...]) -> bool:
    """Whether the learner gives an image features that do not depend on the images beside it: found by trying."""
    if not isinstance(learner, FeatureLearner):
        return False
    device = next(iter(theta.params.values())).device
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    x[1] *= 0.1  # as unlike as two images get
    with torch.no_grad():
        together, alone = learner.features(theta, x)[:1], learner.features(theta, x[:1])
    return bool((together - alone).norm() <= 0.02 * alone.norm())  # more than rounding in bfloat16


def feasible(tasks: TaskDistribution, way: int, shot: int, seed: int) -> tuple[EpisodeSpec, int]:
    """Episodes of `way` classes and one more, and how many of them; shot is halved first, then way, where they fail."""
    ways = [max(2, way) >> i for i in range(way.bit_length()) if max(2, way) >> i >= 2]
    shots = [shot >> i for i in range(shot.bit_length())]
    failure = None
    for w in ways:
        for s in shots:
            episode = EpisodeSpec(w + 1, s, QUERIES)
            count = int(np.clip(IMAGES // (episode.way * (s + QUERIES)), 12, 100))
            try:
                tasks.sample(np.arange(count), episode=episode, seed=seed)
            except UserError as error:
                failure = error
            else:
                return episode, count
    raise UserError(f"no tasks to calibrate on: {failure}")


def held_out(tasks: TaskDistribution, episode: EpisodeSpec, count: int, seed: int) -> Iterator[tuple[Batch, Batch]]:
    """Supports of all but each task's last class, and queries of all of them, whose label `way` says: left out."""
    for start in range(0, count, CHUNK):
        batch = tasks.sample(np.arange(start, min(start + CHUNK, count)), episode=episode, seed=seed)
        support, query = batch.support(), batch.query()
        kept = support.y < episode.way - 1  # as many in every task
        x, y, mask = (value[kept].unflatten(0, (len(support), -1)) for value in (support.x, support.y, support.mask))
        yield Batch(x, y, mask, episode.way - 1), replace(query, way=episode.way - 1)
