"""Tasks from partitions, against what a task must be."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from umeta.errors import UserError
from umeta.tasks.partition import Episodes, PartitionTasks
from umeta.types import EpisodeSpec


def chi_square(counts: np.ndarray) -> float:
    """Pearson's statistic against equal probabilities, in standard deviations above its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


def tasks_of(*partitions: list[int], names: tuple[str, ...] = ()) -> PartitionTasks:
    """Items are their own number, so that a task shows what it drew."""
    items = np.arange(len(partitions[0]), dtype=np.float32)[:, None]
    return PartitionTasks(items, np.array(partitions), names)


def drawn(tasks: PartitionTasks, count: int, way: int, shot: int, query: int, seed: int = 0) -> Episodes:
    return tasks.sample(torch.arange(count), episode=EpisodeSpec(way, shot, query), seed=seed)


# classes of 4, 3, 2 and 3 items, one item unused
MIXED = [0, 1, 0, 2, 3, 1, 0, -1, 3, 2, 1, 0, 3]


def test_classes_of_images_in_any_layout_and_with_any_names():
    images = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
    tasks = PartitionTasks.of_classes(images / 255, ["b", "a", "b", "a", "c", "c"])
    assert torch.equal(tasks.items, torch.from_numpy(np.moveaxis(images, -1, 1)))
    assert (tasks.partitions.tolist(), tasks.names) == ([[1, 0, 1, 0, 2, 2]], ["a", "b", "c"])
    with pytest.raises(UserError, match="expected integers, got <U1; see PartitionTasks"):
        PartitionTasks(images, np.array(["b", "a", "b", "a", "c", "c"]))


def test_a_task_holds_what_was_asked_for() -> None:
    tasks = tasks_of(MIXED)
    e = drawn(tasks, 50, way=3, shot=1, query=2)
    support, query = e.support(), e.query()
    assert support.x.shape == (50, 3, 1)
    assert query.x.shape == (50, 6, 1)
    assert support.way == query.way == 3
    assert support.x.dtype == torch.float32
    assert support.y.dtype == torch.int64
    assert support.mask.all()
    assert query.mask.all()
    partition = np.array(MIXED)
    for t in range(50):
        items = torch.cat([support.x[t], query.x[t]]).squeeze(1).long().numpy()
        labels = torch.cat([support.y[t], query.y[t]]).numpy()
        assert len(set(items)) == 9
        assert np.bincount(labels).tolist() == [3, 3, 3]
        classes = {label: set(partition[items[labels == label]]) for label in range(3)}
        assert all(len(found) == 1 for found in classes.values())
        assert len(set.union(*classes.values())) == 3
    assert torch.equal(torch.sort(support.y).values, torch.arange(3).expand(50, 3))


def test_unused_items_and_small_classes_are_never_drawn() -> None:
    e = drawn(tasks_of(MIXED), 500, way=2, shot=2, query=1)
    seen = set(torch.cat([e.support_index, e.query_index], dim=1).flatten().tolist())
    assert seen == {i for i, c in enumerate(MIXED) if c in (0, 1, 3)}


def test_numbers_of_partitions_worked_by_hand() -> None:
    """Clusters of 3, 2 and 1 items and an unused one; of 4 and 2, and an unused one."""
    assert tasks_of([0, 0, 0, 1, 1, 2, -1], [0, 0, 0, 0, 1, 1, -1]).describe(EpisodeSpec(2, 1, 1)) == [
        "partitions: 2, 2 of them can give 2-way 1-shot tasks",
        "clusters with at least 2 items (shot + query): 2.0 a partition on average, 2 to 2",
        "items a kept cluster: 1 to 4, median 2",
        "share of the 7 items in a kept cluster: 85.7%",
    ]
    few = tasks_of([0, 0, 0, 1, 1, 2, -1], [0, 0, 0, 0, 1, 1, -1]).describe(EpisodeSpec(2, 1, 2))
    assert few[0].startswith("partitions: 2, 0 of them")
    assert "at least 3 items (shot + query): 1.0 a partition" in few[1]


def test_partitions_with_too_few_classes_are_passed_over() -> None:
    good, bad = [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 1, 1, 2, 2, 2, -1]
    tasks = tasks_of(bad, good, bad, good)
    assert tasks.usable(4, 2).tolist() == [3, 4, 3, 4]
    e = drawn(tasks, 200, way=4, shot=1, query=1)
    pairs = torch.stack([e.support_index.sort(1).values, e.query_index.sort(1).values], dim=-1)
    assert torch.equal(
        pairs.sum((1, 2)), torch.full((200,), 28)
    )  # every task holds all eight items of a good partition


