"""Descriptors beside a network: held against a histogram by hand and HOG of another library; and at work."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from umeta.benchmarks.descriptors import compute_colour_histogram, compute_hog
from umeta.deploy.export import export_graph
from umeta.errors import UserError
from umeta.metalearners.maml import MAML
from umeta.metalearners.protonet import ProtoNet
from umeta.models.described import Described, count_colours, count_edges, describe, orient_edges
from umeta.models.resnet9 import ResNet9
from umeta.testing import check_metalearner

TINY = Described(ResNet9([2, 3, 4, 5]), weight=3)


def pictures(count: int, size: int = 40) -> np.ndarray:
    """Smooth noise in colour."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 3, 6, 6))
    smooth = F.interpolate(torch.from_numpy(coarse).float(), (size, size), mode="bilinear")
    return smooth.round().to(torch.uint8).numpy()


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
    found = count_edges(orient_edges(torch.from_numpy(pixels).float() / 255), 5).numpy()
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


def test_a_cosine_is_the_weighted_mean_of_the_networks_and_the_descriptors():
    torch.manual_seed(0)
    x = torch.from_numpy(pictures(6)).float() / 255
    net = TINY.build((3, 40, 40))
    z, own = net(x), F.normalize(net.network(x), dim=1)
    expected, parts = own @ own.T, describe(x)
    for part, weight in parts:
        apart = part - part.mean(0)
        apart = F.normalize(apart / (apart.square().mean(0) + 0.5 / part.shape[1]).sqrt(), dim=1)
        expected = expected + 3 * weight / sum(w for _, w in parts) * apart @ apart.T
    torch.testing.assert_close(z @ z.T, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("learner", [MAML(TINY, steps=2), ProtoNet(TINY)], ids=["maml", "protonet"])
def test_both_learners_work_on_it(learner):
    check_metalearner(learner)


def test_it_is_exported_and_takes_grey_pictures():
    net = TINY.build((1, 28, 28)).eval()
    x = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(export_graph(net, (1, 28, 28)).module()(x), net(x))


def test_large_pictures_are_described_at_half_their_size():
    x = torch.from_numpy(pictures(3)).float() / 255
    large = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(describe(large), describe(x))


def test_a_mirror_image_is_described_alike():
    x = torch.from_numpy(pictures(3)).float() / 255
    torch.testing.assert_close(describe(x.flip(3)), describe(x))


def test_items_that_are_no_images_are_named():
    with pytest.raises(UserError, match="takes images"):
        TINY.build((7,))
