"""DeepCluster: a network learns to tell its own clusters apart, and is clustered again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from umeta import seeds
from umeta.augment.suited import suited
from umeta.errors import UserError
from umeta.models.check import build_module
from umeta.models.embedder import BATCH, ViewEmbedder, features
from umeta.models.kernels import FewPlaces, channels_last
from umeta.models.precision import autocast
from umeta.parts import Context, Images
from umeta.runtime.checkpoints import make_resumable
from umeta.runtime.devices import read, send
from umeta.tasks.clustering import kmeans, refill_empty, whiten, whitening

ITERATIONS = 20  # of k-means, each time


@dataclass
class DeepCluster(ViewEmbedder):
    """Deep clustering of features (DeepCluster, Caron, Bojanowski, Joulin, Douze 2018, arXiv 1807.05520).

    Every `every` steps the features of the images are PCA-whitened, scaled to length 1 and clustered by k-means; the
    network, with a linear head drawn anew, then learns to tell the clusters apart, which are drawn uniformly so that
    large ones do not take over (section 3.3). The embedding is the final features, whitened and scaled as well. Adam
    with a cosine schedule in place of the paper's plain gradient descent.
    """

    dimensions: Annotated[int, Gt(0)] = 256
    """of the whitened features, those that are clustered and those that are the embedding"""
    k: Annotated[int, Gt(1)] = 1000
    """clusters"""
    every: Annotated[int, Gt(0)] = 100
    """steps from one clustering to the next; the paper clusters once per epoch"""
    steps: Annotated[int, Gt(0)] = 1000
    _nets: nn.ModuleDict = field(init=False, repr=False, compare=False)

    def fit(self, images: Images, ctx: Context) -> None:
        """Train on the images; resumable through `ctx`.

        Raises:
            UserError: fewer images than clusters, or fewer images or features than dimensions.
        """
        if len(images) < self.k:
            raise UserError(f"embedding.k: {self.k} clusters need at least as many images, there are {len(images)}")
        self.draw(images.item_shape, seeds.integer(ctx.seed, "deepcluster"), ctx.device)
        net, layer = self._nets["network"].to(ctx.device), self._nets["whiten"]
        assert isinstance(layer, nn.Linear)
        if min(len(images), layer.in_features) < self.dimensions:
            raise UserError(
                f"embedding.dimensions: {self.dimensions} whitened components need as many images and features, "
                f"there are {len(images)} images and {layer.in_features} features"
            )
        augment = self.augment or suited(images.item_shape)
        head = Head(layer.in_features, self.k, len(images)).to(ctx.device)
        optimisers = {"net_adam": torch.optim.Adam(net.parameters()), "head_adam": torch.optim.Adam(head.parameters())}

        def cluster(i: int) -> None:
            z = whiten(outputs(net, images, ctx.device), self.dimensions)
            labels, _ = kmeans(z, self.k, ITERATIONS, seeds.integer(ctx.seed, "deepcluster k-means", i), ctx.device)
            labels = refill_empty(z, labels, self.k, seeds.integer(ctx.seed, "deepcluster empty", i))
            head.renew(labels, seeds.generator(ctx.seed, "deepcluster head", i))
            optimisers["head_adam"].state.clear()

        def step(i: int) -> dict[str, float]:
            if i % self.every == 0:
                cluster(i)
            generator = seeds.generator(ctx.seed, "deepcluster step", i)
            index = draw_balanced(head.labels, self.k, send(torch.rand(self.batch, 2, generator=generator), ctx.device))
            u = send(torch.rand(self.batch, augment.randoms, generator=generator), ctx.device)
            x = augment(images.floats(index, ctx.device), u)
            with autocast(x.device, self.precision), FewPlaces():
                logits = head(net.train()(channels_last(x)))
            loss = F.cross_entropy(logits.float(), head.labels[index])
            for optimiser in optimisers.values():
                optimiser.zero_grad()
            loss.backward()
            for optimiser in optimisers.values():
                optimiser.param_groups[0]["lr"] = self.lr_at(i)
                optimiser.step()
            return read({"loss": loss, "nmi": head.nmi})

        ctx.loop("deepcluster", self.steps, step, *make_resumable(net=net, head=head, **optimisers))
        mean, directions = whitening(outputs(net, images, ctx.device), self.dimensions)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(directions.T))
            layer.bias.copy_(torch.from_numpy(-mean @ directions))
        self._nets.cpu().eval()

    def vectors(self, x: Tensor) -> Tensor:
        """Of length 1."""
        return F.normalize(self._nets["whiten"](self._nets["network"](channels_last(x))), dim=1)

    def networks(self, item_shape: tuple[int, ...]) -> nn.ModuleDict:
        network = build_module(self.model, item_shape, "embedding.model")
        return nn.ModuleDict({"network": network, "whiten": nn.Linear(features(network, item_shape), self.dimensions)})


class Head(nn.Module):
    """Log-odds of each cluster, linear in the features, and the clusters of the images that it learns to give."""

    labels: Tensor
    nmi: Tensor

    def __init__(self, features: int, k: int, images: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(k, features)), nn.Parameter(torch.zeros(k))
        self.register_buffer("labels", torch.zeros(images, dtype=torch.int64))
        self.register_buffer("nmi", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def renew(self, labels: np.ndarray, generator: torch.Generator) -> None:
        """Other clusters, and weights drawn anew; `nmi` is what the clusters share with those before (figure 2b)."""
        from sklearn.metrics import normalized_mutual_info_score

        self.nmi.fill_(normalized_mutual_info_score(self.labels.cpu().numpy(), labels))
        self.labels.copy_(torch.from_numpy(labels))
        with torch.no_grad():
            self.weight.copy_(0.01 * torch.randn(self.weight.shape, generator=generator))
            self.bias.zero_()


def outputs(net: nn.Module, images: Images, device: torch.device | str) -> np.ndarray:
    """Return the network's features of all images: [n, features]."""
    with torch.no_grad():
        parts = [
            net.eval()(channels_last(images.floats(slice(i, i + BATCH), device))).cpu()
            for i in range(0, len(images), BATCH)
        ]
    return torch.cat(parts).numpy()


def draw_balanced(labels: Tensor, k: int, u: Tensor) -> Tensor:
    """Items [m]: of each a cluster is drawn that is not empty, then one of its members, both uniformly.

    labels: [n] below k; u: [m, 2] in [0, 1).
    """
    order = labels.argsort(stable=True)
    counts = torch.zeros(k, dtype=torch.int64, device=u.device).index_add_(0, labels, torch.ones_like(labels))
    filled = (counts == 0).int().argsort(stable=True)  # those that are not, first: counted without waiting for a GPU
    cluster = filled[(u[:, 0] * (counts > 0).sum()).long()]
    first = counts.cumsum(0) - counts
    return order[first[cluster] + (u[:, 1] * counts[cluster]).long()]
