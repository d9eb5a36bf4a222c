"""A pre-trained network's features, as they are."""

from __future__ import annotations

import numpy as np
import torch

from embeddings.pretrained import Pretrained
from umeta.data.images import UnlabelledImages
from umeta.models.mlp import MLP
from umeta.runtime.loop import RunContext


def test_its_vectors_are_the_networks_features() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 4, 4), dtype=np.uint8)
    embedder = Pretrained(MLP([8, 3]))
    embedder.fit(UnlabelledImages.of(pixels), RunContext())
    net = MLP([8, 3]).build((1, 4, 4)).eval()
    net.load_state_dict({name: value for name, value in embedder.state_dict().items() if name != "item_shape"})
    images = UnlabelledImages.of(pixels)
    with torch.no_grad():
        expected = net(torch.from_numpy(images.pixels).float() / 255)
    torch.testing.assert_close(embedder.embed(images), expected.flatten(1))
