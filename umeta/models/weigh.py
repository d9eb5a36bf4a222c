"""How much of each of two networks, or of a network and descriptors: decided without a label.

Of a network and descriptors by how well each finds the other half of a picture (`weigh_by_halves`).

Of two networks on pictures that are each seen in two views (`weigh`). One of the two is trusted, unless the other,
which was trained to do that, finds a picture's other view far more often. How much the other one is worth beside it is
read off what both repeat: of the similarities that either finds again between other views, those that they have in
common are taken for what matters, and the rest for its own noise. Where two measurements share a signal, each is best
weighed by what it has of it over its noise. How much of what the trusted one repeats matters is not known; two thirds
are assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.parts import Augment

NAMES = "pre-trained alone", "learnt alone", "both"
DECISIVE = 2  # times as often the learner finds other views where it is trusted more
MATTERS = 2 / 3  # of what the trusted network repeats
NEIGHBOURS = 10
BATCH = 100  # images seen at a time
SMALLEST = 0.05  # a weight below it is none, and so is what is repeated
# of networks that say where things are, and of those that average over places: how much one counts beside descriptors
# where it finds halves as they do, and the largest weight, as none was best at more
PLACED, AVERAGING = (1 / 4, 2.0), (1 / 2, 0.8)

Views = list[np.ndarray]  # two views of the same pictures, as features [n, d]


@dataclass(frozen=True)
class Choice:
    """How much to take of each of two, and why."""

    weight: float
    """of the second one's cosine, that of the trusted one being 1; 0 for that alone, inf for the second alone"""
    common: float
    """share of what each repeats that both have, from 0 to 1"""
    found: dict[str, float]
    """how often each of the three finds a picture's other view among all"""
    interval: float
    """half of the 95 % interval of the last less the better of the others"""
    pictures: int

    def __str__(self) -> str:
        *alone, joint = self.found.items()
        better = max(value for _, value in alone)
        rows = ", ".join(f"{name} {value:.1%}" for name, value in self.found.items())
        return (
            f"{self.pictures} pictures without labels, found again in another view: "
            f"{rows} ({joint[1] - better:+.1%} ± {self.interval:.1%}); {self.common:.0%} of what they repeat is common"
        )


def weigh(frozen: Views, learnt: Views) -> Choice:
    """Choose the weight of what was learnt beside what is trusted, from two views of the same pictures by each."""
    cosines = [[unit(view) @ unit(view).T for view in views] for views in (frozen, learnt)]
    near = [[neighbours(one) for one in both] for both in cosines]
    across = [agree(near[0][i], near[1][1 - i]) for i in (0, 1)]
    repeated = [max(agree(*both), SMALLEST) for both in near]  # less is chance, of which no share can be told
    common = float(np.clip(np.mean(across) / np.prod(repeated) ** 0.5, 0, 1))
    spread = [np.mean([one[~np.eye(len(one), dtype=bool)].std() for one in both]) for both in cosines]
    found = [finds(*views) for views in (frozen, learnt)]
    trusted = int(found[1].mean() / DECISIVE > found[0].mean())
    other = min(common**2 / MATTERS, MATTERS)
    worth = (gain(other) / gain(MATTERS)) * spread[trusted] / np.maximum(spread[1 - trusted], 1e-9)
    worth = worth if worth >= SMALLEST else 0.0
    weight = worth if trusted == 0 else (1 / worth if worth else np.inf)
    joint = found[trusted] if worth == 0 else finds(*(mix(a, b, weight) for a, b in zip(frozen, learnt, strict=True)))
    gained = joint.astype(float) - found[trusted]
    interval = float(1.96 * gained.std() / len(gained) ** 0.5)
    shares = dict(zip(NAMES, (float(one.mean()) for one in (*found, joint)), strict=True))
    return Choice(float(weight), common, shares, interval, len(frozen[0]))


def gain(share: float) -> float:
    """Return the best weight of a measurement of unit variance of which this share is signal, but for a factor."""
    return share**0.5 / (1 - share)


