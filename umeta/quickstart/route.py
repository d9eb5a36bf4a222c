"""`umeta run --backbone`: what was learnt from the pictures, a pre-trained network, or how much of each.

Decided without a label (`umeta.models.weigh`), on pictures that meta-training never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta.config import registry
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.models.check import build_module
from umeta.models.functional import draw
from umeta.models.weigh import Choice, Views, finds, look_twice, weigh
from umeta.models.whitened import Straightened, find_whitening
from umeta.runtime.progress import note
from umeta.stages.join import join
from umeta.stages.runs import load_run

HELD_OUT = 300  # pictures, about
LEAST = 50  # pictures that a choice can be based on
SOME = 300  # pictures that the pre-trained network's features are whitened by, at most


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
    here = run.theta.device
    shown = UnlabelledImages.of(run.config.data.read("train").pixels)
    x, augment = images.floats(slice(0, 2 * HELD_OUT), here), run.config.proposer.augment

    def see_by(network: Callable[[Tensor], Tensor]) -> Views:
        return look_twice((x, x), augment, [network], run.config.seed)[0]

    tried = []
    for backbone in backbones:
        model = registry.build_part("model", dict(backbone))
        net = draw(partial(build_module, model, run.item_shape, "--backbone"), seed=0).eval().to(here)
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
