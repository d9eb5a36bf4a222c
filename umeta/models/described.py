"""A network's features, and beside them descriptors of edges, colours and patches, fitted to unlabelled pictures."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from umeta import seeds
from umeta.augment.photo import Photo
from umeta.errors import UserError
from umeta.models.conv4 import Conv4
from umeta.models.precision import autocast_kind, precise
from umeta.models.weigh import look_twice, weigh_by_halves
from umeta.parts import Images, Model, ModelTraits
from umeta.runtime.progress import note

ORIENTATIONS = 9  # of edges
EDGES = ((4, 0.1), (3, 0.1))  # cells a side that orientations are counted in, and how much that counts
COLOURS = ((1, 8, 0.165), (2, 4, 0.0675))  # parts a side, bins of red, green and blue each, and how much that counts
POINTS, LAYOUT = 8, 0.0675  # a side of the picture in small, and how much it counts
PATCH, CODES = 6, 200  # pixels a side of a patch, and how many typical ones there are
SCALES, PATCHES = 2, 0.25  # sizes of the picture, each half of the last, and how much the patches of each count
LARGE = 48  # pixels a side from which on pictures are halved first: descriptors are as good, and faster
HALVED = 600  # pictures whose halves the weight is chosen by
VIEW = Photo(smallest=1.0, colour=0.4, grey=0.2)  # how halves are made to differ
PICTURES, SPARSE, BATCH = 1500, 9, 50  # looked at for the fit, every so many of their patches, so many at a time
ROUNDS = 10  # of k-means
FLAT = 10 / 255**2  # variance of a patch that is hardly one
DIRECTIONS = 400  # of largest variance that are kept of a descriptor
RIDGE, FINE_RIDGE = 0.05, 3e-4  # of the largest variance that are added to each, of descriptors and of patches


@dataclass(frozen=True)
class Described:
    """Features of a network, then histograms of edges (HOG, Dalal and Triggs 2005) and of colours, and of patches.

    Patches are compared with typical ones (single-layer k-means, Coates, Ng and Lee 2011). Each part is whitened by
    the principal components of unlabelled pictures, and a cosine is the weighted mean of all. Meta-training sees the
    network alone; the rest is fitted when it is over. In minutes a network learns less of photographs than these tell.
    """

    model: Model = field(default_factory=Conv4)
    """the network"""
    weight: Annotated[float, Ge(0)] | None = None
    """how much the network counts, descriptors counting 1 in sum; by default chosen without labels"""
    fitted: bool = False
    """whether the rest is there: set when meta-training is over"""

    @property
    def trained(self) -> Model:
        """The network."""
        return self.model

    @property
    def untrained(self) -> Described | None:
        """The descriptors alone."""
        return replace(self, weight=0.0) if self.fitted else None

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        if len(item_shape) != 3:
            raise UserError(f"Described takes images [C, H, W], not items of shape {item_shape}")
        network = self.model.build(item_shape)
        if self.fitted:
            return Beside(network, item_shape, 1.0 if self.weight is None else self.weight)
        return nn.Sequential(OrderedDict(network=network))

    def complete(
        self, images: Images, features: Callable[[Tensor], Tensor], seed: int
    ) -> tuple[Described, dict[str, Tensor]]:
        """Fit what stands beside the network to images; return the options of the whole and the parameters of the rest.

        features: gives the network's of images [n, C, H, W].
        """
        fitted = replace(self, fitted=True)
        whole = fitted.build(images.item_shape)
        assert isinstance(whole, Beside)
        chosen = np.random.default_rng(seed).permutation(len(images))[:PICTURES]
        with seeds.seed_torch(seed), torch.no_grad():
            x = images.floats(chosen)
            whole.fit(x, features)
            if self.weight is None and len(images) > 1:
                seen: list[Callable[[Tensor], Tensor]] = [
                    lambda x: side_by_side(whole.whiten(x)),
                    lambda x: whole.centre_features(features(x))[0],
                ]
                described, learnt = look_twice(split(x[:HALVED]), VIEW, seen, seed)
                weight, why = weigh_by_halves(described, learnt, ModelTraits.of(self.model).averages)
                fitted = replace(fitted, weight=round(weight, 3))
                note(why)
        own = {name: value for name, value in whole.state_dict().items() if not name.startswith("network.")}
        return fitted, own


class Whitening(nn.Module):
    """Vectors along their directions of largest variance, in units of its root; fitted, and not meta-trained."""

    def __init__(self, numbers: int, directions: int) -> None:
        super().__init__()
        self.centre = make_fixed(numbers)
        self.directions = make_fixed(numbers, min(numbers, directions))

    def fit(self, z: Tensor, ridge: float) -> None:
        """Fit to vectors z [n, numbers]."""
        self.centre.copy_(z.mean(0))
        most = min(*z.shape, self.directions.shape[1])
        _, roots, directions = torch.svd_lowrank((z - self.centre).double(), most, niter=4)
        variances = roots.square() / len(z)
        self.directions[:, :most] = directions * (variances + ridge * variances[0] + 1e-12).rsqrt()

    def forward(self, z: Tensor) -> Tensor:
        return (z - self.centre) @ self.directions


class Beside(nn.Module):
    """The network's features, centred, and descriptors, whitened: each of length 1 times the root of its weight."""

    def __init__(self, network: nn.Module, item_shape: tuple[int, ...], weight: float) -> None:
        super().__init__()
        self.network, self.weight = network, weight
        numbers = item_shape[0] * min(PATCH, *item_shape[1:]) ** 2
        self.patches = nn.ModuleList(Whitening(numbers, numbers) for _ in range(SCALES))
        self.codes = nn.ParameterList(make_fixed(CODES, numbers) for _ in range(SCALES))
        with torch.no_grad():
            x = torch.zeros(2, *item_shape)
            self.centre = make_fixed(network.eval()(x).shape[1])
            self.parts = nn.ModuleList(Whitening(part.shape[1], DIRECTIONS) for part, _ in self.describe(x))

    def fit(self, x: Tensor, features: Callable[[Tensor], Tensor]) -> None:
        """Fit to images x [n, C, H, W], of which `features` gives the network's."""
        small = shrink(x)
        whitened: Any
        for whitened, codes in zip(self.patches, self.codes, strict=True):
            seen = torch.cat([take_patches(some)[0].flatten(0, 1)[::SPARSE] for some in small.split(BATCH)])
            whitened.fit(seen, FINE_RIDGE)
            codes.copy_(choose_codes(whitened(seen)))
            small = halve(small)
        self.centre.copy_(torch.cat([F.normalize(features(some)) for some in x.split(BATCH)]).mean(0))
        found = [[part for part, _ in self.describe(some)] for some in x.split(BATCH)]
        for whitened, parts in zip(self.parts, zip(*found, strict=True), strict=True):
            whitened.fit(F.normalize(torch.cat(parts), dim=1), RIDGE)

    def forward(self, x: Tensor) -> Tensor:
        z, kind = self.network(x), autocast_kind(x.device)
        lower = torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if lower else nullcontext():  # what was fitted was in float32
            return side_by_side([self.centre_features(z), *self.whiten(x)])

    def centre_features(self, z: Tensor) -> tuple[Tensor, float]:
        """Centre the network's features z, and say how much they count."""
        return F.normalize(precise(z), dim=1) - self.centre, self.weight

    def whiten(self, x: Tensor) -> list[tuple[Tensor, float]]:
        """Whiten what describes images x, and say how much each counts."""
        found = zip(self.parts, self.describe(x), strict=True)
        return [(part(F.normalize(z, dim=1)), weight) for part, (z, weight) in found]

    def describe(self, x: Tensor) -> list[tuple[Tensor, float]]:
        """Descriptors [n, d] of images [n, C, H, W] in [0, 1], and how much each counts.

        They are sums of the picture's and of its mirror image's.
        """
        with torch.no_grad():
            x = shrink(precise(x))
            both = torch.stack([x, x.flip(3)])

            def add(count: Callable[..., Tensor], *options: Any) -> Tensor:
                return count(both[0], *options) + count(both[1], *options)

            found = [(add(count_edges, cells), weight) for cells, weight in EDGES]
            if x.shape[1] == 3:
                found += [(add(count_colours, parts, bins), weight) for parts, bins, weight in COLOURS]
            found.append((add(lay_out), LAYOUT))
            for whitened, codes in zip(self.patches, self.codes, strict=True):
                found.append((add(count_patches, whitened, codes).sqrt(), PATCHES))
                both = torch.stack([halve(one) for one in both])
            return found


