"""Supports that show more than what is asked about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt

from umeta.data.images import UnlabelledImages
from umeta.parts import Context, Embedder, WithProposer
from umeta.tasks.distracted import Distracted


@dataclass(frozen=True)
class Distractors(WithProposer):
    """Further classes in the support, unlabelled and not asked about (Ren et al. 2018, arXiv 1803.00676, section 2)."""

    domain: ClassVar[Literal["image", "env"]] = "image"
    unlabelled: ClassVar[bool] = True

    classes: Annotated[int, Gt(0)] = 5
    """how many there are, each with `shot` items (as many as the way in the paper)"""

    def propose(self, source: UnlabelledImages, ctx: Context, embedder: Embedder | None = None) -> Distracted:
        """Propose with the proposer, and distract."""
        return Distracted(self.proposer.propose(source, ctx, embedder), self.classes)
