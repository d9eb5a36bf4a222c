"""Tasks that a learner can do after adapting, but not too well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le

from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.objectives import accuracy
from umeta.parts import Context, Embedder, EmbedderTraits, WithProposer
from umeta.tasks.chosen import Chosen
from umeta.types import EpisodeSpec

CHUNK = 8  # tasks tried at a time


@dataclass(frozen=True)
class Curriculum(WithProposer):
    """A curriculum by success after adaptation, neither too little nor too much (POET's rule, Wang et al. 2019).

    With `embedding: learner`, or in a later one of a config's `rounds`, the learner so far tries tasks of another
    proposer: those stay in which it is right, after adapting, in a share of the queries between `least` and `most`. So
    the tasks answer back: as the learner gets better, those of the next round are harder.
    """

    domain: ClassVar[Literal["image", "env"]] = "image"

    way: Annotated[int, Gt(1)] = 20
    """classes in a task, as in `train`"""
    shot: Annotated[int, Gt(0)] = 1
    """support items of each class"""
    query: Annotated[int, Gt(0)] = 5
    """query items of each class"""
    candidates: Annotated[int, Gt(0)] = 500
    """tasks that are tried"""
    least: Annotated[float, Ge(0), Le(1)] = 0.2
    """least share of right answers"""
    most: Annotated[float, Ge(0), Le(1)] = 0.8
    """greatest share of right answers"""

    def propose(self, source: UnlabelledImages, ctx: Context, embedder: Embedder | None = None) -> Chosen:
        """Let the learner try tasks, and choose.

        Raises:
            UserError: there is no learner yet, or no task within the bounds.
        """
        trained = EmbedderTraits.of(embedder).trained
        if trained is None:
            raise UserError("proposer curriculum: no learner to try tasks; use it in rounds, or set embedding=learner")
        tasks = self.proposer.propose(source, ctx.part(0), embedder).to(ctx.device)
        episode = EpisodeSpec(self.way, self.shot, self.query)
        right = torch.zeros(self.candidates)

        def step(i: int) -> dict[str, float]:
            numbers = np.arange(CHUNK * i, min(CHUNK * (i + 1), self.candidates))
            batch = tasks.sample(numbers, episode=episode, seed=ctx.seed)
            query = batch.query()
            with torch.no_grad():
                adapted = trained.learner.adapt(trained.theta, batch.support())
                right[numbers] = accuracy(trained.learner.predict(trained.theta, adapted, query.x), query).cpu()
            return {"right": right[numbers].mean().item()}

        def load(state: dict[str, torch.Tensor]) -> None:
            right.copy_(state["right"])

        ctx.loop("curriculum", -(-self.candidates // CHUNK), step, lambda: {"right": right}, load)
        kept = ((right >= self.least) & (right <= self.most)).nonzero()[:, 0]
        low, middle, high = (f"{right.quantile(q):.2f}" for q in (0.1, 0.5, 0.9))
        said = f"{len(kept)} of {self.candidates} tasks: right answers in {middle}, in one of ten tasks below {low}"
        ctx.note(f"curriculum: {said}, in one above {high}")
        if not len(kept):
            raise UserError(f"proposer curriculum: {said}; set least and most so that some are between them")
        return Chosen(tasks.to("cpu"), kept.numpy(), ctx.seed, self.way)
