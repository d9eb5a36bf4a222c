"""Supports of one domain, and queries of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Le

from umeta.data.images import UnlabelledImages
from umeta.parts import Context, Embedder, ProposerTraits
from umeta.tasks import shifted


@dataclass(frozen=True)
class Shifted:
    """Tasks from shifted domains: turned pictures and negatives (for MLDG, Li, Yang, Song, Hospedales 2018)."""

    domain: ClassVar[Literal["image", "env"]] = "image"

    proposer: Any
    """of the tasks, a name or a mapping"""
    domains: Annotated[int, Ge(2), Le(shifted.DOMAINS)] = shifted.DOMAINS
    """how many there are: 4 are turns of the pictures, the next 4 those of their negatives"""

    @property
    def sees_labels(self) -> bool:
        """Whether its proposer does."""
        return self.proposer.sees_labels

    @property
    def unlabelled(self) -> bool:
        """Whether its proposer's supports hold items without a label."""
        return ProposerTraits.of(self.proposer).unlabelled

    def propose(self, source: UnlabelledImages, ctx: Context, embedder: Embedder | None = None) -> shifted.Shifted:
        """Propose with the proposer, and shift."""
        return shifted.Shifted(self.proposer.propose(source, ctx, embedder), self.domains)
