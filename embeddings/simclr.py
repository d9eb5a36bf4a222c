"""SimCLR: two views of an image attract each other, and repel all others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from umeta import seeds
from umeta.augment.suited import suited
from umeta.errors import UserError
from umeta.models.check import build_module
from umeta.models.embedder import ViewEmbedder, descend, features, normalise_together
from umeta.models.kernels import FewPlaces, channels_last
from umeta.models.precision import autocast, precise
from umeta.parts import Context, Images
from umeta.runtime import distributed
from umeta.runtime.checkpoints import make_resumable
from umeta.runtime.devices import send

LABEL = "contrastive"  # in seeds, checkpoints and logs: this file's earlier name, so that old runs go on and come again


@dataclass
class SimCLR(ViewEmbedder):
    """SimCLR, contrastive learning of views (Chen, Kornblith, Norouzi, Hinton 2020, arXiv 2002.05709).

    A step takes two views of each image of its batch. The embedding is the network's output; the loss is on a
    projection of it, a hidden layer and `projection` numbers. Adam with a cosine schedule.
    """

    shared_fit: ClassVar[bool] = True

    projection: Annotated[int, Gt(0)] = 128
    """numbers that the loss compares"""
    temperature: Annotated[float, Gt(0)] = 0.2
    """of the softmax over cosines"""
    _nets: nn.Sequential = field(init=False, repr=False, compare=False)

    def fit(self, images: Images, ctx: Context) -> None:
        """Train on the images; resumable through `ctx`.

        Raises:
            UserError: fewer than two images, or fewer in a step than processes.
        """
        if len(images) < 2:
            raise UserError("embedding simclr: one image has no other to be told from; it needs two at least")
        size = min(self.batch, len(images))
        if size < distributed.size():
            raise UserError(
                f"embedding.batch: {size} images per step are too few for {distributed.size()} processes, which need "
                "one each"
            )
        self.draw(images.item_shape, seeds.integer(ctx.seed, LABEL), ctx.device)
        net = self._nets.to(ctx.device).train()
        normalise_together(net)
        params = [param for param in net.parameters() if param.requires_grad]
        augment = self.augment or suited(images.item_shape)
        optimiser = torch.optim.Adam(net.parameters(), lr=self.lr)
        mine = distributed.shard(torch.arange(size))
        views = torch.cat([mine, size + mine])  # their places among those of all processes
        places = views.to(ctx.device)

        def step(i: int) -> dict[str, float]:
            generator = seeds.generator(ctx.seed, f"{LABEL} step", i)
            index = torch.randperm(len(images), generator=generator)[mine].numpy()
            x = images.floats(index, ctx.device).repeat(2, 1, 1, 1)
            u = send(torch.rand(2 * size, augment.randoms, generator=generator)[views], ctx.device)
            with autocast(x.device, self.precision), FewPlaces():
                z = net(channels_last(augment(x, u)))
            loss = ntxent(distributed.join_shards(precise(z), places, 2 * size), self.temperature)
            descend(params, loss / distributed.size())
            optimiser.param_groups[0]["lr"] = self.lr_at(i)
            optimiser.step()
            return {"loss": loss.item()}

        ctx.loop(LABEL, self.steps, step, *make_resumable(net=net, adam=optimiser))
        net.cpu().eval()

    def vectors(self, x: Tensor) -> Tensor:
        """Of length 1: the loss compares directions."""
        return F.normalize(self._nets[0](channels_last(x)), dim=1)

    def networks(self, item_shape: tuple[int, ...]) -> nn.Sequential:
        encoder = build_module(self.model, item_shape, "embedding.model")
        width = features(encoder, item_shape)
        head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.projection))
        return nn.Sequential(encoder, head)


def ntxent(z: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (SimCLR, equation 1), the mean over all views.

    z: [2 n, d]; rows i and i + n are views of one image.
    """
    z = F.normalize(z, dim=1)
    cosines = z @ z.T / temperature
    cosines.fill_diagonal_(-torch.inf)
    n = len(z) // 2
    other = torch.arange(2 * n, device=z.device).roll(n)
    return F.cross_entropy(cosines, other)
