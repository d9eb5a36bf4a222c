"""ACAI: an autoencoder whose interpolations fool a critic."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt
from torch import Tensor, nn

from umeta import seeds
from umeta.errors import UserError
from umeta.models.embedder import NetworkEmbedder, count_halvings, descend, resize
from umeta.parts import Context, Images
from umeta.runtime import distributed
from umeta.runtime.checkpoints import make_resumable
from umeta.runtime.devices import read, send


@dataclass
class ACAI(NetworkEmbedder):
    """Adversarially constrained autoencoder interpolation (ACAI, Berthelot, Raffel, Roy, Goodfellow 2019, 1807.07543).

    With encoder f, decoder g, critic d, and `mix = g(a f(x1) + (1 - a) f(x2))`, a ~ U(0, 1/2) (section 2, equations 1
    and 2):

        critic:       (d(mix) - a)^2 + d(gamma x + (1 - gamma) g(f(x)))^2
        autoencoder:  |x - g(f(x))|^2 + weight d(mix)^2

    Networks as in the paper's appendix: 3x3 convolutions in pairs, leaky ReLU 0.2, average pooling down to 4 x 4 and
    nearest-neighbour upsampling; the critic is the encoder averaged. Images are resized to the nearest 4 x 2^n.
    """

    shared_fit: ClassVar[bool] = True

    dimensions: Annotated[int, Gt(0)] = 256
    """of the embedding, a multiple of 16"""
    depth: Annotated[int, Gt(0)] = 16
    """channels at full size, doubled at each halving"""
    steps: Annotated[int, Gt(0)] = 2000
    """training steps"""
    batch: Annotated[int, Gt(1)] = 64
    """images per step"""
    lr: Annotated[float, Gt(0)] = 1e-3
    """Adam's step size; the paper has 1e-4 and some hundred times the steps"""
    weight: Annotated[float, Ge(0)] = 0.5
    """of the critic in the autoencoder's loss (lambda)"""
    gamma: Annotated[float, Ge(0)] = 0.2
    """share of the image in what the critic should call unmixed"""
    _nets: nn.ModuleDict = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.dimensions % 16:
            raise ValueError(f"dimensions: {self.dimensions} is not a multiple of 16")

    def fit(self, images: Images, ctx: Context) -> None:
        """Train on the images; resumable through `ctx`.

        Raises:
            UserError: fewer pairs of images in a batch than processes.
        """
        if self.batch < 2 * distributed.size():
            raise UserError(
                f"embedding.batch: {self.batch} images per step are too few for {distributed.size()} processes, which "
                "need two each"
            )
        self.draw(images.item_shape, seeds.integer(ctx.seed, "acai"), ctx.device)
        nets = self._nets.to(ctx.device).train()
        coders = [*nets["encoder"].parameters(), *nets["decoder"].parameters()]
        params = {"coder": coders, "critic": list(nets["critic"].parameters())}
        optimisers = {name: torch.optim.Adam(p, lr=self.lr) for name, p in params.items()}

        def step(i: int) -> dict[str, float]:
            generator = seeds.generator(ctx.seed, "acai step", i)
            index = torch.randint(len(images), (self.batch,), generator=generator).numpy()
            alpha = torch.rand(self.batch, generator=generator) / 2
            mine = mirrored(self.batch)
            share = len(mine) / self.batch
            x, alpha = self._resize(images.floats(index[mine], ctx.device)), send(alpha[mine], ctx.device)
            z = nets["encoder"](x)
            rebuilt = nets["decoder"](z)
            mixed = nets["decoder"](torch.lerp(z.flip(0), z, alpha.view(-1, 1, 1, 1)))
            losses = self.losses(x, rebuilt, mixed, alpha)
            for name, loss in losses.items():
                descend(params[name], loss * share)  # each network learns from its own loss alone
            for optimiser in optimisers.values():
                optimiser.step()
            means = {"rebuild": F.mse_loss(rebuilt, x), "critic": losses["critic"]}
            return distributed.sum_numbers({name: mean * share for name, mean in read(means).items()})

        ctx.loop("acai", self.steps, step, *make_resumable(nets=nets, **optimisers))
        nets.cpu().eval()

    def losses(self, x: Tensor, rebuilt: Tensor, mixed: Tensor, alpha: Tensor) -> dict[str, Tensor]:
        """Return the two losses of the docstring; x, rebuilt, mixed: [n, C, s, s], alpha: [n]."""
        judged = self._nets["critic"](mixed)
        blend = torch.lerp(rebuilt, x, self.gamma).detach()
        unmixed = self._nets["critic"](blend)
        return {
            "coder": F.mse_loss(rebuilt, x) + self.weight * judged.square().mean(),
            "critic": (judged - alpha).square().mean() + unmixed.square().mean(),
        }

    def vectors(self, x: Tensor) -> Tensor:
        return self._nets["encoder"](self._resize(x)).flatten(1)

    def networks(self, item_shape: tuple[int, ...]) -> nn.ModuleDict:
        channels, latent, halved = item_shape[0], self.dimensions // 16, count_halvings(item_shape, "acai")
        self._side = 4 * 2**halved
        nets = nn.ModuleDict(
            {
                "encoder": encoder(channels, halved, self.depth, latent),
                "decoder": decoder(channels, halved, self.depth, latent),
                "critic": nn.Sequential(encoder(channels, halved, self.depth, latent), nn.Flatten(), Mean()),
            }
        )
        return nets.to(memory_format=torch.channels_last)  # about twice as fast on a CPU

    def _resize(self, x: Tensor) -> Tensor:
        return resize(x, self._side)


def mirrored(batch: int) -> np.ndarray:
    """Return this process's places of a batch: with each one its mirror image, which it is mixed with."""
    half = np.asarray(distributed.shard(range((batch + 1) // 2)))
    return np.union1d(half, batch - 1 - half)


class Mean(nn.Module):
    """[n, d] to [n]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def conv(inputs: int, outputs: int) -> nn.Sequential:
    """3x3 convolution, leaky ReLU; weights N(0, 1 / (fan_in * (1 + 0.2^2))), as the paper's code draws them."""
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.normal_(layer.weight, std=1 / math.sqrt(inputs * 9 * (1 + 0.2**2)))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, nn.LeakyReLU(0.2, inplace=True))


def encoder(channels: int, halvings: int, depth: int, latent: int) -> nn.Sequential:
    """[n, C, s, s] to [n, latent, 4, 4]."""
    layers: list[nn.Module] = [nn.Conv2d(channels, depth, 1)]
    width = depth
    for h in range(halvings):
        layers += [conv(width, depth << h), conv(depth << h, depth << h), nn.AvgPool2d(2)]
        width = depth << h
    return nn.Sequential(*layers, conv(width, depth << halvings), nn.Conv2d(depth << halvings, latent, 3, padding=1))


def decoder(channels: int, halvings: int, depth: int, latent: int) -> nn.Sequential:
    """[n, latent, 4, 4] to [n, C, s, s]."""
    layers: list[nn.Module] = []
    width = latent
    for h in reversed(range(halvings)):
        layers += [conv(width, depth << h), conv(depth << h, depth << h), nn.Upsample(scale_factor=2)]
        width = depth << h
    return nn.Sequential(*layers, conv(width, depth), nn.Conv2d(depth, channels, 3, padding=1))