def unit(z: np.ndarray) -> np.ndarray:
    """Scale vectors [n, d] to length 1."""
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)


def mix(frozen: np.ndarray, learnt: np.ndarray, weight: float) -> np.ndarray:
    """Features whose cosines are those of the frozen network and `weight` times those that were learnt."""
    return np.concatenate([unit(frozen), weight**0.5 * unit(learnt)], axis=1)


def neighbours(cosines: np.ndarray) -> np.ndarray:
    """Which items [n, n] bool are among the nearest of each, of cosines [n, n]."""
    cosines = cosines.copy()
    np.fill_diagonal(cosines, -np.inf)
    nearest = np.argpartition(-cosines, NEIGHBOURS, axis=1)[:, :NEIGHBOURS]
    chosen = np.zeros(cosines.shape, dtype=bool)
    np.put_along_axis(chosen, nearest, True, axis=1)
    return chosen


def agree(a: np.ndarray, b: np.ndarray) -> float:
    """Return the share of neighbours that two have in common, less what chance gives: 1 for all, 0 for chance."""
    chance = NEIGHBOURS / len(a)
    return max(0.0, float(((a & b).sum() / a.sum() - chance) / (1 - chance)))


def finds(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether the nearest of the second views is each picture's own [n]."""
    return (unit(first) @ unit(second).T).argmax(1) == np.arange(len(first))


def weigh_by_halves(described: Views, learnt: Views, averages: bool = False) -> tuple[float, str]:
    """Return a weight of a network beside descriptors, from what each makes of two halves of pictures; and why.

    averages: whether the network's features say nothing of where things are.

    Halves share at most a column of pixels, so that one finds the other among those of all pictures only by what both
    of them show. With m the mean reciprocal rank at which other halves are found, m / (1 - m) are the odds. The weight
    is a quarter of the fourth power of the network's odds over those of the descriptors, at most 2. Halves have their
    rows in common, by which a network that says where things are finds them more easily; of one that averages it is
    half of the fourth power, at most 0.8. Both came close to the best weight on validation classes for networks that
    had been trained for between 1 and 58 minutes.
    """
    n = len(described[0])
    ranked = [np.clip(rank_halves(*views), 0.5 / n, 1 - 0.5 / n) for views in (described, learnt)]
    odds = [mean / (1 - mean) for mean in ranked]
    share, largest = AVERAGING if averages else PLACED
    weight = min(float((odds[1] / odds[0]) ** 4 * share), largest)
    weight = weight if weight >= SMALLEST else 0.0
    return weight, (
        f"{n} pictures without labels, one half found by the other: mean reciprocal rank {ranked[0]:.2f} by "
        f"descriptors, {ranked[1]:.2f} by the network, which counts {weight:.2f}"
    )


def rank_halves(first: np.ndarray, second: np.ndarray) -> float:
    """Return the mean reciprocal rank of the second halves [n, d] among all for the first ones, and the other way.

    Ties count against it, so that a network that sees no differences finds nothing.
    """
    cosines = unit(first) @ unit(second).T
    ranks = [(some >= some.diagonal()[:, None]).sum(1) for some in (cosines, cosines.T)]
    return float(np.mean([1 / rank for rank in ranks]))


def look_twice(
    pair: Sequence[Tensor], augment: Augment, networks: list[Callable[[Tensor], Tensor]], seed: int
) -> list[Views]:
    """Return what each of the networks makes of a view of each of a pair of images [n, C, H, W], alike or not."""
    found: list[Views] = [[] for _ in networks]
    for i, x in enumerate(pair):
        keys = seeds.key(seed, "route", i, np.arange(len(x) * augment.randoms))
        u = torch.from_numpy(seeds.uniform(keys)).to(x.device)
        view = augment(x, u.view(len(x), augment.randoms))
        with torch.no_grad():
            for network, views in zip(networks, found, strict=True):
                views.append(torch.cat([network(some) for some in view.split(BATCH)]).cpu().numpy())
    return found
