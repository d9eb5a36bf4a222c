"""Descriptors beside a network: held against a histogram by hand and HOG of another library; and at work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from umeta.benchmarks.descriptors import compute_colour_histogram, compute_hog
from umeta.data.images import UnlabelledImages
from umeta.deploy.export import export_graph
from umeta.errors import UserError
from umeta.models import described
from umeta.models.conv4 import Conv4
from umeta.models.described import (
    Described,
    Whitening,
    count_colours,
    count_edges,
    count_patches,
    orient_edges,
    split,
    take_patches,
)
from umeta.models.resnet9 import ResNet9

TINY = Described(ResNet9([2, 3, 4, 5]), weight=3)


def pictures(count: int, size: int = 40) -> np.ndarray:
    """Smooth noise in colour."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 3, 6, 6))
    smooth = F.interpolate(torch.from_numpy(coarse).float(), (size, size), mode="bilinear")
    return smooth.round().to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def whole() -> tuple[torch.nn.Module, torch.Tensor]:
    """What is built once meta-training is over, and pictures."""
    pixels = pictures(60)
    images = UnlabelledImages.of(pixels)
    net = TINY.model.build((3, 40, 40)).eval()
    options, own = TINY.complete(images, lambda x: net(x).detach(), 0)
    built = options.build((3, 40, 40)).eval()
    built.load_state_dict({**built.state_dict(), **own})
    return built, torch.from_numpy(pixels[:6]).float() / 255


def test_colours_are_counted_as_by_the_baseline():
    pixels = pictures(5)
    found = count_colours(torch.from_numpy(pixels).float() / 255, 1, 8)
    np.testing.assert_allclose(found, compute_colour_histogram(pixels), atol=1e-6)


def test_colours_of_parts_are_those_of_the_parts_alone():
    x = torch.from_numpy(pictures(2)).float() / 255
    quarters = [x[:, :, i : i + 20, j : j + 20] for i in (0, 20) for j in (0, 20)]
    expected = torch.cat([count_colours(part, 1, 4) for part in quarters], 1)
    torch.testing.assert_close(count_colours(x, 2, 4), expected)


def test_edges_are_much_as_hog_by_another_library():
    """Which gives each point to one orientation and where cells are as large."""
    pixels = pictures(40)
    found = count_edges(torch.from_numpy(pixels).float() / 255, 5).numpy()
    hog = compute_hog(pixels)
    near, far = (np.corrcoef(values - values.mean(0)) for values in (found, hog))
    pairs = np.triu_indices(40, 1)
    assert np.corrcoef(near[pairs], far[pairs])[0, 1] > 0.7  # the same pictures look alike


def test_an_edge_has_its_orientation():
    x = torch.zeros(1, 1, 20, 20)
    x[..., 10:] = 1  # brighter to the right: orientation 0
    strength = orient_edges(x).sum((0, 2, 3))
    assert strength[0] > 0
    assert strength[1:].sum() == 0
    turned = orient_edges(x.mT).sum((0, 2, 3))
    assert turned[4] == turned[5] > 0  # 90 degrees is between two of nine


def test_whitened_vectors_are_uncorrelated_and_of_equal_deviation():
    random = np.random.default_rng(0)
    z = torch.from_numpy(random.normal(size=(500, 6)) @ random.normal(size=(6, 6)) + 3).float()
    whitened = Whitening(6, 6)
    whitened.fit(z, 0.0)
    torch.testing.assert_close(whitened(z).T.cov(correction=0), torch.eye(6), atol=1e-3, rtol=0)


