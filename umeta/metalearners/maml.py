"""MAML: learn an initialisation from which a few gradient steps on the support fit the query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

from annotated_types import Gt

from umeta.errors import UserError
from umeta.metalearners._gradient import HEAD, InnerLoop, UnrolledLearner
from umeta.models.precision import Precision
from umeta.types import Adapted, Batch, EpisodeSpec, TaskSpec, Theta


@dataclass
class MAML(UnrolledLearner):
    """Model-agnostic meta-learning (MAML, Finn, Abbeel, Levine 2017, arXiv 1703.03400, algorithm 2).

    Inner loop, per task: `phi <- phi - inner_lr * grad L_support(phi)`, from phi = theta, `steps` times, where L is the
    mean loss over the support. Outer loop: the gradient of `L_query(phi)` with respect to theta, through the inner loop
    (second order) or taking the inner gradients as constants (first order, section 5.2 of the paper).

    Published inner rates for Omniglot are for a loss `way` times larger: see `scale_by_way`.
    """

    recompute: bool = False
    """do each inner step again in the backward pass instead of keeping what it computed: slower, and memory that hardly
    grows with `steps`"""
    scale_by_way: bool = False
    """multiply the inner step size by the task's way, as the code of MAML and CACTUs does (their loss is `way` times
    the mean); it matters where a learner is tested at another way than it was meta-trained on"""
    precision: Precision = "float32"
    """of the network's pass over the queries; `auto` is bfloat16 where the hardware computes with it, which is faster.
    The inner loop stays in float32: the meta-gradient through it is made of differences between nearby weights, which
    bfloat16 rounds away"""
    inner_kl: Annotated[float, Gt(0)] | None = None
    """of a policy: nats that an inner step moves it on the support's states (mean KL divergence), in place of
    `inner_lr`, whose unit depends on environment and network; `harmonic` divides the nats by the number of the step.
    The meta-gradient takes the step's size for a constant: its derivative did not pay on HalfCheetah"""
    adapts: list[str] | None = None
    """names of the weights that the inner loop moves, by default all. The first layer's bias alone, `[1.bias]` of an
    `mlp`, is what a context fed to that layer adds (CAVIA, Zintgraf et al. 2019, section 3.1), as skills are told to
    DIAYN's policies; few weights bear steps many times larger"""

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Run algorithm 2's inner loop on the supports D of T tasks, from theta or further from `start`.

        The adapted weights are phi [T, ...], differentiable with respect to theta where autograd is on. The loop
        around it, lines 2 to 4 and 8 to 10, is that of every learner: umeta/train.py.
        """
        alpha = self.inner_lr * (support.way if self.scale_by_way else 1)
        loop = InnerLoop(self, theta, support, start)
        phi = loop.start  # theta, once for each task
        for size in loop.sizes(self.inner_kl or alpha, steps):  # alpha each time, unless a schedule says otherwise
            gradient = loop.gradient(phi)  # line 6: of the loss on D, at phi
            phi = loop.move_by(phi, gradient, size) if self.inner_kl else loop.move(phi, gradient, size)  # line 7
        return loop.finish(phi)

    def build(self, spec: TaskSpec, episode: EpisodeSpec) -> Self:
        """Return a copy with the network for such tasks.

        Raises:
            UserError: the model cannot take such items, `adapts` names what is no weight, or `inner_kl` is given
                where there is no policy.
        """
        if self.inner_kl and not spec.interactive:
            raise UserError("metalearner.inner_kl: is for policies on an environment; elsewhere set inner_lr")
        learner = super().build(spec, episode)
        known = [*learner.built.network.names, *HEAD, *(["head.free"] if spec.free else [])]
        if self.adapts is not None and (not self.adapts or set(self.adapts) - set(known)):
            raise UserError(f"metalearner.adapts: expected names among {', '.join(known)}, got {self.adapts}")
        if self.adapts is not None and (still := learner.fixed.intersection(self.adapts)):
            raise UserError(f"metalearner.adapts: the model says that '{min(still)}' needs no gradient; leave it out")
        if self.adapts is not None and self.head == "shared" and not spec.outputs and HEAD[0] not in self.adapts:
            raise UserError(
                f"metalearner.adapts: with head: shared all classes begin as the same row, and only steps of {HEAD[0]} "
                f"tell them apart; add {HEAD[0]}, or set metalearner.head to fixed or prototypes"
            )
        return learner

    def adapts_weight(self, name: str) -> bool:
        """Whether the inner loop moves the weight of this name."""
        return self.adapts is None or name in self.adapts
