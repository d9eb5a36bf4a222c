"""BiGAN: a generator and an encoder, each other's inverse wherever they fool the one who sees image and code."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from umeta import seeds
from umeta.errors import UserError
from umeta.models.embedder import NetworkEmbedder, count_halvings, resize
from umeta.parts import Context, Images
from umeta.runtime.checkpoints import make_resumable
from umeta.runtime.devices import read, send

SLOWER = 0.25  # the discriminator's share of the step size: else it sees through the coders before they learn


@dataclass
class BiGAN(NetworkEmbedder):
    """Bidirectional generative adversarial network (BiGAN, Donahue, Kraehenbuehl, Darrell 2017, arXiv 1605.09782).

    With encoder E, generator G, and discriminator D of pairs, z ~ U(-1, 1)^d (section 3, equation 3):

        discriminator:  -log D(x, E(x)) - log(1 - D(G(z), z))
        coders:         -log(1 - D(x, E(x))) - log D(G(z), z)

    The coders' loss is the paper's "inverse" one, whose gradient does not vanish where D is sure. All learn at once, as
    there; strided convolutions as in DCGAN (Radford, Metz, Chintala 2016), spectral normalisation in D (Miyato,
    Kataoka, Koyama, Yoshida 2018). Images are resized to the nearest 4 x 2^n.
    """

    dimensions: Annotated[int, Gt(0)] = 200
    """of the embedding"""
    depth: Annotated[int, Gt(0)] = 32
    """channels after the first halving, doubled at each further one"""
    steps: Annotated[int, Gt(0)] = 2000
    """training steps"""
    batch: Annotated[int, Gt(1)] = 64
    """images per step, and as many codes"""
    lr: Annotated[float, Gt(0)] = 2e-3
    """Adam's largest step size for the coders, which falls to zero over the run"""
    noise: Annotated[float, Ge(0)] = 0.1
    """standard deviation of the noise on D's images, which keeps it from being sure"""
    _nets: nn.ModuleDict = field(init=False, repr=False, compare=False)

    def fit(self, images: Images, ctx: Context) -> None:
        """Train on the images; resumable through `ctx`.

        Raises:
            UserError: fewer images than a batch.
        """
        if len(images) < self.batch:
            raise UserError(f"embedding.batch: {self.batch} images per step, but there are {len(images)}")
        self.draw(images.item_shape, seeds.integer(ctx.seed, "bigan"), ctx.device)
        nets = self._nets.to(ctx.device)
        params = {
            "coders": [*nets["encoder"].parameters(), *nets["generator"].parameters()],
            "discriminator": list(nets["discriminator"].parameters()),
        }
        optimisers = {name: torch.optim.Adam(p, lr=self.lr, betas=(0.5, 0.999)) for name, p in params.items()}

        def step(i: int) -> dict[str, float]:
            generator = seeds.generator(ctx.seed, "bigan step", i)
            index = torch.randint(len(images), (self.batch,), generator=generator).numpy()
            z = send(2 * torch.rand(self.batch, self.dimensions, generator=generator) - 1, ctx.device)
            x = resize(images.floats(index, ctx.device), self._side)
            noise = send(torch.randn(2 * self.batch, *x.shape[1:], generator=generator), ctx.device) * self.noise
            nets.train()
            code, made = nets["encoder"](x), nets["generator"](z)
            losses = self.losses(x + noise[: self.batch], code, made + noise[self.batch :], z)
            for name, loss in losses.items():
                # the coders learn from their own loss alone, and so does the discriminator
                grads = torch.autograd.grad(loss, params[name], retain_graph=True)
                for p, g in zip(params[name], grads, strict=True):
                    p.grad = g
            for name, optimiser in optimisers.items():
                lr = self.lr if name == "coders" else SLOWER * self.lr
                optimiser.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * i / self.steps)) / 2
                optimiser.step()
            nets.eval()  # as in use; and the running statistics are those of images and of drawn codes alone
            with torch.no_grad():
                inversion = {
                    "image inversion": F.mse_loss(nets["generator"](nets["encoder"](x)), x),
                    "code inversion": F.mse_loss(nets["encoder"](nets["generator"](z)), z),
                }
            return read({**losses, **inversion})

        ctx.loop("bigan", self.steps, step, *make_resumable(nets=nets, **optimisers))
        nets.cpu().eval()

    def losses(self, x: Tensor, code: Tensor, made: Tensor, z: Tensor) -> dict[str, Tensor]:
        """Return the two losses of the docstring for pairs (x, code = E(x)) and (made = G(z), z); D gives log-odds."""
        # one batch, so that normalisation treats both alike
        real, fake = self._nets["discriminator"](torch.cat([x, made]), torch.cat([code, z])).chunk(2)
        return {
            "coders": F.softplus(real).mean() + F.softplus(-fake).mean(),
            "discriminator": F.softplus(-real).mean() + F.softplus(fake).mean(),
        }

    def vectors(self, x: Tensor) -> Tensor:
        return self._nets["encoder"](resize(x, self._side))

    def networks(self, item_shape: tuple[int, ...]) -> nn.ModuleDict:
        halved = count_halvings(item_shape, "bigan")
        self._side = 4 * 2**halved
        widths = [item_shape[0], *(self.depth << h for h in range(halved))]
        flat = 16 * widths[-1]
        nets = nn.ModuleDict(
            {
                "encoder": nn.Sequential(
                    *down(widths, nn.BatchNorm2d),
                    nn.Linear(flat, self.dimensions),
                    PriorMoments(self.dimensions, affine=False),
                ),
                "generator": nn.Sequential(
                    nn.Linear(self.dimensions, flat), nn.Unflatten(1, (widths[-1], 4, 4)), *up(widths[::-1])
                ),
                "discriminator": Discriminator(widths, flat, self.dimensions),
            }
        )
        return nets.to(memory_format=torch.channels_last)  # about twice as fast on a CPU


