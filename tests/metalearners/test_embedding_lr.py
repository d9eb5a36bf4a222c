"""Logistic regression on embeddings against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.toys import Itself, batch, check_padding_and_labels, learnt, rand
from sklearn.linear_model import LogisticRegression

from umeta.metalearners.embedding_lr import EmbeddingLR
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import EpisodeSpec, TaskSpec, Theta

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


def test_contract() -> None:
    check_metalearner(EmbeddingLR(Conv4(filters=4), steps=5))


@pytest.mark.parametrize(("way", "shot", "strength"), [(3, 2, 1.0), (2, 1, 1.0), (20, 5, 1.0), (5, 5, 10.0)])
def test_probabilities_are_those_of_scikit_learn(way: int, shot: int, strength: float) -> None:
    learner = EmbeddingLR(Itself(), strength=strength).build(TaskSpec((8,)), EPISODE)
    theta = learner.init(0)
    theta = Theta({**theta.params, "scale": torch.tensor(1.0)})
    y = list(range(way)) * shot
    if shot > 1:
        y[-1] = 0  # classes of different size
    y = [y, y[::-1]]
    x, query = rand(2, way * shot, 8) + 0.5, rand(2, 6, 8, seed=1) + 0.5
    adapted = learner.adapt(theta, batch(x, y, way), steps=learner.test_steps)
    found = learner.predict(theta, adapted, query).softmax(-1)
    for t in range(2):
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=1000).fit(F.normalize(x[t], dim=1), y[t])
        expected = model.predict_proba(F.normalize(query[t], dim=1))
        if way == 2:  # scikit-learn has one weight vector for two classes, whose penalty is not that of two
            expected = two_classes(F.normalize(x[t], dim=1), y[t], F.normalize(query[t], dim=1))
        np.testing.assert_allclose(found[t], expected, atol=2e-4)


def two_classes(x: torch.Tensor, y: list[int], query: torch.Tensor) -> np.ndarray:
    """Weights w and -w are penalised as |w|^2, so with twice them, v, as |v|^2 / 4: scikit-learn's C doubled."""
    return LogisticRegression(C=2.0, tol=1e-8, max_iter=1000).fit(x, y).predict_proba(query)


def test_the_first_step_is_towards_the_class_means() -> None:
    learner = EmbeddingLR(Itself()).build(SPEC, EPISODE)
    theta = learner.init(0)
    x = rand(1, 4, 3)
    weight = learner.adapt(theta, batch(x, [[0, 0, 1, 1]], 2), steps=1).params["weight"][0]
    means = F.normalize(x[0], dim=1).unflatten(0, (2, 2)).mean(1)
    torch.testing.assert_close(F.normalize(weight[0], dim=0), F.normalize(means[0] - means[1], dim=0))


def test_padding_counts_for_nothing_and_permuted_labels_permute_the_answers() -> None:
    check_padding_and_labels(EmbeddingLR(Itself()))


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(EmbeddingLR(Itself()))
    assert after > 0.95
    assert before < 0.6
