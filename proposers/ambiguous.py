"""Supports that leave open what the classes are told apart by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from umeta.data.images import UnlabelledImages
from umeta.parts import Context, Embedder, WithProposer
from umeta.tasks import ambiguous


@dataclass(frozen=True)
class Ambiguous(WithProposer):
    """Two classes, one of them dimmed: told by what is shown, or by shade (after Finn, Xu, Levine 2018, section 6)."""

    domain: ClassVar[Literal["image", "env"]] = "image"

    def propose(self, source: UnlabelledImages, ctx: Context, embedder: Embedder | None = None) -> ambiguous.Ambiguous:
        """Propose with the proposer, and dim one class of each task."""
        return ambiguous.Ambiguous(self.proposer.propose(source, ctx, embedder))
