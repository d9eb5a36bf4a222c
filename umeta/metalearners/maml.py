"""MAML: learn an initialisation from which a few gradient steps on the support fit the query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt

from umeta.errors import UserError
from umeta.metalearners._gradient import HEAD, GradientLearner
from umeta.models.functional import Normalisation
from umeta.models.precision import Precision
from umeta.parts import Model
from umeta.types import EpisodeSpec, TaskSpec, Theta


@dataclass
class MAML(GradientLearner):
    """Model-agnostic meta-learning (MAML, Finn, Abbeel, Levine 2017, arXiv 1703.03400, algorithm 2).

    Inner loop, per task: `phi <- phi - inner_lr * grad L_support(phi)`, from phi = theta, `steps` times, where L is the
    mean loss over the support. Outer loop: the gradient of `L_query(phi)` with respect to theta, through the inner loop
    (second order) or taking the inner gradients as constants (first order, section 5.2 of the paper).

    Published inner rates for Omniglot are for a loss `way` times larger: see `scale_by_way`.
    """

    model: Model
    """the network below the linear head"""
    inner_lr: Annotated[float, Gt(0)] = 0.5
    """inner step size, for the mean loss"""
    steps: Annotated[int, Gt(0)] = 5
    """inner steps in meta-training"""
    test_steps: Annotated[int, Gt(0)] | None = None
    """inner steps at evaluation; by default those of meta-training"""
    schedule: Literal["constant", "harmonic"] = "constant"
    """`harmonic` divides the inner step size by the number of the step, counted on over rounds and at test: needed
    where the loss does not shrink by itself near the goal, as with normalised advantages"""
    first_order: bool = False
    """leave out second derivatives"""
    recompute: bool = False
    """do each inner step again in the backward pass instead of keeping what it computed: slower, and memory that hardly
    grows with `steps`"""
    scale_by_way: bool = False
    """multiply the inner step size by the task's way, as the code of MAML and CACTUs does (their loss is `way` times
    the mean); it matters where a learner is tested at another way than it was meta-trained on"""
    head: Literal["shared", "fixed", "prototypes"] = "shared"
    """`shared`: one learnt row, copied to every class, so any way can be asked for (UNICORN-MAML, Ye and Chao 2022);
    `fixed`: a row per class, for tasks of the way it was meta-trained on; `prototypes`: nothing learnt, the inner loop
    starts at the layer that the support's prototypes are (ProtoMAML, Triantafillou et al. 2020), for any way"""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """`cosine` gives the head features of length 1; prototypes then make a layer of cosines times a learnt scale that
    starts at 10, as in `protonet`"""
    normalisation: Normalisation = "support"
    """what batch normalisation normalises by (umeta/models/pure.py); `batch` is transductive"""
    precision: Precision = "float32"
    """of the network's pass over the queries; `auto` is bfloat16 where the hardware computes with it, which is faster.
    The inner loop stays in float32: the meta-gradient through it is made of differences between nearby weights, which
    bfloat16 rounds away"""
    adapts: list[str] | None = None
    """names of the weights that the inner loop moves, by default all. The first layer's bias alone, `[1.bias]` of an
    `mlp`, is what a context fed to that layer adds (CAVIA, Zintgraf et al. 2019, section 3.1), as skills are told to
    DIAYN's policies; few weights bear steps many times larger"""

    def init(self, spec: TaskSpec, episode: EpisodeSpec, seed: int) -> Theta:
        """Random weights, drawn from `seed`.

        Raises:
            UserError: `adapts` names what is no weight.
        """
        theta = super().init(spec, episode, seed)
        known = [name for name in (*self._net.names, *HEAD, "head.free") if name in theta.params or name in HEAD]
        if self.adapts is not None and (not self.adapts or set(self.adapts) - set(known)):
            raise UserError(f"metalearner.adapts: expected names among {', '.join(known)}, got {self.adapts}")
        return theta

    def _adapts(self, name: str) -> bool:
        return self.adapts is None or name in self.adapts
