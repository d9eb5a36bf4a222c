"""What embeddings that are networks share: weights from a seed, vectors in batches, saving, and resumable training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from umeta.errors import UserError
from umeta.models.conv4 import Conv4
from umeta.models.functional import draw, normalise
from umeta.models.precision import Precision, precise
from umeta.parts import Augment, Images, Model
from umeta.runtime import distributed

BATCH = 1000  # images embedded at a time


class NetworkEmbedder(ABC):
    """All of an embedder but `fit`, which calls `draw`, trains `_nets`, and leaves it on the CPU in evaluation mode."""

    _nets: nn.Module
    _shape: tuple[int, ...]
    _device: torch.device | str = "cpu"  # where `embed` works, which `fit` sets

    @abstractmethod
    def networks(self, item_shape: tuple[int, ...]) -> nn.Module:
        """Build all that is trained for such images, with random weights.

        `fit` leaves the weights in the memory layout that they have here, which is also that of weights read from a
        file: rounding depends on it.
        """

    @abstractmethod
    def vectors(self, x: Tensor) -> Tensor:
        """Return the embedding [n, d] of images [n, C, H, W], by `_nets`."""

    def draw(self, item_shape: tuple[int, ...], seed: int, device: torch.device | str = "cpu") -> None:
        """Set `_nets` to new networks with weights of that seed; and where `embed` is to work."""
        self._nets, self._shape = draw(lambda: self.networks(item_shape), seed), item_shape
        self._device = device

    def embed(self, images: Images) -> Tensor:
        """[n, d] float32; several processes share the images out."""
        starts = distributed.shard(range(0, len(images), BATCH))
        self._nets.zero_grad()  # which would move as well
        self._nets.to(self._device)
        with torch.no_grad():
            parts = [self.vectors(images.floats(slice(i, i + BATCH), self._device)).cpu() for i in starts]
        self._nets.cpu()
        return torch.cat(distributed.gather(parts))

    def state_dict(self) -> dict[str, Tensor]:
        return {**self._nets.state_dict(), "item_shape": torch.tensor(self._shape)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.draw(tuple(state["item_shape"].tolist()), seed=0)
        self._nets.load_state_dict({name: value for name, value in state.items() if name != "item_shape"})
        self._nets.eval()


@dataclass
class ViewEmbedder(NetworkEmbedder):
    """An embedder that trains a network on views of the images, by Adam with a cosine schedule."""

    model: Model = field(default_factory=lambda: Conv4(halvings=3))
    """the embedding network"""
    augment: Augment | None = None
    """what makes a view, `drawing` or `photo`; by default drawing for grey images and photo for colour"""
    steps: Annotated[int, Gt(0)] = 2000
    """training steps"""
    batch: Annotated[int, Gt(1)] = 256
    """images per step"""
    lr: Annotated[float, Gt(0)] = 2e-3
    """Adam's largest step size"""
    precision: Precision = "float32"
    """of the network in training; `auto` is bfloat16 where the hardware computes with it"""

    def lr_at(self, step: int) -> float:
        """Return Adam's step size at a training step."""
        return self.lr * (1 + math.cos(math.pi * step / self.steps)) / 2


class SharedNorm(_BatchNorm):
    """Batch normalisation that in training goes by the items of all processes. (torch's own is for GPUs alone.)"""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        over, shape = [0, *range(2, x.dim())], [1, -1] + [1] * (x.dim() - 2)
        kind, x = x.dtype, precise(x)
        sums = distributed.Sum.apply(torch.cat([x.sum(over), x.new_full((1,), x.numel() // x.shape[1])]))
        mean, count = sums[:-1] / sums[-1], sums[-1]
        var = distributed.Sum.apply((x - mean.view(shape)).square().sum(over)) / count
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked += 1
                share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(var * count / (count - 1), share)
        return normalise(self, x, mean, var).to(kind)


def normalise_together(net: nn.Module) -> None:
    """Let the network's batch normalisations go by the items of all processes in training; one alone stays as it is."""
    for layer in net.modules() if distributed.size() > 1 else ():
        if isinstance(layer, _BatchNorm):
            cast(Any, layer).__class__ = type(type(layer).__name__, (type(layer), SharedNorm), {})


def descend(params: Sequence[nn.Parameter], loss: Tensor) -> None:
    """Set the parameters' gradients: those of the sum of all processes' losses. Keeps the loss's graph."""
    grads = torch.autograd.grad(loss, params, retain_graph=True, materialize_grads=True)
    sums = distributed.sum_tensors({str(i): grad for i, grad in enumerate(grads)})
    for param, grad in zip(params, sums.values(), strict=True):
        param.grad = grad


def features(net: nn.Module, item_shape: tuple[int, ...]) -> int:
    """How many numbers the network gives for an image."""
    with torch.no_grad():
        return net.eval()(torch.zeros(2, *item_shape)).shape[1]


def count_halvings(item_shape: tuple[int, ...], name: str) -> int:
    """How often the nearest square of 4 x 2^n pixels is halved down to 4 x 4, at least once.

    Raises:
        UserError: smaller than 8 x 8; the message names the embedding.
    """
    height, width = item_shape[1:]
    if min(height, width) < 8:
        raise UserError(f"embedding {name}: images of {height}x{width} are too small, 8x8 is the least")
    return max(1, round(math.log2(min(height, width) / 4)))


def resize(x: Tensor, side: int) -> Tensor:
    """[n, C, H, W] to [n, C, side, side]."""
    if x.shape[-2:] == (side, side):
        return x
    return F.interpolate(x, (side, side), mode="bilinear", antialias=True)