class PriorMoments(nn.BatchNorm1d):
    """Give each number of a code the mean and variance of U(-1, 1), so that D cannot tell codes by these alone."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 3**-0.5


class Discriminator(nn.Module):
    """Log-odds that an image [n, C, s, s] and a code [n, d] are of an image and its encoding: [n].

    To layers of their concatenation it adds an inner product, as the projection discriminator (Miyato and Koyama 2018):
    whether an image and a code belong together is soon seen by it, but hardly by the others.
    """

    def __init__(self, widths: list[int], flat: int, dimensions: int, hidden: int = 256) -> None:
        super().__init__()
        self.image = nn.Sequential(*down(widths))
        self.pair = layered(flat + dimensions, hidden, 1)
        self.of_image = layered(flat, hidden, hidden)
        self.of_code = layered(dimensions, hidden, hidden).append(nn.LeakyReLU(0.2))
        for layer in list(self.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                spectral_norm(layer)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        x = self.image(x)
        return self.pair(torch.cat([x, z], dim=1)).squeeze(1) + (self.of_image(x) * self.of_code(z)).sum(1)


def layered(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, outputs))


def down(widths: list[int], normalisation: type[nn.BatchNorm2d] | None = None) -> list[nn.Module]:
    """Layers from [n, widths[0], s, s] to [n, 16 widths[-1]]."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        norm = [normalisation(outputs)] if normalisation and layers else []  # DCGAN has none on the first
        layers += [nn.Conv2d(inputs, outputs, 4, stride=2, padding=1), *norm, nn.LeakyReLU(0.2)]
    return [*layers, nn.Flatten()]


def up(widths: list[int]) -> list[nn.Module]:
    """Layers from [n, widths[0], 4, 4] to [n, widths[-1], s, s] in [0, 1]."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)]
    return [*layers, nn.Sigmoid()]
