"""Siamese networks against the formula, looped."""

from __future__ import annotations

import torch
from helpers.toys import Itself, answers, batch, check_padding_and_labels, learnt, rand

from umeta.metalearners.siamese import Siamese
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import EpisodeSpec, TaskSpec

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


def test_contract() -> None:
    check_metalearner(Siamese(Conv4(filters=4)))


def test_probabilities_by_hand() -> None:
    """In proportion to the mean over a class's items of the sigmoid of a weighted L1 distance."""
    learner = Siamese(Itself()).build(SPEC, EPISODE)
    theta = learner.init(0)
    x, query, y = rand(2, 5, 3), rand(2, 4, 3, seed=1), torch.tensor([[0, 0, 1, 1, 1], [1, 0, 0, 0, 1]])
    found = answers(learner, theta, batch(x, y.tolist(), 2), query).exp()
    alpha, bias = theta.params["siamese.weight"][0], theta.params["siamese.bias"][0]
    for t in range(2):
        for q in range(4):
            p = torch.stack([(sum(alpha * (query[t, q] - x[t, i]).abs()) + bias).sigmoid() for i in range(5)])
            torch.testing.assert_close(found[t, q], torch.stack([p[y[t] == c].mean() for c in range(2)]))


def test_padding_counts_for_nothing_and_permuted_labels_permute_the_answers() -> None:
    check_padding_and_labels(Siamese(Itself()))


def test_far_pairs_and_a_class_without_support_are_no_reason_to_fail() -> None:
    learner = Siamese(Itself()).build(SPEC, EPISODE)
    theta = learner.init(0)
    logits = answers(learner, theta, batch(1e3 * rand(1, 2, 3), [[0, 2]], 3), rand(1, 4, 3))
    assert logits.isfinite().all()
    assert (logits.argmax(-1) != 1).all()


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(Siamese(Itself()))
    assert after > 0.95
    assert before < 0.3
