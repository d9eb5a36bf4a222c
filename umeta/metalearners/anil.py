"""ANIL: MAML whose inner loop moves the head alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt
from torch import Tensor

from umeta.metalearners._gradient import Answer, GradientLearner
from umeta.models.functional import Normalisation
from umeta.parts import Model
from umeta.types import Stats


@dataclass
class ANIL(GradientLearner):
    """Almost no inner loop (ANIL, Raghu, Raghu, Bengio, Vinyals 2020, arXiv 1909.09157, section 4).

    MAML with the inner loop `head <- head - inner_lr * grad_head L_support(body, head)` and the body as it is: features
    are reused and not learnt anew for each task. The outer loop learns both.
    """

    model: Model
    """the body: the network below the linear head"""
    inner_lr: Annotated[float, Gt(0)] = 0.5
    """inner step size, for the mean loss"""
    steps: Annotated[int, Gt(0)] = 5
    """inner steps in meta-training"""
    test_steps: Annotated[int, Gt(0)] | None = None
    """inner steps at evaluation; by default those of meta-training"""
    schedule: Literal["constant", "harmonic"] = "constant"
    """`harmonic` divides the inner step size by the number of the step"""
    first_order: bool = False
    """leave out second derivatives"""
    head: Literal["shared", "fixed", "prototypes"] = "shared"
    """`shared`: one row for all classes, for any way; `fixed`: a row per class; `prototypes`: the inner loop starts at
    the layer that the support's prototypes are (umeta/metalearners/maml.py)"""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """`cosine` gives the head features of length 1: prototypes are then a layer of cosines (see `maml`)"""
    normalisation: Normalisation = "support"
    """what batch normalisation normalises by (umeta/models/pure.py); `batch` is transductive"""

    def _adapts(self, name: str) -> bool:
        return name.startswith("head.")

    def _answering(self, fast: dict[str, Tensor], x: Tensor, stats: Stats | None) -> Answer:
        features, used = self._net.per_task(fast, x, stats)  # once for all steps
        return lambda fast: (self._linear(fast, features), used)
