"""Several proposers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from umeta.context import RunContext
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.tasks import mixture
from umeta.types import Embedder


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
        if not self.proposers or len(weights) != len(self.proposers) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"{len(self.proposers)} proposers need as many weights, not negative, got {self.weights}")

    def propose(self, source: UnlabelledImages, ctx: RunContext, embedder: Embedder | None = None) -> mixture.Mixture:
        """Proposes with each in turn; raises UserError when one of them sees labels."""
        for proposer in self.proposers:
            if proposer.sees_labels:
                raise UserError("proposer mixture: an oracle cannot be mixed with proposers that see no labels")
        parts = tuple(proposer.propose(source, ctx, embedder) for proposer in self.proposers)
        return mixture.Mixture(tuple(self.weights or [1.0] * len(parts)), parts)
