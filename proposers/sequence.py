"""Tasks one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Gt

from umeta.data.images import UnlabelledImages
from umeta.parts import Context, Embedder, WithProposer
from umeta.tasks.sequence import InSequence


@dataclass(frozen=True)
class Sequence(WithProposer):
    """Follow the meta-leader (FTML, Finn, Rajeswaran, Kakade, Levine 2019, arXiv 1902.08438, algorithm 1).

    Tasks come one after the other, and meta-training goes over those met so far: with MAML this is online MAML, and any
    other learner takes its place. With `train.snapshots` a report has the regret: the accuracy on tasks that were just
    about to come, by the learner as it was then and as it ended.
    """

    domain: ClassVar[Literal["image", "env"]] = "image"

    updates: Annotated[int, Gt(0)] = 8
    """tasks of meta-training for each new one, the new one among them"""

    def propose(self, source: UnlabelledImages, ctx: Context, embedder: Embedder | None = None) -> InSequence:
        """Propose with the proposer."""
        return InSequence(self.proposer.propose(source, ctx, embedder), self.updates)