def test_patches_count_as_by_hand():
    """Coates, Ng and Lee: how much nearer than the mean code each code is, averaged over a quarter of the picture."""
    x = torch.from_numpy(pictures(9, 16)).float() / 255
    whitened = Whitening(108, 108)
    whitened.fit(take_patches(x)[0].flatten(0, 1), 3e-4)
    codes = F.normalize(torch.randn(7, 108, generator=torch.Generator().manual_seed(0)), dim=1)
    near = np.zeros((11, 11, 7))
    for i in range(11):
        for j in range(11):
            patch = x[0, :, i : i + 6, j : j + 6].flatten()
            z = whitened((patch - patch.mean()) / (patch.var() + 10 / 255**2).sqrt())
            apart = np.array([float((z - code).norm()) for code in codes])
            near[i, j] = np.maximum(apart.mean() - apart, 0)
    quarters = [near[i : i + 6, j : j + 6].mean((0, 1)) for i in (0, 5) for j in (0, 5)]
    found = count_patches(x, whitened, codes)[0].view(7, 4)
    np.testing.assert_allclose(found, np.stack(quarters, 1), rtol=1e-3, atol=1e-5)


def test_a_cosine_is_the_weighted_mean_of_the_networks_and_the_descriptors(whole):
    net, x = whole
    z = net(x)
    parts = [net.centre_features(net.network(x)), *net.whiten(x)]
    expected = sum(weight * F.normalize(part, dim=1) @ F.normalize(part, dim=1).T for part, weight in parts)
    torch.testing.assert_close(z @ z.T, expected, atol=1e-5, rtol=1e-4)
    assert parts[0][1] == 3
    assert sum(weight for _, weight in parts[1:]) == pytest.approx(1)


def test_what_is_fitted_depends_on_images_and_seed_alone():
    images = UnlabelledImages.of(pictures(40, 24))
    net = TINY.model.build((3, 24, 24)).eval()
    found = [TINY.complete(images, lambda x: net(x).detach(), seed)[1] for seed in (0, 0, 1)]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["codes.0"], found[2]["codes.0"])


def test_the_weight_of_a_network_that_sees_nothing_is_chosen_as_none():
    images = UnlabelledImages.of(pictures(60, 24))
    noise = torch.Generator().manual_seed(0)
    blind, _ = Described(TINY.model).complete(images, lambda x: torch.randn(len(x), 5, generator=noise), 0)
    assert blind.weight == 0


@pytest.mark.parametrize(
    ("model", "averages"), [(TINY.model, True), (Conv4(5, down="stride"), True), (Conv4(5), False)]
)
def test_the_weight_is_chosen_by_whether_the_network_averages_over_places(model, averages, monkeypatch):
    asked = []
    monkeypatch.setattr(described, "weigh_by_halves", lambda *options: asked.append(options[2]) or (0.3, "told"))
    net = model.build((3, 24, 24)).eval()
    whole, _ = Described(model).complete(UnlabelledImages.of(pictures(20, 24)), lambda x: net(x).detach(), 0)
    assert (whole.weight, asked) == (0.3, [averages])


@pytest.mark.parametrize("width", [8, 7])
def test_halves_are_what_lies_left_and_right_of_the_middle(width):
    x = torch.arange(width).float().expand(2, 3, 4, width)
    left, right = split(x)
    assert left.shape == right.shape == x.shape
    assert left.max() <= (width - 1) / 2
    assert right.min() >= (width - 1) / 2
    assert (left.min(), right.max()) == (0, width - 1)


def test_it_is_exported_and_takes_grey_pictures():
    net = Described(TINY.model, fitted=True).build((1, 28, 28)).eval()
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(export_graph(net, (1, 28, 28)).module()(x), net(x))


def test_large_pictures_are_described_at_half_their_size(whole):
    net, x = whole
    large = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for (small, _), (halved, _) in zip(net.describe(x), net.describe(large), strict=True):
        torch.testing.assert_close(halved, small)


def test_a_mirror_image_is_described_alike(whole):
    net, x = whole
    for (one, _), (other, _) in zip(net.describe(x), net.describe(x.flip(3)), strict=True):
        torch.testing.assert_close(other, one, atol=1e-3, rtol=1e-3)


def test_items_that_are_no_images_are_named():
    with pytest.raises(UserError, match="takes images"):
        TINY.build((7,))
