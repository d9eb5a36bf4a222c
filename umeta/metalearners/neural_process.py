"""Neural processes: a latent variable, inferred from the support, of which a decoder makes the whole function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from umeta.metalearners._distribution import draw_noise, join, likelihood, mix_classes, mix_numbers
from umeta.metalearners._sequence import SequenceLearner, label_width
from umeta.types import Adapted, Batch, EpisodeSpec, OwnMetaLoss, TaskSpec, Theta


@dataclass
class NeuralProcess(SequenceLearner, OwnMetaLoss):
    """Neural processes (NP, Garnelo et al. 2018, arXiv 1807.01622, section 2.1).

    `q(z | D) = N(mu(r), sigma(r))` of `r = mean_i h(x_i, y_i)` over D, and `g(x, z)` gives the distribution of an
    answer: logits, or of numbers mean and log standard deviation. The outer loop ascends the mean over the query of
    `E_q(z | support, query) [log p(y | x, z)]` less `KL(q(z | support, query) || q(z | support))` for each item.
    An answer is the mixture over draws of z from the support, whose noise is a hash of the support, so
    that it is the same when asked again. Of classes it has the way of its meta-training, and no other.
    """

    hidden: Annotated[int, Gt(0)] = 128
    """numbers in z and in each hidden layer"""
    draws: Annotated[int, Gt(0)] = 10
    """of z"""

    family: ClassVar[str] = "by a distribution, not a point"

    def _make_module(self, spec: TaskSpec, episode: EpisodeSpec, features: int) -> nn.Module:
        width = label_width(spec, episode)
        return Latent(features, width, self.hidden, 2 * width if spec.outputs else width)

    def adapt(self, theta: Theta, support: Batch, *, start: Adapted | None = None, steps: int | None = None) -> Adapted:
        """Infer the latent variable: mean and standard deviation [T, hidden], and draws of it [T, draws, hidden]."""
        read = super().adapt(theta, support)
        mean, std = self._run_module(theta, "encode", read.params["pairs"], read.params["present"])
        z = mean[:, None] + std[:, None] * draw_noise(support, self.draws, self.hidden).to(mean)
        return Adapted({"mean": mean, "std": std, "z": z}, read.stats)

    def predict(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Return log-probabilities [T, N, way] of x [T, N, ...], or mean and log standard deviation of numbers."""
        mix = mix_numbers if self.built.spec.outputs else mix_classes
        return mix(self.predict_each(theta, adapted, x))

    def predict_each(self, theta: Theta, adapted: Adapted, x: Tensor) -> Tensor:
        """Answer x by each draw of z: [T, draws, N, ...]."""
        return self._run_module(theta, "decode", self.embed_queries(theta, adapted, x), adapted.params["z"])

    def meta_loss(self, theta: Theta, support: Batch, query: Batch) -> tuple[Adapted, Tensor]:
        """Adapt; return minus the lower bound, for each item of the query."""
        prior, posterior = self.adapt(theta, support), self.adapt(theta, join(support, query))
        output = self.predict_each(theta, posterior, query.x)
        fits = torch.stack([likelihood(one, query) for one in output.unbind(1)]).mean(0)
        q, p = (Normal(one.params["mean"], one.params["std"], validate_args=False) for one in (posterior, prior))
        return prior, kl_divergence(q, p).sum(-1) / query.mask.sum(1) - fits


class Latent(nn.Module):
    """The encoder of z, by a mean over pairs, and the decoder g."""

    def __init__(self, features: int, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.pair = nn.Sequential(nn.Linear(features + width, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.latent = nn.Sequential(nn.ReLU(), nn.Linear(hidden, 2 * hidden))
        self.mixed, self.answer = nn.Linear(features + hidden, hidden), nn.Linear(hidden, outputs)

    def forward(self, part: str, *inputs: Tensor) -> Any:
        return {"encode": self.encode, "decode": self.decode}[part](*inputs)

    def encode(self, pairs: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        each = self.pair(pairs) * present[..., None]
        mean, spread = self.latent(each.sum(1) / present.sum(1)[:, None].clamp(min=1)).chunk(2, -1)
        return mean, 0.1 + 0.9 * spread.sigmoid()

    def decode(self, queries: Tensor, z: Tensor) -> Tensor:
        queries, z = queries[:, None].expand(-1, z.shape[1], -1, -1), z[:, :, None].expand(-1, -1, queries.shape[1], -1)
        return self.answer(self.mixed(torch.cat([queries, z], -1)).relu())
