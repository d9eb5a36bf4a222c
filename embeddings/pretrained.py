"""What a pre-trained network makes of images, as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor, nn

from umeta.models.backbone import KEPT, Backbone
from umeta.models.embedder import NetworkEmbedder
from umeta.parts import Context, Images, Model, ModelTraits


@dataclass
class Pretrained(NetworkEmbedder):
    """Features of a network that others have trained, such as one of timm's (Wightman 2019), as it is.

    Often it was trained with labels; every report then says so.
    """

    model: Model
    """the network, such as {name: backbone, network: resnet18}"""
    _nets: nn.Module = field(init=False, repr=False, compare=False)

    @property
    def pretrained(self) -> str:
        """What the network had learnt from."""
        return ModelTraits.of(self.model).pretrained

    def fit(self, images: Images, ctx: Context) -> None:
        """Read the network."""
        self.draw(images.item_shape, ctx.seed)
        self._nets.eval()

    def vectors(self, x: Tensor) -> Tensor:
        return self._nets(x)

    def networks(self, item_shape: tuple[int, ...]) -> nn.Module:
        return self.model.build(item_shape)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        whole = self.model
        if isinstance(whole, Backbone):  # whose own weights need not be there any more
            self.model = replace(whole, weights=KEPT)
        super().load_state_dict(state)
        self.model = whole
