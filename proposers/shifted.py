"""Supports of one domain, and queries of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Le

from umeta.data.images import UnlabelledImages
from umeta.parts import Context, Embedder, WithProposer
from umeta.tasks import shifted


@dataclass(frozen=True)
class Shifted(WithProposer):
    """Tasks from shifted domains: turned pictures and negatives (for MLDG, Li, Yang, Song, Hospedales 2018)."""

    domain: ClassVar[Literal["image", "env"]] = "image"

    domains: Annotated[int, Ge(2), Le(shifted.DOMAINS)] = shifted.DOMAINS
    """how many there are: 4 are turns of the pictures, the next 4 those of their negatives"""

    def propose(self, source: UnlabelledImages, ctx: Context, embedder: Embedder | None = None) -> shifted.Shifted:
        """Propose with the proposer, and shift."""
        return shifted.Shifted(self.proposer.propose(source, ctx, embedder), self.domains)
