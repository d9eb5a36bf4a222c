"""The k-means proposer: it finds what is there, scales as the paper says, drops small clusters, and is bounded."""

import numpy as np
import pytest
import torch

from proposers.kmeans import KMeans
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.runtime.loop import RunContext
from umeta.tasks.clustering import kmeans

N = 120
IMAGES = UnlabelledImages.of(np.random.default_rng(0).integers(0, 256, (N, 4, 4), dtype=np.uint8))
TRUE = np.arange(N) % 6  # six blobs of twenty


class Blobs:
    """An embedding with six well separated blobs in the first two dimensions and noise in the third."""

    def __init__(self, noise=0.05):
        rng = np.random.default_rng(1)
        angle = TRUE * np.pi / 3
        self.z = np.stack([np.cos(angle), np.sin(angle), np.zeros(N)], 1) * 10 + rng.normal(0, noise, (N, 3))

    def embed(self, images):
        return torch.from_numpy(self.z).float()


def test_separated_blobs_are_found():
    tasks = KMeans(k=6, partitions=3, smallest=2, iterations=50).propose(IMAGES, RunContext(), Blobs())
    together = TRUE[:, None] == TRUE[None]
    found = tasks.partitions[0]
    assert ((found[:, None] == found[None]) == together).mean() > 0.9  # a random partition agrees on 0.72 of the pairs


def test_only_partition_zero_is_unscaled(monkeypatch):
    seen = []

    def spy(z, *options):
        seen.append(z.copy())
        return kmeans(z, *options)

    monkeypatch.setattr("proposers.kmeans.kmeans", spy)
    KMeans(k=6, partitions=3, smallest=1, keep=0).propose(IMAGES, RunContext(), Blobs())
    z = Blobs().z.astype(np.float32)
    assert np.array_equal(seen[0], z)
    scales = [x / z for x in seen[1:]]
    for scale in scales:
        assert np.allclose(scale, scale[0], atol=1e-5)  # one factor per dimension
        assert (scale[0] > 0).all()
        assert (scale[0] < 1).all()
    assert not np.allclose(scales[0], scales[1])


def test_small_clusters_are_dropped_and_their_items_unused():
    tasks = KMeans(k=40, partitions=2, smallest=4, keep=0).propose(IMAGES, RunContext(), Blobs(noise=1.0))
    sizes = tasks.sizes[tasks.sizes > 0]
    assert sizes.min() >= 4
    assert (tasks.partitions == -1).any()
    assert (tasks.partitions >= 0).sum() == sizes.sum()


def test_retries_are_bounded_and_the_best_draw_is_kept(monkeypatch):
    drawn = []
    original = KMeans._partition

    def spy(self, *arguments):
        labels, kept = original(self, *arguments)
        drawn.append(kept)
        return labels, kept

    monkeypatch.setattr(KMeans, "_partition", spy)
    tasks = KMeans(k=50, partitions=1, smallest=5, keep=1.0, retries=2).propose(IMAGES, RunContext(), Blobs(1.0))
    assert len(drawn) == 3
    assert (tasks.sizes[0] >= 5).sum() == max(drawn)


def test_same_seed_same_partitions_and_resume_gives_the_same(tmp_path):
    whole = KMeans(k=6, partitions=4, smallest=2).propose(IMAGES, RunContext(seed=1), Blobs()).partitions
    other = KMeans(k=6, partitions=4, smallest=2).propose(IMAGES, RunContext(seed=2), Blobs()).partitions
    KMeans(k=6, partitions=2, smallest=2).propose(IMAGES, RunContext(seed=1, folder=tmp_path), Blobs())
    checkpoint = tmp_path / "checkpoints/kmeans/step-2"
    assert checkpoint.exists()
    again = KMeans(k=6, partitions=4, smallest=2).propose(IMAGES, RunContext(seed=1), Blobs()).partitions
    assert np.array_equal(whole, again)
    assert not np.array_equal(whole, other)


def test_there_may_be_as_many_clusters_as_images():
    tasks = KMeans(k=N, partitions=1, smallest=1).propose(IMAGES, RunContext(), Blobs())
    assert sorted(tasks.partitions[0].tolist()) == list(range(N))


class NotNumbers(Blobs):
    def embed(self, images):
        return super().embed(images).fill_(float("nan"))


@pytest.mark.parametrize(
    ("proposer", "embedder", "message"),
    [
        (KMeans(k=500), Blobs(), "500 clusters need at least as many images, there are 120"),
        (KMeans(k=5), None, "needs an embedding"),
        (KMeans(k=5), NotNumbers(), "not numbers"),
    ],
)
def test_bad_input_is_named(proposer, embedder, message):
    with pytest.raises(UserError, match=message):
        proposer.propose(IMAGES, RunContext(), embedder)