def test_draws_are_uniform() -> None:
    """Over partitions, ordered classes, items, and the order of queries."""
    first, second = [0, 0, 0, 1, 1, 1, 2, 2, 2], [0, 1, 2, 0, 1, 2, 0, 1, 2]
    tasks = tasks_of(first, second)
    e = drawn(tasks, 18_000, way=2, shot=1, query=2)
    items = torch.cat([e.support_index, e.query_index], dim=1).numpy()
    assert chi_square(np.bincount(items.ravel(), minlength=9)) < 4
    labels = torch.cat([e.support_label, e.query_label], dim=1).numpy()
    ids = np.array([first, second])[:, items]  # [P, T, N]
    zero = np.where(labels == 0, ids, -1)
    whole = np.array([[len(set(row[row >= 0])) == 1 for row in p] for p in zero])  # which partition gave the task
    assert whole.sum(0).max() == 1
    assert chi_square(whole.sum(1)) < 4
    given = whole.argmax(0)
    support = np.array([first, second])[given[:, None], e.support_index.numpy()]  # cluster of label 0 and of label 1
    assert chi_square(np.bincount(support @ [3, 1], minlength=9)[[1, 2, 3, 5, 6, 7]]) < 4
    shot = (e.support_index[:, 0].numpy() // np.array([1, 3])[given]) % 3  # position of label 0's shot in its cluster
    assert chi_square(np.bincount(shot, minlength=3)) < 4
    orders = np.bincount(e.query_label.numpy() @ [8, 4, 2, 1], minlength=16)
    assert (orders > 0).sum() == 6
    assert chi_square(orders[orders > 0]) < 4


def test_a_task_depends_on_its_number_and_the_seed_alone() -> None:
    tasks = tasks_of(MIXED, MIXED[::-1])
    spec = EpisodeSpec(3, 1, 2)
    whole = tasks.sample(np.arange(20), episode=spec, seed=4)
    for numbers in (np.array([7]), np.array([19, 3, 7]), torch.tensor([3, 3, 0])):
        part = tasks.sample(numbers, episode=spec, seed=4)
        for name in ("support_index", "support_label", "query_index", "query_label"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[torch.as_tensor(numbers)])
    other = tasks.sample(np.arange(20), episode=spec, seed=5)
    assert not torch.equal(whole.query_index, other.query_index)
    far = tasks.sample(np.array([2**40]), episode=spec, seed=4)
    assert far.support_index.shape == (1, 3)


def test_chunks_of_a_batch_are_its_tasks() -> None:
    e = drawn(tasks_of(MIXED), 5, 3, 1, 2)
    batch, alone = e.query(), tasks_of(MIXED).sample(np.array([2, 3]), episode=EpisodeSpec(3, 1, 2), seed=0).query()
    part = batch.chunk(2, 4)
    assert len(part) == 2
    assert torch.equal(part.x, alone.x)
    assert torch.equal(part.y, alone.y)
    assert part.mask.shape == part.y.shape
    assert part.way == 3


def test_pixels_become_floats_and_read_only_arrays_are_fine() -> None:
    pixels = np.full((6, 1, 2, 2), 255, dtype=np.uint8)
    pixels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tasks = PartitionTasks(pixels, np.array([0, 0, 0, 1, 1, 1]))
    assert tasks.spec.item_shape == (1, 2, 2)
    assert torch.equal(drawn(tasks, 1, 2, 1, 1).support().x, torch.ones(1, 2, 1, 2, 2))


def test_too_few_classes_are_named_with_their_counts() -> None:
    tasks = tasks_of(MIXED, names=("cat", "dog", "emu", "fox"))
    with pytest.raises(UserError) as error:
        drawn(tasks, 1, way=4, shot=1, query=2)
    message = str(error.value)
    assert "4-way tasks with 3 items a class" in message
    assert "there are 3 of 4" in message
    assert "'emu' has 2" in message
    assert "'cat'" not in message
    with pytest.raises(UserError, match=r"best of the partitions has 1 of 2 .*'cluster 1' has 2"):
        drawn(tasks_of([0, 0, -1, 1, 1], [0, 0, 0, 1, 1]), 1, way=2, shot=1, query=2)
    with pytest.raises(UserError, match="there are 0 of 0"):
        drawn(tasks_of([-1, -1]), 1, way=2, shot=1, query=1)


def test_partitions_of_other_items_are_refused() -> None:
    with pytest.raises(UserError, match="partitions of 3 items cannot belong to data of 2 items"):
        PartitionTasks(np.zeros((2, 1)), np.zeros((1, 3), dtype=int))


@pytest.mark.parametrize("number", [lambda c: c, lambda c: 7 * c + 3, lambda c: 10**9 - 6 + c, lambda c: 2**62 + c])
def test_the_numbers_of_clusters_may_be_any_and_take_no_memory(number):
    """The same tasks as of clusters 0 to 5."""
    labels = np.random.default_rng(0).integers(-1, 6, (3, 60))
    given = np.where(labels < 0, -1, number(labels.astype(np.int64)))
    items = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1)
    episode = EpisodeSpec(3, 2, 2)
    plain, tasks = PartitionTasks(items, labels), PartitionTasks(items, given)
    assert tasks.sizes.shape == (3, 6)
    expected, found = (one.sample(np.arange(20), episode=episode, seed=0) for one in (plain, tasks))
    assert torch.equal(found.support_index, expected.support_index)
    assert torch.equal(found.query_index, expected.query_index)
    assert torch.equal(found.query_label, expected.query_label)
    assert tasks.describe(episode) == plain.describe(episode)
