"""A network that was never trained: the floor for every learnt embedding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from umeta import seeds
from umeta.context import RunContext
from umeta.data.images import UnlabelledImages
from umeta.models.conv4 import Conv4
from umeta.types import Model

BATCH = 1000


@dataclass
class RandomNetwork:
    """Features of an untrained network (Saxe et al. 2011), normalised by statistics of the training images."""

    model: Model = field(default_factory=Conv4)
    """the network"""
    _net: nn.Module = field(init=False, repr=False, compare=False)

    def fit(self, images: UnlabelledImages, ctx: RunContext) -> None:
        """Draws the weights; a thousand images set the normalisation statistics."""
        self._build(images.item_shape, seeds.integer(ctx.seed, "random network"))
        with torch.no_grad():
            self._net.train()(images.floats(slice(0, BATCH)))
        self._net.eval()

    def embed(self, images: UnlabelledImages) -> Tensor:
        """[n, features] float32."""
        with torch.no_grad():
            return torch.cat([self._net(images.floats(slice(i, i + BATCH))) for i in range(0, len(images), BATCH)])

    def state_dict(self) -> dict[str, Tensor]:
        return {**self._net.state_dict(), "item_shape": torch.tensor(self._shape)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._build(tuple(state["item_shape"].tolist()), seed=0)
        self._net.load_state_dict({name: value for name, value in state.items() if name != "item_shape"})
        self._net.eval()

    def _build(self, item_shape: tuple[int, ...], seed: int) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._net, self._shape = self.model.build(item_shape), item_shape
        for layer in self._net.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.momentum = None  # plain average over what it has seen, which is one batch
