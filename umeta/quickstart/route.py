"""`umeta run --backbone`: what was learnt from the pictures, a pre-trained network, or how much of each.

Decided without a label, on pictures that meta-training never saw, each seen in two views. The pre-trained network is
trusted, unless the learner, which was trained to do that, finds a picture's other view more than twice as often. How
much the other one is worth beside it is read off what both repeat: of the similarities that either finds again between
other views, those that they have in common are taken for what matters, and the rest for its own noise. Where two
measurements share a signal, each is best weighed by what it has of it over its noise. How much of what the trusted one
repeats matters is not known; two thirds are assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.config import registry
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.models.check import build_module
from umeta.models.functional import draw
from umeta.models.whitened import Straightened, find_whitening
from umeta.parts import Augment
from umeta.runtime.progress import note
from umeta.stages.join import join
from umeta.stages.runs import load_run

MATTERS = 2 / 3  # of what the trusted network repeats
DECISIVE = 2  # times as often the learner finds other views where it is trusted more
NEIGHBOURS = 10
HELD_OUT = 300  # pictures, about
LEAST = 50  # pictures that a choice can be based on
SOME = 300  # pictures that the pre-trained network's features are whitened by, at most
SMALLEST = 0.05  # a weight below it is none

Views = list[np.ndarray]  # two views of the same pictures, as features [n, d]


@dataclass(frozen=True)
class Choice:
    """How much to take of each of two networks, and why."""

    weight: float
    """of the learner's cosine, that of the pre-trained network being 1; 0 for that alone, inf for the learner alone"""
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
            f"{self.pictures} pictures that meta-training did not see, without labels, found again in another view: "
            f"{rows} ({joint[1] - better:+.1%} ± {self.interval:.1%}); {self.common:.0%} of what they repeat is common"
        )


def weigh(frozen: Views, learnt: Views) -> Choice:
    """Choose the weight of what was learnt beside a frozen network, from two views of the same pictures by each."""
    cosines = [[unit(view) @ unit(view).T for view in views] for views in (frozen, learnt)]
    near = [[neighbours(one) for one in both] for both in cosines]
    across = [agree(near[0][i], near[1][1 - i]) for i in (0, 1)]
    repeated = [agree(*both) for both in near]
    common = float(np.clip(np.mean(across) / max(float(np.prod(repeated)) ** 0.5, 1e-9), 0, 1))
    spread = [np.mean([one[~np.eye(len(one), dtype=bool)].std() for one in both]) for both in cosines]
    found = [finds(*views) for views in (frozen, learnt)]
    trusted = int(found[1].mean() > DECISIVE * found[0].mean())
    other = min(common**2 / MATTERS, MATTERS)
    worth = (gain(other) / gain(MATTERS)) * spread[trusted] / np.maximum(spread[1 - trusted], 1e-9)
    worth = worth if worth >= SMALLEST else 0.0
    weight = worth if trusted == 0 else (1 / worth if worth else np.inf)
    joint = found[trusted] if worth == 0 else finds(*(mix(a, b, weight) for a, b in zip(frozen, learnt, strict=True)))
    gained = joint.astype(float) - found[trusted]
    interval = float(1.96 * gained.std() / len(gained) ** 0.5)
    names = ("pre-trained alone", "learnt alone", "both")
    shares = dict(zip(names, (float(one.mean()) for one in (*found, joint)), strict=True))
    return Choice(float(weight), common, shares, interval, len(frozen[0]))


def gain(share: float) -> float:
    """Return the best weight of a measurement of unit variance of which this share is signal, but for a factor."""
    return share**0.5 / (1 - share)


def unit(z: np.ndarray) -> np.ndarray:
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


def look_twice(x: Tensor, augment: Augment, networks: list[Callable[[Tensor], Tensor]], seed: int) -> list[Views]:
    """Return what each of the networks makes of two views of images x [n, C, H, W]."""
    found: list[Views] = [[] for _ in networks]
    for i in range(2):
        keys = seeds.key(seed, "route", i, np.arange(len(x) * augment.randoms))
        u = torch.from_numpy(seeds.uniform(keys)).to(x.device)
        view = augment(x, u.view(len(x), augment.randoms))
        with torch.no_grad():
            for network, views in zip(networks, found, strict=True):
                views.append(network(view).cpu().numpy())
    return found


def look(images: UnlabelledImages, network: Callable[[Tensor], Tensor], device: torch.device | str) -> np.ndarray:
    """Return what a network makes of some of the images, spread over all of them: [n, d]."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), SOME)).astype(int)
    with torch.no_grad():
        parts = [network(images.floats(part, device)).cpu().numpy() for part in np.array_split(chosen, 1 + SOME // 128)]
    return np.concatenate(parts)


def route(folder: Path, backbones: Sequence[Mapping[str, Any]], *, device: str = "auto") -> tuple[Path, Choice]:
    """Weigh a run against a pre-trained network and write what is best beside it: the kept run, and the choice.

    backbones: of several the one that finds other views most often is taken.

    Raises:
        UserError: the run held out too few pictures, or a network cannot be had.
    """
    run = load_run(folder, device=device)
    images = UnlabelledImages.of(run.config.data.read("val").pixels)
    if len(images) < LEAST:
        raise UserError(
            f"--backbone: {len(images)} pictures are held out, and {LEAST} are needed to choose; add pictures, or "
            "write a config with the model of your choice (docs/plugins.md)"
        )
    here = next(iter(run.theta.params.values())).device
    shown = UnlabelledImages.of(run.config.data.read("train").pixels)
    x, augment = images.floats(slice(0, 2 * HELD_OUT), here), run.config.proposer.augment

    def see_by(network: Callable[[Tensor], Tensor]) -> Views:
        return look_twice(x, augment, [network], run.config.seed)[0]

    tried = []
    for backbone in backbones:
        model = registry.build_part("model", dict(backbone))
        net = draw(lambda model=model: build_module(model, run.item_shape, "--backbone"), seed=0).eval().to(here)
        note(f"looking at pictures through {backbone['network']}")
        whitening = find_whitening(look(shown, net, here))
        views = see_by(Straightened(net, *whitening).to(here))
        tried.append((finds(*views).mean(), backbone, whitening, views))
        if len(backbones) > 1:
            note(f"{backbone['network']} finds {tried[-1][0]:.1%} of the other views")
    _, backbone, whitening, views = max(tried, key=lambda one: one[0])
    learner: Any = run.learner
    choice = weigh(views, see_by(lambda view: learner.features(run.theta, view)))
    note(str(choice))
    if np.isinf(choice.weight):
        return folder, choice
    kept = folder.with_name(f"{folder.name}-{'joint' if choice.weight else 'pretrained'}")
    if not kept.exists():  # as after --resume
        whitened = {"name": "whitened", "model": dict(backbone), "features": len(whitening[0])}
        put = dict(zip(("mean", "directions"), whitening, strict=True))
        join(run, whitened, round(choice.weight, 3), kept, put)
    return kept, choice
