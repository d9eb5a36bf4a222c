"""Calibration on a learner's own examples: how sure an answer is, and when nothing known is near.

Each example is answered by a learner that has not seen it, adapted to the others, a fold of them at a time. What that
says holds for new pictures of the same classes, as unlike those of meta-training as they may be, and with a little less
than as many examples a class as there are: with two of each, probabilities come out too careful by a few points.
One example of a class cannot say how unlike its pictures are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from umeta.errors import UserError
from umeta.types import Batch, FeatureLearner, MetaLearner, Theta

LOST = 10  # one of this many pictures of known classes may be taken for unknown; more where examples are few
FOLDS = 5  # at most


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and on how many examples."""

    temperature: float
    """logits are divided by it"""
    threshold: float | None
    """answers whose `nearness` is below it are `unknown`; None for a learner without features of its own"""
    kept: float
    """share of new pictures of known classes that is expected not to be below the threshold"""
    low: float
    high: float
    """where that share is with 90 % probability, as far as so few examples can tell"""
    refused: float | None
    """share of the examples of a class that is below the threshold of a learner of the others; None of one class"""
    examples: int
    """how many were left out in turn"""
    right: int
    """how many of them were answered right"""

    @classmethod
    def read(cls, values: Mapping[str, Any] | None) -> Calibration | None:
        """Read stored values; those of earlier versions, fitted on the images of meta-training, count for nothing."""
        return cls(**values) if values and "examples" in values else None

    def __str__(self) -> str:
        told = (
            f"calibrated on {self.examples} examples, left out in turn: {self.right} were answered right; temperature "
            f"{self.temperature:.3g}; "
        )
        if self.threshold is None:
            return told + "no threshold for unknown"
        told += f"--unknown keeps about {self.kept:.0%} of these classes' pictures ({self.low:.0%} to {self.high:.0%})"
        if self.refused is None:
            return told
        return told + f", and refused {self.refused:.0%} of the examples of a class left out"


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
    """Find the T > 0 at which the mean confidence of `softmax(logits / T)` is the share of right answers.

    That of minimal cross-entropy (Guo et al. 2017) needs more answers than there are examples: the one that is most
    wrong decides it. The share is counted as if half an answer more were right and half a one wrong (Jeffreys), so that
    T stays above zero where every answer is right.

    logits: [n, way]; labels: [n] int64 below way.
    """
    z = logits.double()
    share = (int((z.argmax(1) == labels).sum()) + 0.5) / (len(z) + 1)
    low, high = -12.0, 12.0  # of log(1 / T), in which the confidence grows
    for _ in range(60):
        middle = (low + high) / 2
        sure = (z * np.exp(middle)).softmax(1).amax(1).mean()
        low, high = (low, middle) if sure > share else (middle, high)
    return float(np.exp(-low))


def fit_threshold(known: np.ndarray) -> tuple[float, float, float, float]:
    """Return the threshold that loses one in `LOST` of new scores, the share it keeps, and that share's 90 % interval.

    Of n scores and a new one every order is as likely, so that the new one is below the k-th smallest with probability
    k / (n + 1) (split conformal prediction, Vovk et al. 2005): on average. With the n scores that there are, the share
    kept is that of a beta distribution.

    known: [n] scores, larger for known.
    """
    from scipy.stats import beta

    n = len(known)
    rank = max(1, (n + 1) // LOST)
    low, high = beta.ppf([0.05, 0.95], n + 1 - rank, rank)
    return float(np.sort(known)[rank - 1]), 1 - rank / (n + 1), float(low), float(high)


def class_means(features: Tensor, labels: Tensor, way: int) -> Tensor:
    """Mean features of each class: [way, d] of [n, d]."""
    member = F.one_hot(labels, way).to(features.dtype)
    return member.mT @ features / member.sum(0)[:, None]


def nearness(features: Tensor, means: Tensor, shots: Tensor) -> Tensor:
    """Minus the squared distance to the nearest class mean: [n] of features [n, d], means [way, d] and shots [way].

    From the mean of n examples a picture of the same class is 1 + 1 / n times as far, squared, as from the mean of all
    of them; the distances are divided by that. Softmax probabilities only compare the known classes with each other,
    and tell an unknown class much worse.
    """
    return -(torch.cdist(features, means).square() / (1 + 1 / shots)).amin(1)


def calibrate(learner: MetaLearner, theta: Theta, x: Tensor, labels: np.ndarray, steps: int | None) -> Calibration:
    """Leave examples x [n, C, H, W] and their labels [n] out in turn, and fit temperature and threshold on the answers.

    steps: inner steps, as for `adapt`.

    Raises:
        UserError: there is no more than one example of any class.
    """
    y = torch.from_numpy(labels).to(x.device)
    shots = torch.bincount(y)
    way = len(shots)
    z = learner.features(theta, x) if has_own_features(learner, theta, tuple(x.shape[1:])) else None
    logits, known, order = [], [], []
    for out in map(torch.from_numpy, folds(labels)):
        adapted = learner.adapt(theta, one_task(x[~out], y[~out], way), steps=steps)
        logits.append(learner.predict(theta, adapted, x[out][None])[0])
        order.append(y[out])
        if z is not None:
            known.append(nearness(z[out], class_means(z[~out], y[~out], way), torch.bincount(y[~out])))
    if not order:
        raise UserError(
            "one example of a class cannot tell how unlike its pictures are; give two of each or more, five are better"
        )
    answers, right = torch.cat(logits), torch.cat(order)
    threshold, kept, low, high, refused = None, 0.0, 0.0, 0.0, None
    if z is not None:
        threshold, kept, low, high = fit_threshold(torch.cat(known).cpu().numpy())
        means = class_means(z, y, way)
        others = [nearness(z[y == c], means[o], shots[o]) for c in range(way) if (o := torch.arange(way) != c).any()]
        refused = float((torch.cat(others) < threshold).double().mean()) if others else None
    return Calibration(
        fit_temperature(answers, right),
        threshold,
        kept,
        low,
        high,
        refused,
        examples=len(right),
        right=int((answers.argmax(1) == right).sum()),
    )


def folds(labels: np.ndarray) -> Iterator[np.ndarray]:
    """Which examples to leave out at a time, [n] bool: each once, and never all of a class; a single one never."""
    shots = np.bincount(labels)
    place = np.empty(len(labels), np.int64)
    for label, count in enumerate(shots):
        place[labels == label] = np.arange(count)
    number = min(FOLDS, shots.max(initial=0))
    for i in range(number):
        if (left_out := (place % number == i) & (shots[labels] > 1)).any():
            yield left_out


def has_own_features(learner: MetaLearner, theta: Theta, shape: tuple[int, ...]) -> TypeGuard[FeatureLearner]:
    """Whether the learner gives an image features that do not depend on the images beside it: found by trying."""
    if not isinstance(learner, FeatureLearner):
        return False
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).to(theta.device)
    x[1] *= 0.1  # as unlike as two images get
    with torch.no_grad():
        together, alone = learner.features(theta, x)[:1], learner.features(theta, x[:1])
    return bool((together - alone).norm() <= 0.02 * alone.norm())  # more than rounding in bfloat16


def one_task(x: Tensor, y: Tensor, way: int) -> Batch:
    """Make the support [1, n, ...] of one task of items x [n, ...] and their labels y [n]."""
    return Batch(x[None], y[None], torch.ones_like(y, dtype=torch.bool)[None], way)
