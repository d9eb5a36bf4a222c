"""Several proposers at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.parts import Context, Embedder, ProposerTraits
from umeta.tasks import mixture


@dataclass(frozen=True)
class Mixture:
    """Tasks of several proposers, drawn with weights (as UFLST and C3LR mix clusters and instances, 2020, 2022)."""

    domain: ClassVar[Literal["image", "env"]] = "image"
    sees_labels: ClassVar[bool] = False

    proposers: list[Any]
    """the proposers, each a name or a mapping as under `proposer`"""
    weights: list[float] | None = None
    """share of the tasks that each gives; by default all the same"""

    def __post_init__(self) -> None:
        weights = self.weights or [1.0] * len(self.proposers)
        sound = all(weight >= 0 for weight in weights) and 0 < sum(weights) < math.inf
        if len(weights) != len(self.proposers) or not sound:
            raise ValueError(f"{len(self.proposers)} proposers need as many weights, not negative, got {self.weights}")

        if other := [type(proposer).__name__ for proposer in self.proposers if proposer.domain != "image"]:
            raise ValueError(f"mixes proposers of tasks on images, and {other[0]} proposes none of them")

    @property
    def unlabelled(self) -> bool:
        """Whether the supports of one of them hold items without a label."""
        return any(ProposerTraits.of(proposer).unlabelled for proposer in self.proposers)

    def propose(self, source: UnlabelledImages, ctx: Context, embedder: Embedder | None = None) -> mixture.Mixture:
        """Propose with each in turn; raise UserError when one of them sees labels."""
        for proposer in self.proposers:
            if proposer.sees_labels:
                raise UserError("proposer mixture: an oracle cannot be mixed with proposers that see no labels")
        parts = tuple(proposer.propose(source, ctx.part(i), embedder) for i, proposer in enumerate(self.proposers))
        return mixture.Mixture(tuple(self.weights or [1.0] * len(parts)), parts)
