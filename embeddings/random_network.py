"""A network that was never trained: the floor for every learnt embedding."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from umeta import seeds
from umeta.models.check import build_module
from umeta.models.conv4 import Conv4
from umeta.models.embedder import BATCH, NetworkEmbedder
from umeta.parts import Context, Images, Model


@dataclass
class RandomNetwork(NetworkEmbedder):
    """Features of an untrained network (Saxe et al. 2011), normalised by statistics of the training images."""

    model: Model = field(default_factory=Conv4)
    """the network"""
    _nets: nn.Module = field(init=False, repr=False, compare=False)

    def fit(self, images: Images, ctx: Context) -> None:
        """Draw the weights; a thousand images set the normalisation statistics."""
        self.draw(images.item_shape, seeds.integer(ctx.seed, "random network"), ctx.device)
        with torch.no_grad():
            self._nets.train()(images.floats(slice(0, BATCH)))  # on the CPU: the same statistics wherever it embeds
        self._nets.eval()

    def vectors(self, x: Tensor) -> Tensor:
        return self._nets(x)

    def networks(self, item_shape: tuple[int, ...]) -> nn.Module:
        net = build_module(self.model, item_shape, "embedding.model")
        for layer in net.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.momentum = None  # plain average over what it has seen, which is one batch
        return net
