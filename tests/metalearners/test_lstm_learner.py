"""The LSTM learner against torch's LSTM over the written-out sequence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.toys import Itself, answers, batch, check_padding_and_order, learnt, rand
from torch import nn

from umeta.errors import UserError
from umeta.metalearners.lstm_learner import LSTMLearner
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import EpisodeSpec, TaskSpec

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


def test_contract() -> None:
    check_metalearner(LSTMLearner(Conv4(filters=4), hidden=8))


def test_logits_by_hand() -> None:
    """For each query torch's LSTM over the support in the order of its labels, and the query with no label."""
    learner = LSTMLearner(Itself(), hidden=5).build(SPEC, EPISODE)
    theta = learner.init(0)
    x, query = rand(2, 4, 3), rand(2, 3, 3, seed=1)
    found = answers(learner, theta, batch(x, [[0, 0, 1, 1], [1, 0, 0, 1]], 2), query)
    lstm, answer = nn.LSTM(5, 5), nn.Linear(5, 2)
    prefix = "lstmlearner.cell."
    lstm.load_state_dict({f"{n[len(prefix) :]}_l0": p for n, p in theta.params.items() if n.startswith(prefix)})
    answer.load_state_dict({n: theta.params[f"lstmlearner.answer.{n}"] for n in ("weight", "bias")})
    labels = F.one_hot(torch.tensor([0, 0, 1, 1]))
    for t, order in enumerate(([0, 1, 2, 3], [1, 2, 0, 3])):
        for q in range(3):
            sequence = torch.cat([torch.cat([x[t, order], labels], 1), F.pad(query[t, q : q + 1], (0, 2))])
            torch.testing.assert_close(found[t, q], answer(lstm(sequence)[0][-1]))


def test_padding_counts_for_nothing_nor_does_the_order_of_classes() -> None:
    check_padding_and_order(LSTMLearner(Itself(), hidden=5).build(SPEC, EPISODE), [1, 0, 3, 2])


def test_another_way_is_refused_and_another_shot_is_not() -> None:
    learner = LSTMLearner(Itself(), hidden=5).build(SPEC, EPISODE)
    theta = learner.init(0)
    assert answers(learner, theta, batch(rand(1, 6, 3), [[0, 0, 0, 1, 1, 1]], 2), rand(1, 4, 3)).shape == (1, 4, 2)
    with pytest.raises(UserError, match="lstmlearner: it was meta-trained for 2 ways, not 3"):
        learner.adapt(theta, batch(rand(1, 3, 3), [[0, 1, 2]], 3))


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(LSTMLearner(Itself(), hidden=64), lr=0.005, steps=300, way=2)
    assert after > 0.8
    assert before < 0.6
