"""Counter-based randomness: independent of order, distinct, uniform."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from umeta import seeds


def chi_square(counts: np.ndarray) -> float:
    """Pearson's statistic against equal probabilities, in standard deviations above its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def test_a_key_depends_on_its_parts_and_their_order_alone() -> None:
    one = seeds.key(3, "tasks", np.arange(5))
    seeds.key(99, "something else", np.arange(1000))
    np.testing.assert_array_equal(one, seeds.key(3, "tasks", np.arange(5)))
    np.testing.assert_array_equal(one[[4, 0]], seeds.key(3, "tasks", np.array([4, 0])))
    parts = [(3, "tasks", 1), (1, "tasks", 3), (3, "task", 1), ("tasks", 3, 1), (3, "tasks"), (3, "tasks", 1, 0)]
    assert len({int(seeds.key(*part)) for part in parts}) == len(parts)
    assert len(np.unique(seeds.key(0, np.arange(100_000)))) == 100_000


def test_keys_broadcast() -> None:
    grid = seeds.key(1, np.arange(3)[:, None], np.arange(4))
    assert grid.shape == (3, 4)
    assert grid.dtype == np.uint64
    assert grid[2, 3] == seeds.key(1, 2, 3)
    np.testing.assert_array_equal(grid, seeds.key(1, np.arange(3)[:, None], range(4)))


def test_known_values_do_not_change() -> None:
    """Proposed tasks and finished runs are only reproducible as long as these stay what they are."""
    assert int(seeds.key(0, "task", 1)) == 221840087379581285
    assert seeds.choose(seeds.key(0, np.arange(2)), 10, 3).tolist() == [[3, 7, 6], [4, 0, 2]]
    assert seeds.integer(0, "weights") == 278862400


def test_below_stays_in_range_and_is_uniform() -> None:
    drawn = seeds.below(seeds.key(0, np.arange(70_000)), 7)
    assert drawn.dtype == np.int64
    assert chi_square(np.bincount(drawn, minlength=7)) < 4
    extremes = seeds.below(np.array([0, 2**64 - 1], dtype=np.uint64), np.array([2**31 - 1, 2**31 - 1]))
    assert extremes.tolist() == [0, 2**31 - 2]
    assert (seeds.below(seeds.key(1, np.arange(1000)), np.arange(1, 1001)) < np.arange(1, 1001)).all()


@pytest.mark.parametrize(("n", "size"), [(5, 5), (5, 1), (50, 7), (3, 0)])
def test_choose_gives_distinct_values_in_range(n: int, size: int) -> None:
    chosen = seeds.choose(seeds.key(0, np.arange(200)), n, size)
    assert chosen.shape == (200, size)
    assert ((chosen >= 0) & (chosen < n)).all()
    assert all(len(set(row)) == size for row in chosen.tolist())


def test_choose_takes_n_by_key() -> None:
    n = np.arange(3, 203).reshape(20, 10)
    chosen = seeds.choose(seeds.key(0, np.arange(200)).reshape(20, 10), n, 3)
    assert chosen.shape == (20, 10, 3)
    assert (chosen < n[..., None]).all()
    assert chosen[4, 7].tolist() == seeds.choose(seeds.key(0, 47), 50, 3).tolist()
    with pytest.raises(ValueError, match="cannot choose 4 distinct items from 3"):
        seeds.choose(seeds.key(0, np.arange(200)).reshape(20, 10), n, 4)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_choose_is_uniform_over_ordered_selections(size: int) -> None:
    selections = {selection: i for i, selection in enumerate(permutations(range(4), size))}
    chosen = seeds.choose(seeds.key("uniform", np.arange(24_000)), 4, size)
    counts = np.bincount([selections[tuple(row)] for row in chosen.tolist()], minlength=len(selections))
    assert chi_square(counts) < 4


def test_integer_and_generator() -> None:
    assert 0 <= seeds.integer(5, "weights") < 2**31
    assert seeds.integer(5, "weights") != seeds.integer(6, "weights")
    one, again, other = (torch.rand(3, generator=seeds.generator(5, word)) for word in ("a", "a", "b"))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_random_state_of_a_gpu_is_left_alone() -> None:
    """`torch.manual_seed` also sets that of every GPU, which no `fork_rng(devices=[])` gives back."""
    root = Path(__file__).parents[1]
    files = [path for part in ("umeta", "proposers", "embeddings") for path in (root / part).rglob("*.py")]
    assert len(files) > 100
    assert not [path.name for path in files if "torch.manual_seed(" in path.read_text(encoding="utf-8")]
