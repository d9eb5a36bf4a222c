"""A network's features, and beside them descriptors of edges and colours that need no training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from umeta.errors import UserError
from umeta.models.resnet9 import ResNet9
from umeta.parts import Model

ORIENTATIONS = 9  # of edges
EDGES = ((4, 0.7), (3, 0.7))  # cells a side that orientations are counted in, and how much that counts
COLOURS = ((1, 8, 1.2), (2, 4, 0.5))  # parts a side, bins of red, green and blue each, and how much that counts
LAYOUT = 8, 0.5  # points a side of the picture in small, and how much it counts
LARGE = 48  # pixels a side from which on pictures are halved first: descriptors are as good, and faster
RIDGE = 0.5  # added to the variances of a vector of length 1, which are less than 1 in sum: what hardly varies stays so


@dataclass(frozen=True)
class Described:
    """Features of a network, then centred histograms of edges (HOG, Dalal and Triggs 2005) and of colours.

    A cosine of them is the weighted mean of the network's and of each descriptor's. In minutes a network learns less of
    photographs than these descriptors tell; it is trained beside them, on what they leave open.
    """

    model: Model = field(default_factory=ResNet9)
    """the network"""
    weight: Annotated[float, Gt(0)] = 2.0
    """how much the descriptors count, the network counting 1"""

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        if len(item_shape) != 3:
            raise UserError(f"Described takes images [C, H, W], not items of shape {item_shape}")
        # on the CPU where a network without numbers is asked for, too: see `check_fits`
        counts = [part.shape[1] for part, _ in describe(torch.zeros(1, *item_shape, device="cpu"))]
        return Beside(self.model.build(item_shape), counts, self.weight)


class Beside(nn.Module):
    """Features of the network and descriptors, one after the other."""

    def __init__(self, network: nn.Module, counts: list[int], weight: float) -> None:
        super().__init__()
        self.network, self.weight = network, weight
        self.centres = nn.ModuleList(nn.BatchNorm1d(n, eps=RIDGE / n, affine=False) for n in counts)

    def forward(self, x: Tensor) -> Tensor:
        found = [(precise(self.network(x)), 1.0)]
        parts = describe(x)
        total = sum(weight for _, weight in parts)
        for centre, (part, weight) in zip(self.centres, parts, strict=True):
            found.append((centre(part), self.weight * weight / total))
        return torch.cat([math.sqrt(weight) * F.normalize(part, dim=1) for part, weight in found], 1)


def precise(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def describe(x: Tensor) -> list[tuple[Tensor, float]]:
    """Descriptors [n, d] of length 1 of images [n, C, H, W] in [0, 1], and how much each counts.

    They are sums of the picture's and of its mirror image's.
    """
    with torch.no_grad():
        x = precise(x)
        while min(x.shape[2:]) >= LARGE:
            x = F.avg_pool2d(x, 2)
        edges = orient_edges(x)
        # in a mirror an edge of one orientation has the one that is as far from upright the other way
        both = edges, edges.flip(1, 3).roll(1, 1)
        found = [(torch.stack([count_edges(one, cells) for one in both]).sum(0), weight) for cells, weight in EDGES]
        both = x, x.flip(3)
        if x.shape[1] == 3:
            colours = [torch.stack([count_colours(one, parts, bins) for one in both]) for parts, bins, _ in COLOURS]
            found += [(counts.sum(0), weight) for counts, (*_, weight) in zip(colours, COLOURS, strict=True)]
        side, weight = LAYOUT
        small = torch.stack([F.adaptive_avg_pool2d(one, side).flatten(1) for one in both]).sum(0)
        found.append((small - small.mean(1, keepdim=True), weight))
        return [(F.normalize(part, dim=1), weight) for part, weight in found]


def orient_edges(x: Tensor) -> Tensor:
    """Strength of the edges at each point, shared out between the two nearest orientations [n, ORIENTATIONS, H, W].

    Of the channels the one with the strongest edge counts.
    """
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    across, down = x[:, :, 1:-1, 2:] - x[:, :, 1:-1, :-2], x[:, :, 2:, 1:-1] - x[:, :, :-2, 1:-1]
    strongest = (across.square() + down.square()).argmax(1, keepdim=True)
    across, down = across.gather(1, strongest), down.gather(1, strongest)
    angle = torch.atan2(down, across) / math.pi * ORIENTATIONS % ORIENTATIONS
    away = (angle - torch.arange(ORIENTATIONS, device=x.device).view(1, -1, 1, 1)).abs()
    share = (1 - torch.minimum(away, ORIENTATIONS - away)).clamp(min=0)
    return share * (across.square() + down.square()).sqrt()


def count_edges(edges: Tensor, cells: int) -> Tensor:
    """Histograms of orientations in `cells` x `cells` cells, in overlapping blocks of 2 x 2 cells of length 1 each."""
    blocks = F.unfold(F.adaptive_avg_pool2d(edges, cells), 2).mT
    blocks = F.normalize(blocks, dim=-1, eps=1e-3).clamp(max=0.2)
    return F.normalize(blocks, dim=-1, eps=1e-3).flatten(1)


def count_colours(x: Tensor, parts: int, bins: int) -> Tensor:
    """Square roots of the shares of each colour in each of parts x parts squares."""
    binned = (x * 255).long() * bins // 256
    codes = (binned[:, 0] * bins + binned[:, 1]) * bins + binned[:, 2]
    height, width = (size // parts * parts for size in codes.shape[1:])
    codes = codes[:, :height, :width].unflatten(1, (parts, -1)).unflatten(3, (parts, -1)).transpose(2, 3).flatten(3)
    counts = torch.zeros(*codes.shape[:3], bins**3, dtype=x.dtype, device=x.device)
    shares = torch.ones(codes.shape, dtype=x.dtype, device=x.device) / codes.shape[3]
    return counts.scatter_add(3, codes, shares).sqrt().flatten(1)
