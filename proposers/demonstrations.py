"""Demonstrations of skills, to be imitated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from umeta.parts import Context, Embedder, Environment, WithProposer
from umeta.tasks.demonstrated import Demonstrations as Tasks


@dataclass(frozen=True)
class Demonstrations(WithProposer):
    """One-shot imitation (Finn, Yu, Zhang, Abbeel, Levine 2017, arXiv 1709.04905, algorithm 1), of untaught skills.

    A skill of another proposer, such as DIAYN, is shown once: the inner loop clones what was done, and the outer loop
    what is done in other episodes of that skill. No reward is seen by either. It is tested on one demonstration of
    each goal, by a policy that was trained on the goal's reward.
    """

    domain: ClassVar[Literal["image", "env"]] = "env"
    demonstrates: ClassVar[bool] = True

    def propose(self, source: Environment, ctx: Context, embedder: Embedder | None = None) -> Tasks:
        """Learn skills with the proposer; raise UserError when it learns none."""
        found = self.proposer.propose(source, ctx)
        return Tasks(found.env, found.rewards, found.skills)
