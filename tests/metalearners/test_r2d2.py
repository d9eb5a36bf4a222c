"""R2-D2 against scikit-learn's ridge regression."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from helpers.toys import Itself, answers, batch, learnt, padded, rand
from sklearn.linear_model import Ridge

from umeta.metalearners.r2d2 import R2D2
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.train import BatchProblem
from umeta.types import EpisodeSpec, TaskSpec, Theta

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


def test_contract() -> None:
    check_metalearner(R2D2(Conv4(filters=4)))


def test_logits_are_those_of_ridge_regression_on_one_hot_labels() -> None:
    learner = R2D2(Itself())
    start = {"scale": 4.0, "shift": 0.5, "log_lambda": np.log(0.3)}
    for d in (3, 9):  # fewer and more features than items
        learner = learner.build(TaskSpec((d,)), EPISODE)
        theta = learner.init(0)
        theta = Theta({**theta.params, **{name: torch.tensor(value) for name, value in start.items()}})
        x, query, y = rand(2, 5, d), rand(2, 4, d, seed=1), [[0, 0, 1, 2, 2], [1, 0, 2, 0, 1]]
        found = answers(learner, theta, batch(x, y, 3), query)
        for t in range(2):
            ridge = Ridge(alpha=0.3, fit_intercept=False).fit(x[t], np.eye(3)[y[t]])
            expected = 4 * ridge.predict(query[t]) + 0.5
            np.testing.assert_allclose(found[t], expected, atol=1e-4, rtol=1e-4)


def test_padding_counts_for_nothing_and_permuted_labels_permute_the_answers() -> None:
    learner = R2D2(Itself()).build(SPEC, EPISODE)
    theta = learner.init(0)
    support, query = batch(rand(2, 6, 3), [[0, 0, 1, 1, 2, 2]] * 2, 3), rand(2, 4, 3, seed=1)
    logits = answers(learner, theta, support, query)
    torch.testing.assert_close(answers(learner, theta, padded(support, 3), query), logits, atol=1e-4, rtol=1e-4)
    order = torch.tensor([2, 0, 1])
    permuted = answers(learner, theta, replace(support, y=order[support.y]), query)
    torch.testing.assert_close(permuted[..., order], logits)


def test_scale_and_lambda_are_learnt() -> None:
    learner = R2D2(Itself()).build(SPEC, EPISODE)
    params = {name: p.requires_grad_() for name, p in learner.init(0).params.items()}
    support, query = (batch(rand(1, 4, 3, seed=s), [[0, 1, 0, 1]], 2) for s in (0, 1))
    _, grads = BatchProblem(learner, Theta(params), SPEC, [support], query, 1).loss_and_grad()
    assert all(grads[name] != 0 for name in ("scale", "log_lambda"))


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(R2D2(Itself()))
    assert after > 0.95
    assert before < 0.6