def side_by_side(parts: list[tuple[Tensor, float]]) -> Tensor:
    """Put vectors side by side, each of length 1 times the root of its weight, so that a cosine is their mean."""
    return torch.cat([math.sqrt(weight) * F.normalize(z, dim=1) for z, weight in parts], 1)


def split(x: Tensor) -> list[Tensor]:
    """Cut pictures [n, C, H, W] into their left and right halves, each widened to the size of the whole."""
    middle = (x.shape[3] + 1) // 2
    return [
        F.interpolate(half, size=x.shape[2:], mode="bilinear", align_corners=False)
        for half in (x[..., :middle], x[..., -middle:])
    ]


def make_fixed(*shape: int) -> nn.Parameter:
    """Make a parameter that meta-training leaves as it is."""
    return nn.Parameter(torch.zeros(shape), requires_grad=False)


def shrink(x: Tensor) -> Tensor:
    """Halve pictures until they are small: descriptors are as good, and faster."""
    while min(x.shape[2:]) >= LARGE:
        x = F.avg_pool2d(x, 2)
    return x


def halve(x: Tensor) -> Tensor:
    """Halve pictures that have twice as many patches as one in each direction after it."""
    return F.avg_pool2d(x, 2) if min(x.shape[2:]) >= 4 * PATCH else x


