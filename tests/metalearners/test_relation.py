"""Relation networks against the formula, looped."""

from __future__ import annotations

import torch
from helpers.toys import Itself, answers, batch, check_padding_and_labels, learnt, rand

from umeta.metalearners.relation import Relation
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import EpisodeSpec, TaskSpec

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


def test_contract() -> None:
    check_metalearner(Relation(Conv4(filters=4), hidden=8))


def test_logits_by_hand() -> None:
    """A network of three layers on the class's mean beside the query."""
    learner = Relation(Itself(), hidden=5).build(SPEC, EPISODE)
    theta = learner.init(0)
    x, query = rand(2, 5, 3), rand(2, 4, 3, seed=1)
    found = answers(learner, theta, batch(x, [[0, 0, 1, 1, 1], [1, 0, 0, 0, 1]], 2), query)
    weight, bias = ([theta.params[f"relation.{i}.{kind}"] for i in (0, 2, 4)] for kind in ("weight", "bias"))
    members = [[[0, 1], [2, 3, 4]], [[1, 2, 3], [0, 4]]]
    for t in range(2):
        for q in range(4):
            for c in range(2):
                h = torch.cat([x[t, members[t][c]].mean(0), query[t, q]])
                h = (weight[0] @ h + bias[0]).relu()
                h = (weight[1] @ h + bias[1]).relu()
                torch.testing.assert_close(found[t, q, c], (weight[2] @ h + bias[2])[0])


def test_padding_counts_for_nothing_and_permuted_labels_permute_the_answers() -> None:
    check_padding_and_labels(Relation(Itself()))


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(Relation(Itself()), lr=0.01)
    assert after > 0.95
    assert before < 0.3
