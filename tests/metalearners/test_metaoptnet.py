"""MetaOptNet against LIBLINEAR's machine of Crammer and Singer, and its gradient against differences."""

from __future__ import annotations

import numpy as np
import torch
from helpers.toys import Itself, answers, batch, check_padding_and_labels, learnt, rand
from sklearn.svm import LinearSVC

from umeta.metalearners.metaoptnet import MetaOptNet, project, solve_dual
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import EpisodeSpec, TaskSpec

EPISODE = EpisodeSpec(2, 2, 1)


def test_contract() -> None:
    check_metalearner(MetaOptNet(Conv4(filters=4)))


def test_logits_are_those_of_the_support_vector_machine() -> None:
    """With I in the kernel: each item has a further feature of its own, which no query has."""
    for d in (3, 9):  # fewer and more features than items
        learner = MetaOptNet(Itself(), strength=0.4, iterations=300).build(TaskSpec((d,)), EPISODE)
        theta = learner.init(0)
        x, query, y = 2 * rand(2, 5, d), rand(2, 4, d, seed=1), [[0, 0, 1, 2, 2], [1, 0, 2, 0, 1]]
        found = answers(learner, theta, batch(x, y, 3), query)
        for t in range(2):
            machine = LinearSVC(C=0.4, multi_class="crammer_singer", fit_intercept=False, tol=1e-8, max_iter=100_000)
            machine.fit(np.concatenate([x[t], np.eye(5)], 1), y[t])
            expected = query[t].numpy() @ machine.coef_[:, :d].T
            np.testing.assert_allclose(found[t], 10 * expected, atol=1e-2)


def test_the_implicit_gradient_is_that_of_differences() -> None:
    y = torch.eye(3, dtype=torch.float64)[torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1]])]

    def layer(z: torch.Tensor) -> torch.Tensor:
        return solve_dual(z @ z.mT + torch.eye(4).double(), y, 0.3, 500).mT @ z

    z = rand(2, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, z)


def test_the_projection_is_the_nearest_point_of_the_simplex() -> None:
    p, size = 2 * rand(50, 4).double(), torch.tensor(0.7).double()
    found = project(p, size[None])
    torch.testing.assert_close(found.sum(-1), size.expand(50))
    assert (found >= 0).all()
    others = 0.7 * torch.distributions.Dirichlet(torch.ones(4).double()).sample((1000, 1))
    assert ((others - p).norm(dim=-1) >= (found - p).norm(dim=-1) - 1e-12).all()


def test_padding_counts_for_nothing_and_permuted_labels_permute_the_answers() -> None:
    check_padding_and_labels(MetaOptNet(Itself()))


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(MetaOptNet(Itself()))
    assert after > 0.95
    assert before < 0.6
