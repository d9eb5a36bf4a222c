"""Clusterings against brute force: means that are means, shares counted by hand, and neighbours shared as sets."""

import numpy as np
import pytest

from umeta.tasks.clustering import keep_core, kmeans, reciprocal, refill_empty, whiten, whitening


def drawn(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_kmeans_gives_the_nearest_mean_and_the_squared_distance_to_it():
    """Once Lloyd's algorithm stands still the means are those of the clusters."""
    z = drawn(90, 3) + 4 * np.eye(3, dtype=np.float32)[np.arange(90) % 3]
    labels, distances = kmeans(z, 5, 100, seed=0)
    assert labels.dtype == np.int32
    assert set(labels) == set(range(5))
    means = np.stack([z[labels == c].mean(0) for c in range(5)])
    squared = np.array([[((x - mean) ** 2).sum() for mean in means] for x in z])
    assert labels.tolist() == squared.argmin(1).tolist()
    np.testing.assert_allclose(distances, squared.min(1), rtol=1e-3, atol=1e-4)


def test_kmeans_repeats_with_its_seed_and_finds_separated_blobs():
    true = np.arange(60) % 3
    z = drawn(60, 2) * 0.1 + np.array([[0, 0], [9, 0], [0, 9]], dtype=np.float32)[true]
    labels, _ = kmeans(z, 3, 50, seed=1)
    assert np.array_equal(labels, kmeans(z, 3, 50, seed=1)[0])
    assert len(set(zip(labels.tolist(), true.tolist(), strict=True))) == 3
    other = drawn(200, 8)
    assert not np.array_equal(kmeans(other, 20, 5, seed=1)[0], kmeans(other, 20, 5, seed=2)[0])


def test_kmeans_is_no_worse_than_faiss_and_finds_every_blob_in_bfloat16_too(monkeypatch):
    """Random first means leave two blobs to one mean; drawn by squared distance each of the 40 gets its own."""
    import faiss

    from umeta.tasks import clustering

    true = np.arange(4000) % 40
    z = drawn(4000, 16) + 20 * drawn(40, 16, seed=1)[true] + 300
    means = faiss.Kmeans(16, 40, niter=10, seed=0)
    means.train(z)
    assert kmeans(z, 40, 10, seed=0)[1].sum() < means.index.search(z, 1)[0].sum()
    monkeypatch.setattr(clustering, "WORTH", 0)
    monkeypatch.setattr(clustering, "fast_bfloat16", lambda device: True)
    labels, distances = kmeans(z, 40, 10, seed=0)
    assert len(set(zip(labels.tolist(), true.tolist(), strict=True))) == 40
    means = np.stack([z[true == c].mean(0) for c in range(40)])
    np.testing.assert_allclose(distances, ((z - means[true]) ** 2).sum(1), rtol=1e-3)


def test_kmeans_of_fewer_different_items_than_clusters():
    z = np.repeat(drawn(3, 4), 10, axis=0)
    labels, distances = kmeans(z, 5, 10, seed=0)
    assert len(set(zip(labels.tolist(), (np.arange(30) // 10).tolist(), strict=True))) == len(set(labels.tolist()))
    np.testing.assert_allclose(distances, 0, atol=1e-5)


def test_kmeans_of_as_many_clusters_as_items_gives_each_its_own():
    """First means are drawn in groups, so that some coincide, and one of two equal means starts without items."""
    for seed in range(3):
        labels, distances = kmeans(drawn(256, 4, seed), 256, 20, seed)
        assert sorted(labels.tolist()) == list(range(256))
        np.testing.assert_allclose(distances, 0, atol=1e-6)


def test_core_keeps_the_nearest_members_of_each_cluster():
    labels = np.array([1, 0, 1, 0, 1, 3, 1, 0])
    distances = np.array([0.4, 0.1, 0.2, 0.3, 0.3, 9.0, 0.1, 0.2])
    # cluster 0: half of 3 is rounded up to 2, cluster 1: 2 of 4, cluster 3: its only member; there is no cluster 2
    assert keep_core(labels, distances, 0.5).tolist() == [-1, 0, 1, -1, -1, 3, 1, 0]
    assert keep_core(labels, distances, 1.0).tolist() == labels.tolist()
    assert keep_core(labels, distances, 0.01).tolist() == [-1, 0, -1, -1, -1, 3, 1, -1]
    assert keep_core(labels, distances, 0.5).dtype == np.int32


def test_two_blobs_and_an_outlier():
    left, right = drawn(8, 2) * 0.1, drawn(8, 2, seed=1) * 0.1 + 10
    z = np.concatenate([left, [[4, -30]], right]).astype(np.float32)
    # the 7 nearest of an item are the rest of its blob; those of the outlier have 7 nearer ones
    assert reciprocal(z, 7, 1.0).tolist() == [0] * 8 + [-1] + [1] * 8


def by_sets(z, neighbours, similarity):
    """What `reciprocal` says of itself, with Python's sets; clusters numbered by their first member."""
    n = len(z)
    squared = ((z[:, None].astype(np.float64) - z[None]) ** 2).sum(-1)
    near = [set(np.argsort(row, kind="stable")[: neighbours + 1].tolist()) for row in squared]
    mutual = [{j for j in near[i] if i in near[j]} | {i} for i in range(n)]
    labels = [-1] * n
    count = 0
    for first in range(n):
        members, edge = {first}, [first]
        while edge:
            i = edge.pop()
            joined = {j for j in range(n) if len(mutual[i] & mutual[j]) >= similarity * len(mutual[i] | mutual[j])}
            edge += joined - members
            members |= joined
        if labels[first] == -1 and len(members) > 1:
            for i in members:
                labels[i] = count
            count += 1
    return labels


@pytest.mark.parametrize(
    ("neighbours", "similarity"),
    [(1, 1.0), (3, 0.3), (4, 0.5), (6, 0.45), (10, 0.45), (10, 0.6), (29, 0.5), (500, 1.0)],
)
def test_reciprocal_equals_a_slow_one_of_sets(neighbours, similarity):
    z = drawn(80 if neighbours < 20 else 30, 3, seed=neighbours)
    found = reciprocal(z, neighbours, similarity)
    assert found.dtype == np.int32
    assert found.tolist() == by_sets(z, neighbours, similarity)


def test_the_slow_one_sees_outliers_and_many_clusters_on_the_data_above():
    """Otherwise the comparison would hold for a function that joins all or nothing."""
    labels = by_sets(drawn(80, 3, seed=4), 4, 0.5)
    assert max(labels) >= 3
    assert labels.count(-1) >= 3


def test_the_similarity_asked_for_is_enough():
    """On a line 0 1 | 2: the sets of mutual neighbours are {0, 1}, {0, 1, 2}, {1, 2}; the ends share 1 of 3."""
    z = np.array([[0.0], [1.0], [2.1], [50.0], [51.0]], dtype=np.float32)
    # with 2 neighbours the far pair's third is 2, which has nearer ones
    assert by_sets(z, 2, 0.99) == [0, 0, 0, 1, 1]
    assert reciprocal(z, 2, 0.99).tolist() == [0, 0, 0, 1, 1]
    # with 1 neighbour 2 is near to none that is near to it
    assert reciprocal(z, 1, 1.0).tolist() == [0, 0, -1, 1, 1]
    chain = np.array([[0.0], [1.0], [2.05], [3.0], [4.0]], dtype=np.float32)
    pairs = [{0, 1, 2}, {0, 1, 2}, {0, 1, 2, 3, 4}, {2, 3, 4}, {2, 3, 4}]
    shares = sorted({len(a & b) / len(a | b) for a in pairs for b in pairs})
    assert shares == [1 / 5, 3 / 5, 1]
    assert reciprocal(chain, 2, 0.6).tolist() == by_sets(chain, 2, 0.6)


def test_more_neighbours_than_items_join_them_all():
    assert reciprocal(drawn(5, 2), 50, 1.0).tolist() == [0] * 5
    assert reciprocal(drawn(1, 2), 3, 0.5).tolist() == [-1]


def test_duplicates_are_a_cluster():
    """Also where there are more of them than neighbours asked for, so that an item is not among its own."""
    z = np.repeat(drawn(3, 4) * 10, [4, 1, 3], axis=0)
    assert reciprocal(z, 3, 0.9).tolist() == [0, 0, 0, 0, -1, 1, 1, 1]
    many = reciprocal(np.zeros((12, 2), dtype=np.float32), 3, 0.5)
    assert many.shape == (12,)
    assert (many[:4] == many[0]).all()
    assert many[0] == 0


def test_whitened_components_are_decorrelated_and_items_have_length_one():
    z = drawn(400, 6) @ drawn(6, 6, seed=1) + 3
    found = whiten(z, 4)
    assert found.shape == (400, 4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    # numpy's own: eigenvectors of the covariance, largest first, each projection divided by its standard deviation
    centred = (z - z.mean(0)).astype(np.float64)
    values, directions = np.linalg.eigh(np.cov(centred.T))
    scores = centred @ directions[:, ::-1][:, :4] / np.sqrt(values[::-1][:4])
    np.testing.assert_allclose(np.cov(scores.T), np.eye(4), atol=1e-9)
    expected = scores / np.linalg.norm(scores, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)  # a direction's sign is free
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=2e-3)
    assert np.abs(np.corrcoef(found.T) - np.eye(4)).max() < 0.1
    assert np.abs(np.corrcoef(z.T) - np.eye(6)).max() > 0.5


def test_whitening_takes_what_components_there_are():
    assert whiten(drawn(40, 6), 256).shape == (40, 6)
    assert whiten(drawn(4, 6), 256).shape == (4, 4)


@pytest.mark.parametrize("value", [0.0, 0.3, 30.0])
def test_what_never_varies_says_nothing(value):
    """A unit that is the same for every item is not blown up to the variance of the others."""
    z = drawn(200, 5)
    more, full = (whiten(x, 256) for x in (np.pad(z, ((0, 0), (0, 3)), constant_values=value), z))
    assert more.shape == (200, 8)
    np.testing.assert_allclose(more @ more.T, full @ full.T, atol=1e-3)


def test_where_the_vectors_lie_is_no_matter():
    one, other = (whiten(drawn(200, 5) + place, 256) for place in (0, 50))
    np.testing.assert_allclose(one @ one.T, other @ other.T, atol=1e-3)


def test_an_empty_cluster_gets_part_of_another():
    """Two clusters of three have items: the third takes over a part of one of them, all of it near its place."""
    z = np.array([[0, 0], [0, 1], [1, 0], [9, 9], [9, 8], [8, 9], [8, 8]], dtype=np.float32)
    labels = np.array([0, 0, 0, 2, 2, 2, 2])
    for seed in range(20):
        found = refill_empty(z, labels, 3, seed)
        taken = np.flatnonzero(found == 1)
        shared = labels[taken[0]]
        assert (labels[taken] == shared).all()
        assert set(found) == {0, 1, 2}
        assert (found[found != 1] == labels[found != 1]).all()
        # the nearer of two means a small step apart: a line through the mean parts the items
        centred = z[labels == shared] - z[labels == shared].mean(0)
        sides = found[labels == shared] == 1
        angles = np.linspace(0, 2 * np.pi, 1000)
        directions = np.stack([np.cos(angles), np.sin(angles)])
        assert ((centred @ directions > 0) == sides[:, None]).all(0).any()
    assert len({tuple(refill_empty(z, labels, 3, seed)) for seed in range(20)}) > 3
    assert labels.tolist() == [0, 0, 0, 2, 2, 2, 2]


def test_clusters_that_cannot_be_shared_are_left_alone():
    z = np.array([[0.0], [0.0], [5.0], [6.0]], dtype=np.float32)
    assert refill_empty(z, np.array([0, 1, 2, 3]), 4, seed=0).tolist() == [0, 1, 2, 3]
    assert refill_empty(z, np.array([0, 1, 2, 3]), 6, seed=0).tolist() == [0, 1, 2, 3]
    assert refill_empty(z, np.array([0, 0, 1, 1]), 9, seed=0).tolist()[:2] == [0, 0]
    # every cluster of two different items ends as two of one
    assert sorted(refill_empty(drawn(6, 2), np.array([0, 0, 1, 1, 2, 2]), 6, seed=0)) == [0, 1, 2, 3, 4, 5]


def test_whitening_is_of_other_items_too_and_blows_up_no_noise():
    z = drawn(300, 5) @ drawn(5, 5, seed=1) + 2
    mean, directions = whitening(np.pad(z, ((0, 0), (0, 1)), constant_values=3), 6)
    np.testing.assert_allclose(
        np.cov(((np.pad(z, ((0, 0), (0, 1)), constant_values=3)) - mean) @ directions[:, :5], rowvar=False),
        np.eye(5),
        atol=1e-4,
    )
    other = np.array([[2, 2, 2, 2, 2, 4]], dtype=np.float32)  # differs where the others never did
    same = np.array([[2, 2, 2, 2, 2, 3]], dtype=np.float32)
    np.testing.assert_allclose((other - mean) @ directions, (same - mean) @ directions, atol=1e-4)


@pytest.mark.parametrize("scale", [2.0**66, 2.0**-80, 2.0**100, 2.0**-100])
def test_clusters_do_not_depend_on_the_scale_of_the_vectors(scale):
    draw = np.random.default_rng(0)
    z = (5 * draw.normal(size=(5, 1, 8)) + draw.normal(size=(5, 40, 8))).reshape(200, 8).astype(np.float32)
    other = (z * scale).astype(np.float32)
    np.testing.assert_array_equal(kmeans(other, 5, 20, 0)[0], kmeans(z, 5, 20, 0)[0])
    np.testing.assert_array_equal(reciprocal(other, 5, 0.5), reciprocal(z, 5, 0.5))
    np.testing.assert_allclose(np.abs(whiten(other, 4)), np.abs(whiten(z, 4)), atol=1e-4)
