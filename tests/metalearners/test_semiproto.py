"""Semi-supervised prototypes against the formulas, looped; and what unlabelled items and distractors do to them."""

from __future__ import annotations

import pytest
import torch
from helpers.toys import Itself, answers, batch, check_padding_and_labels, learnt, rand

from umeta.metalearners.protonet import ProtoNet
from umeta.metalearners.semiproto import SemiProto
from umeta.models.conv4 import Conv4
from umeta.testing import check_metalearner
from umeta.types import EpisodeSpec, TaskSpec

SPEC, EPISODE = TaskSpec((3,)), EpisodeSpec(2, 2, 1)


@pytest.mark.parametrize("masked", [False, True])
def test_contract(masked: bool) -> None:
    check_metalearner(SemiProto(Conv4(filters=4), masked=masked))


@pytest.mark.parametrize("masked", [False, True])
def test_logits_by_hand(masked: bool) -> None:
    learner = SemiProto(Itself(), masked=masked).build(SPEC, EPISODE)
    theta = learner.init(0)
    x, query = rand(2, 7, 3), rand(2, 4, 3, seed=1)
    support = batch(x, [[0, 0, 1, 1, -1, 1, -1], [-1, 1, 1, 0, -1, 0, 0]], 2)
    found = answers(learner, theta, support, query)
    labelled = [({0: 0, 1: 2}, [1, 3, 4, 5, 6]), ({0: 3, 1: 1}, [0, 2, 4, 5, 6])]
    for t, (first, unlabelled) in enumerate(labelled):
        distance = torch.stack([((x[t] - x[t, first[c]]) ** 2).sum(1) for c in (0, 1)], 1)
        share = (-distance).softmax(1)
        mask = torch.ones(7, 2)
        if masked:
            d = distance / distance[unlabelled].mean(0)
            for c in (0, 1):
                of = d[unlabelled, c]
                z = (of - of.mean()) / of.std(correction=0)
                about = torch.stack([of.min(), of.max(), of.var(correction=0), (z**3).mean(), (z**4).mean() - 3])
                w = {name.removeprefix("semiproto."): p for name, p in theta.params.items()}
                hidden = (w["0.weight"] @ about + w["0.bias"]).tanh()
                beta, gamma = w["2.weight"] @ hidden + w["2.bias"]
                mask[:, c] = (-gamma * (d[:, c] - beta)).sigmoid()
        for c in (0, 1):
            counts = {first[c]: torch.tensor(1.0)} | {j: share[j, c] * mask[j, c] for j in unlabelled}
            prototype = sum(count * x[t, j] for j, count in counts.items()) / sum(counts.values())
            expected = 2 * query[t] @ prototype - prototype @ prototype
            torch.testing.assert_close(found[t, :, c], expected)


def test_with_every_label_told_it_is_protonet() -> None:
    support, query = batch(rand(2, 6, 3), [[0, 0, 1, 1, 2, 2]] * 2, 3), rand(2, 4, 3, seed=1)
    learners = SemiProto(Itself(), labelled=2), ProtoNet(Itself())
    found = [answers(one, one.init(0), support, query) for one in (one.build(SPEC, EPISODE) for one in learners)]
    torch.testing.assert_close(*found)


def test_unlabelled_items_help() -> None:
    """Prototypes come nearer to the means of two classes, of which one item each is labelled."""
    means = torch.tensor([[2.0, 0, 0], [-2, 0, 0]])
    y = torch.arange(60).remainder(2)
    support = batch(means[y] + 0.8 * rand(20, 60, 3), [[0, 1, *[-1] * 58]] * 20, 2)
    learner = SemiProto(Itself()).build(SPEC, EPISODE)
    refined = learner.adapt(learner.init(0), support).params["prototypes"]
    assert (refined - means).norm() < 0.5 * (support.x[:, :2] - means).norm()


def test_a_distractor_can_be_left_out() -> None:
    """A far item hardly moves prototypes by a perceptron that says: less, the farther."""
    learner = SemiProto(Itself(), masked=True).build(SPEC, EPISODE)
    theta = learner.init(0)
    for name, value in {"2.weight": torch.zeros(2, 20), "2.bias": torch.tensor([1.0, 9.0])}.items():
        theta.params[f"semiproto.{name}"] = value  # beta 1, gamma 9
    near, far = rand(1, 6, 3) * 0.3, torch.full((1, 1, 3), 4.0)
    labels = [[0, 1, *[-1] * 4]]
    without = learner.adapt(theta, batch(near, labels, 2)).params["prototypes"]
    moved = []
    for masked in (True, False):
        one = SemiProto(Itself(), masked=masked).build(SPEC, EPISODE)
        found = one.adapt(theta, batch(torch.cat([near, far], 1), [[*labels[0], -1]], 2)).params["prototypes"]
        moved.append((found - without).norm())
    assert moved[0] < 0.2 * moved[1]


def test_padding_counts_for_nothing_and_permuted_labels_permute_the_answers() -> None:
    check_padding_and_labels(SemiProto(Itself(), masked=True))


def test_it_learns_which_coordinates_matter() -> None:
    before, after = learnt(SemiProto(Itself()), shot=3)
    assert after > 0.95
    assert before < 0.6
