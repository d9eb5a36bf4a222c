"""A meta-learner LSTM: a learnt initialisation, and a learnt optimiser whose cell state is the weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from umeta.metalearners._gradient import InnerLoop, UnrolledLearner
from umeta.models.functional import draw
from umeta.types import Adapted, Batch, Theta, along

SMALL = 10.0  # gradients below exp(-SMALL) are given as they are


@dataclass
class MetaLSTM(UnrolledLearner):
    """Optimization as a model for few-shot learning (meta-LSTM, Ravi, Larochelle 2017, equations 2 to 4).

    The update of an LSTM's cell, `c_t = f_t c_(t-1) + i_t c~_t`, with the weights for c and minus the gradient of the
    support's loss for c~. For each weight by itself `i_t = sigmoid(W_I [grad, loss, weight, i_(t-1)] + b_I)`, and the
    forget gate f_t likewise; all weights share W and b, which are learnt as the initialisation c_0 is. Gradient and
    loss are given as the logarithm of their size and their sign (Andrychowicz et al. 2016, arXiv 1606.04474, appendix
    A), and count as constants. i begins as `inner_lr` and f close to 1, so that a new learner is first-order MAML.

    Unlike the paper there is no other LSTM between gradients and gates.
    """

    first_order: bool = True
    """take gradients on the support as constants, as the paper does"""

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Adapt each task's weights [T, ...] by the gates; they remember nothing of an earlier call."""
        loop = InnerLoop(self, theta, support, start)
        phi = loop.start
        w, b = theta.params["gates.weight"], theta.params["gates.bias"]
        gates = {n: [torch.full_like(phi[n], self.inner_lr), torch.ones_like(phi[n])] for n in loop.moving}
        for size in loop.sizes(1.0, steps):
            gradient = loop.gradient(phi)
            for name, g in gradient.items():
                seen = [*describe(g), *(along(value, g) for value in describe(loop.loss)), phi[name]]
                for k, old in enumerate(gates[name]):
                    terms = zip(w[k], [*seen, old], strict=True)
                    gates[name][k] = (b[k] + sum(weight * value for weight, value in terms)).sigmoid()
                i, f = gates[name]
                phi = phi | {name: f * phi[name] - size * i * g}
        return loop.finish(phi)

    def _make_inner(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make the gates' weights, small, and their biases."""
        weight = draw(lambda: nn.Linear(6, 2), seed=0).weight.detach() / 100
        return {"gates.weight": weight, "gates.bias": torch.tensor([self.inner_lr, 1 - 1e-4]).logit()}


def describe(value: Tensor) -> tuple[Tensor, Tensor]:
    """Return the size of numbers on a scale from -1 to about 1, and their sign, or what is left of very small ones."""
    small = value.abs() < torch.tensor(-SMALL).exp()
    size = value.abs().clamp(min=torch.finfo(value.dtype).tiny).log() / SMALL
    return torch.where(small, -1, size), torch.where(small, value * torch.tensor(SMALL).exp(), value.sign())
