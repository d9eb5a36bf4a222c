"""A learnt inner loss: steps on the support descend what a small network says, and not the tasks' own loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umeta.errors import UserError
from umeta.metalearners._embedding import WeightedSum
from umeta.metalearners._gradient import UnrolledLearner
from umeta.types import Batch, EpisodeSpec, TaskSpec, Theta


@dataclass
class LearntLoss(UnrolledLearner):
    """A learnt inner loss (DAML, Yu, Finn et al. 2018, arXiv 1802.01557; ML^3, Bechtle et al. 2021, 1906.05374).

    MAML with the inner step `phi <- phi - inner_lr * grad mean_i sum_k g(o_ik, y_ik)^2`; the perceptron g is
    learnt with the initialisation. It sees each number that the network puts out for an item, and the label's: of a
    class its log-probability, and 1 or 0. With `labels: false` it sees no label, as where a demonstration comes without
    its actions, and a gradient on what was seen alone has to do (DAML, section 4.2; there g sees all of a film).
    """

    labels: bool = True
    """show labels to the learnt loss; `false` is for numbers alone, as classes cannot be told apart without"""

    def build(self, spec: TaskSpec, episode: EpisodeSpec) -> Self:
        """Return a copy with the network for such tasks.

        Raises:
            UserError: the model cannot take such items, rewards are to be earned, or classes told apart without labels.
        """
        if spec.interactive:
            raise UserError("metalearner: a learnt_loss sees no rewards; on an environment take maml")
        if not self.labels and not spec.outputs:
            raise UserError("metalearner.labels: classes cannot be told apart without them; set it to true")
        return super().build(spec, episode)

    def inner_loss(self, theta: Theta, output: Tensor, support: Batch) -> Tensor:
        """Return the learnt loss [T] of the support's output."""
        spec = self.built.spec
        if spec.outputs:
            said, label = output[..., : spec.outputs], support.y
        else:
            said, label = output.log_softmax(-1), F.one_hot(support.y, support.way)
        seen = torch.stack([said, label.to(said.dtype) * self.labels], -1)
        each = self._run_module(theta, seen).square().sum(2)
        return (each * support.mask).sum(1) / support.mask.sum(1)

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 40), nn.Tanh(), WeightedSum(40))
