"""A policy that is told a context: try several, regress what they earned, and take the best."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Annotated, ClassVar, Literal, Self

import torch
from annotated_types import Gt
from torch import Tensor

from umeta.errors import UserError
from umeta.metalearners._gradient import InnerLoop, UnrolledLearner
from umeta.types import Adapted, Batch, EpisodeSpec, TaskSpec, Theta

BIAS, TOLD, KNOWN = "1.bias", "told.weight", "told.known"
SPREAD, OWN = "head.free", "told.free"  # log standard deviations of all contexts, and what each adds to them
LENGTHS = (0.25, 0.5, 1.0, 2.0)  # of the kernel; contexts have a standard deviation of about 1
NOISES = (0.03, 0.1, 0.3, 1.0)  # variance of a return about what its context gives, where that of all returns is 1


@dataclass
class Context(UnrolledLearner):
    """Adapt by intelligent trial and error over contexts (Cully, Clune, Tarapore, Mouret 2015, arXiv 1407.3501).

    As in CAVIA (Zintgraf et al. 2019) a policy is told its context z by what that adds to the first layer's bias, B z,
    and meta-training moves B with the other weights. Before anything is known, each episode has a context of its own,
    out of those that are known. The first step regresses the episodes' returns on their contexts by a Gaussian process,
    and takes the known context for which that expects most. Later steps are MAML's, by the policy gradient.

    With `start: skills` the known contexts are the proposer's skills, in the few directions in which they differ most,
    and the noise of their actions is each one's own.
    """

    steps: Literal[1] = 1
    """inner steps in meta-training: the one that takes a context"""
    contexts: Annotated[int, Gt(1)] = 50
    """how many are known; with `start: skills` as many as the proposer has skills"""
    size: Annotated[int, Gt(0)] = 2
    """numbers in a context"""

    policies_only: ClassVar[bool] = True
    explores: ClassVar[bool] = True
    regresses: ClassVar[bool] = False
    family: ClassVar[str] = "by what a policy is told"

    def build(self, spec: TaskSpec, episode: EpisodeSpec) -> Self:
        """Return a copy with the network for such tasks.

        Raises:
            UserError: there is no policy, or the model is another than `mlp`.
        """
        if not spec.interactive:
            raise UserError("metalearner: context is for policies, on an environment; elsewhere take maml")
        learner = super().build(spec, episode)
        if BIAS not in learner.built.network.names:
            raise UserError("metalearner.model: a context is told to the first layer of an mlp; take that")
        learner.fixed = learner.fixed | {KNOWN, OWN}
        return learner

    def start_from(self, skills: dict[str, Tensor]) -> Theta:
        """Begin with the mean of skills' policies, and as contexts with what the biases of the first layer add to it.

        Raises:
            UserError: there are more or fewer skills than `contexts`.
        """
        if (count := len(skills[BIAS])) != self.contexts:
            raise UserError(
                f"metalearner.contexts: {self.contexts}, but the proposer has {count} skills; set it to that"
            )
        mean = super().start_from(skills).params
        apart = skills[BIAS] - mean[BIAS]
        _, lengths, directions = torch.linalg.svd(apart, full_matrices=False)
        told = directions[: self.size] * lengths[0] / count**0.5  # contexts have a standard deviation of at most 1
        own = skills[SPREAD] - mean[SPREAD]
        return Theta(mean | {TOLD: told, KNOWN: apart @ torch.linalg.pinv(told), OWN: own})

    def unadapted(self, theta: Theta, tasks: int) -> Adapted:
        """Give the policies of all known contexts, for `tasks` tasks."""
        told, own = theta.params[KNOWN] @ theta.params[TOLD], theta.params[OWN]
        each = {name: value.expand(tasks, -1, -1) for name, value in ((TOLD, told), (OWN, own))}
        return Adapted(super().unadapted(theta, tasks).params | each)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Answer x [T, N, ...]; before the first step each item is told the next of the known contexts."""
        if TOLD not in adapted.params:
            return super().predict(theta, adapted, x)
        tasks, items = x.shape[:2]
        each = {name: value.repeat_interleave(items, 0) for name, value in adapted.params.items()}
        turn = torch.arange(items, device=x.device) % self.contexts
        for name, added in ((BIAS, TOLD), (SPREAD, OWN)):
            each.pop(added)
            each[name] = each[name] + adapted.params[added][:, turn].flatten(0, 1)
        return super().predict(theta, Adapted(each), x.flatten(0, 1)[:, None]).view(tasks, items, -1)

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Take a context in the first step, and steps of the policy gradient from there."""
        if start is not None and start.steps:
            return InnerLoop(self, theta, support, start).descend(self.inner_lr, steps)
        assert support.reward is not None
        returns = (support.reward * support.mask).unflatten(1, (support.sequences, -1)).sum(-1)
        known = theta.params[KNOWN]
        tried = known[torch.arange(support.sequences, device=known.device) % self.contexts]
        best = expect(tried, returns, known).argmax(1)
        params = super().unadapted(theta, len(support)).params
        told = {BIAS: params[BIAS] + known[best] @ theta.params[TOLD], SPREAD: params[SPREAD] + theta.params[OWN][best]}
        return Adapted(params | told, steps=1)

    def _make_inner(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Draw B and the contexts."""
        random = torch.Generator().manual_seed(0)
        told = torch.randn(self.size, len(weights[BIAS]), generator=random) / len(weights[BIAS]) ** 0.5
        known = torch.randn(self.contexts, self.size, generator=random)
        return {TOLD: told, KNOWN: known, OWN: torch.zeros(self.contexts, len(weights[SPREAD]))}


@torch.no_grad()
def expect(tried: Tensor, returns: Tensor, known: Tensor) -> Tensor:
    """Give the returns [T, K] expected of the known contexts [K, z], in standard deviations from the mean.

    By a Gaussian process on the returns [T, E] of those that were tried [E, z]. Of a few lengths of the kernel and
    variances of the noise, each task has those under which its returns are the likeliest.
    """
    y = returns.double()
    y = ((y - y.mean(1, keepdim=True)) / (y.std(1, keepdim=True) + 1e-8)).mT  # [E, T]
    near, far = (torch.cdist(z.double(), tried.double()) ** 2 / 2 for z in (tried, known))
    likelihoods, means = [], []
    for length, noise in product(LENGTHS, NOISES):
        covariance = (-near / length**2).exp() + noise * torch.eye(len(tried), dtype=y.dtype, device=y.device)
        root = torch.linalg.cholesky(covariance)
        weights = torch.cholesky_solve(y, root)
        likelihoods.append(-(y * weights).sum(0) / 2 - root.diagonal().log().sum())
        means.append(((-far / length**2).exp() @ weights).mT)
    best = torch.stack(likelihoods).argmax(0)
    return torch.stack(means)[best, torch.arange(len(best), device=best.device)].to(returns)
