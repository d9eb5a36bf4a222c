"""How much of each of two: what both see counts, chance does not."""

from __future__ import annotations

import numpy as np
import pytest

from umeta.models.weigh import finds, mix, rank_halves, unit, weigh, weigh_by_halves

N, D = 300, 40


def views(signal: np.ndarray, own: float, noise: float, seed: int) -> list[np.ndarray]:
    """Two views by a network that sees a signal [N, D], as much of its own as `own` says, and noise in each view."""
    random = np.random.default_rng(seed)
    repeated = np.concatenate([signal, own * random.normal(size=(N, D))], axis=1)
    return [repeated + noise * random.normal(size=repeated.shape) for _ in range(2)]


@pytest.fixture(scope="module")
def signal() -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.normal(size=(20, D))[random.integers(0, 20, N)] + 0.5 * random.normal(size=(N, D))).astype(
        np.float32
    )


def test_the_weight_grows_with_what_the_networks_have_in_common(signal):
    frozen = views(signal, 0.3, 0.3, 1)
    found = [weigh(frozen, views(signal, own, 0.3, 2)) for own in (0.3, 2.0, 4.0)]
    weights = [one.weight for one in found]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] > 0.5
    assert weights[2] < 0.3
    assert found[0].common > found[2].common
    joint = mix(frozen[0], views(signal, 0.3, 0.3, 2)[0], weights[0])
    assert joint.shape == (N, 4 * D)


def test_what_has_nothing_in_common_with_the_better_one_is_left_out(signal):
    other = np.random.default_rng(9).normal(size=(N, D))
    good, bad = views(signal, 0.3, 0.3, 1), views(other, 0.3, 2.0, 2)
    assert weigh(good, bad).weight == 0
    assert weigh(bad, good).weight == np.inf
    assert weigh(good, bad).found["both"] == weigh(good, bad).found["pre-trained alone"]


def test_cosines_of_a_mixture_add_up_and_the_own_view_is_found():
    a, b = (np.random.default_rng(i).normal(size=(9, 5)) for i in (1, 2))
    wanted = (unit(a) @ unit(a).T + 0.5 * unit(b) @ unit(b).T) / 1.5
    z = unit(mix(a, b, 0.5))
    np.testing.assert_allclose(z @ z.T, wanted, atol=1e-6)
    assert finds(a, 3 * a).all()
    assert not finds(a, a[::-1])[:4].any()


def test_what_repeats_nothing_has_no_weight_whatever_chance_says(signal):
    random = np.random.default_rng(3)
    noise = [random.normal(size=(60, 5)) for _ in range(2)]
    good = [view[:60] for view in views(signal, 0.3, 0.3, 1)]
    assert weigh(good, noise).weight == 0


def test_ranks_of_other_halves_by_hand():
    """Of three pictures all first halves find their second ones; of those the second one takes another for its own."""
    first = np.array([[1, 0.0], [0.8, 0.6], [0.0, 1]])
    second = np.array([[1, 0.0], [1.0, 0.1], [0.0, 1]])
    assert rank_halves(first, second) == pytest.approx(np.mean([1, 1, 1, 1, 1 / 2, 1]))
    assert rank_halves(first, first) == 1


def test_a_network_to_which_all_is_alike_finds_nothing(signal):
    same, described = np.ones_like(signal), views(signal, 0.3, 3.0, 1)
    assert rank_halves(same, same) < 0.05  # by rounding at most
    assert weigh_by_halves(described, [same, same])[0] == 0


def test_a_network_counts_as_much_as_its_halves_find_each_other(signal):
    """As often as those of descriptors: a quarter, and from there by the fourth power of the odds, up to 2."""
    described = views(signal, 0.3, 3.0, 1)
    weights = []
    for noise in (1.5, 2.7, 3.0, 3.3, 30.0):
        learnt = views(signal, 0.3, noise, 2)
        weight, why = weigh_by_halves(described, learnt)
        a, b = (rank_halves(*one) for one in (described, learnt))
        assert weight == pytest.approx(min((b / (1 - b) * (1 - a) / a) ** 4 / 4, 2) if noise < 30 else 0)
        assert f"rank {a:.2f} by descriptors, {b:.2f} by the network" in why
        weights.append(weight)
    assert weights == sorted(weights, reverse=True)
    assert weights[0] == 2
    assert weights[1] > 0.3 > weights[3] > 0.05


def test_halves_that_are_always_found_have_a_weight_too(signal):
    assert weigh_by_halves([signal, signal], [signal, signal])[0] == 0.25
    assert weigh_by_halves([signal, signal], [signal, signal], averages=True)[0] == 0.5
    worse = views(signal, 0.3, 3.0, 1)
    assert weigh_by_halves(worse, [signal, signal])[0] == 2
    assert weigh_by_halves(worse, [signal, signal], averages=True)[0] == 0.8
