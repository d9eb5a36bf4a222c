"""Features whose strongest directions count less: what comes out has the variances that are promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from umeta.metalearners.protonet import ProtoNet
from umeta.models.conv4 import Conv4
from umeta.models.whitened import Straightened, Whitened, find_whitening
from umeta.types import EpisodeSpec, TaskSpec

SHAPE = (3, 16, 16)


def test_the_larger_a_variance_the_more_of_it_is_taken_away():
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.normal(size=(6, 6)))[0]
    variances = np.array([100.0, 10, 1, 0.1, 0.01, 0])
    z = random.normal(size=(500, 6))
    z = np.linalg.qr(z - z.mean(0))[0] * np.sqrt(500 * variances) @ turn.T + 7  # of exactly these variances
    found = Straightened(nn.Identity(), *find_whitening(z))(torch.from_numpy(z).float()).numpy()
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
    covariance = np.cov(found, rowvar=False, bias=True)
    wanted = np.sort(variances / (variances + variances.mean()) ** 0.1)
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance), wanted, atol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_few_vectors_or_all_alike_give_numbers(count):
    for z in (np.random.default_rng(0).normal(size=(count, 8)), np.ones((count, 8))):
        assert all(torch.isfinite(found).all() for found in find_whitening(z.astype(np.float32)))


def test_as_it_is_built_it_changes_nothing_and_meta_training_leaves_it_alone():
    x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    whitened = Whitened(Conv4(4), 4).build(SHAPE).eval()
    with torch.no_grad():
        torch.testing.assert_close(whitened(x), whitened.net(x))
    learner = ProtoNet(Whitened(Conv4(4), 4)).build(TaskSpec(SHAPE), EpisodeSpec(2, 1, 1))
    assert learner.fixed == {"mean", "directions"}
