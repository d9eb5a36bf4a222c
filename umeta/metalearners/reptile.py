"""Reptile: move the initialisation towards the weights that each task ends at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from umeta.metalearners._gradient import GradientLearner
from umeta.models.functional import Normalisation
from umeta.parts import Model
from umeta.types import Adapted, Batch, Theta


@dataclass
class Reptile(GradientLearner):
    """Reptile (Nichol, Achiam, Schulman 2018, arXiv 1803.02999, algorithm 2).

    `theta <- theta + epsilon * mean over tasks of (phi - theta)`, where phi is what `steps` of gradient descent on the
    task reach from theta: the outer step descends `theta - phi`. Support and query are one data set, and each step is
    on all of it (the paper draws mini-batches), so the loss that meta-training shows is one of items it has seen.

    `theta - phi` is the gradient of half the squared distance between where the inner loop begins and phi; so a
    beginning that is not theta's own, such as prototypes, is moved through what made it.
    """

    model: Model
    """the network below the linear head"""
    inner_lr: Annotated[float, Gt(0)] = 0.5
    """inner step size, for the mean loss"""
    steps: Annotated[int, Gt(1)] = 5
    """inner steps in meta-training; with a single one it would be joint training on all tasks"""
    test_steps: Annotated[int, Gt(0)] | None = None
    """inner steps at evaluation; by default those of meta-training"""
    head: Literal["shared", "fixed", "prototypes"] = "shared"
    """`shared`: one row for all classes, for any way; `fixed`: a row per class; `prototypes`: the inner loop starts at
    the layer that the support's prototypes are (umeta/metalearners/maml.py)"""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """`cosine` gives the head features of length 1: prototypes are then a layer of cosines (see `maml`)"""
    normalisation: Normalisation = "support"
    """what batch normalisation normalises by (umeta/models/pure.py); `batch` is transductive"""

    unadapted = None  # type: ignore[assignment]  # not for policies: their query is from after the adaptation

    def meta_gradient(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, dict[str, Tensor]]:
        """Adapted to the whole task, and `theta - phi`."""
        x, y, mask = (torch.cat([getattr(b, name) for b in (support, query)], 1) for name in ("x", "y", "mask"))
        task = Batch(x, y, mask, support.way)
        with torch.no_grad():
            begun, adapted = self._begin(theta, task), self.adapt(theta, task)
            apart = {name: value - adapted.params[name] for name, value in begun.items()}
        return adapted, self._pulled(theta, task, apart)