def take_patches(x: Tensor) -> tuple[Tensor, list[int]]:
    """Patches [n, places, C * side^2] of images [n, C, H, W], of mean 0 and deviation 1 about; and rows and columns."""
    side, step = min(PATCH, *x.shape[2:]), 2 if min(x.shape[2:]) >= 4 * PATCH else 1
    patches = F.unfold(x, side, stride=step).mT
    patches = patches - patches.mean(2, keepdim=True)
    return patches / (patches.var(2, keepdim=True) + FLAT).sqrt(), [(size - side) // step + 1 for size in x.shape[2:]]


def choose_codes(z: Tensor) -> Tensor:
    """Choose typical ones [CODES, d] of length 1 among whitened patches z [n, d]: spherical k-means."""
    codes = F.normalize(z[torch.randint(len(z), (CODES,))], dim=1)
    for _ in range(ROUNDS):
        nearest = torch.cat([(some @ codes.T).argmax(1) for some in z.split(10000)])
        codes = F.normalize(codes.index_add(0, nearest, z) - codes, dim=1)
    return codes


def count_patches(x: Tensor, whitened: nn.Module, codes: Tensor) -> Tensor:
    """How near the patches of each quarter of the picture are to each code, beyond the mean of all codes."""
    patches, places = take_patches(x)
    z = whitened(patches)
    apart = (z.square().sum(2, keepdim=True) + 1 - 2 * z @ codes.T).clamp(min=0).sqrt()
    near = (apart.mean(2, keepdim=True) - apart).clamp(min=0)
    return F.adaptive_avg_pool2d(near.mT.unflatten(2, places), 2).flatten(1)


def lay_out(x: Tensor) -> Tensor:
    """Shrink pictures [n, C, H, W] to a few numbers, less their mean."""
    small = F.adaptive_avg_pool2d(x, POINTS).flatten(1)
    return small - small.mean(1, keepdim=True)


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


def count_edges(x: Tensor, cells: int) -> Tensor:
    """Histograms of orientations in `cells` x `cells` cells, in overlapping blocks of 2 x 2 cells of length 1 each."""
    blocks = F.unfold(F.adaptive_avg_pool2d(orient_edges(x), cells), 2).mT
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
