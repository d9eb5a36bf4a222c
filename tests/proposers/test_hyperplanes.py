"""Hyperplanes and random labels: zones are what planes make, margins and small zones left out, retries bounded."""

import itertools

import numpy as np
import pytest
import torch

from proposers.hyperplanes import Hyperplanes
from proposers.random_labels import RandomLabels
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.runtime.loop import RunContext

N = 300
IMAGES = UnlabelledImages.of(np.random.default_rng(0).integers(0, 256, (N, 4, 4), dtype=np.uint8))


class Vectors:
    """An embedding with so many dimensions."""

    def __init__(self, d: int = 2, scale: float = 1.0) -> None:
        self.z = np.random.default_rng(1).uniform(-scale, scale, (N, d)).astype(np.float32)

    def embed(self, images):
        return torch.from_numpy(self.z)


def separable(z: np.ndarray, one: np.ndarray, other: np.ndarray, margin: float) -> bool:
    """Whether some line keeps two sets of points in the plane apart by twice the margin, found by trying angles."""
    angles = np.linspace(0, np.pi, 720, endpoint=False)
    along = z @ np.stack([np.cos(angles), np.sin(angles)])
    gap = np.maximum(along[one].min(0) - along[other].max(0), along[other].min(0) - along[one].max(0))
    return bool(gap.max() > 2 * margin - 1e-3)


def proposed(embedder: Vectors, seed: int = 0, **options) -> np.ndarray:
    return Hyperplanes(**options).propose(IMAGES, RunContext(seed), embedder).partitions


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_two_planes_make_four_zones_with_a_margin_between_any_two(margin):
    embedder = Vectors()
    partitions = proposed(embedder, zones=4, partitions=4, smallest=3, margin=margin)
    assert ((partitions < 0).any(1) == (margin > 0)).all()
    for labels in partitions:
        assert sorted(set(labels) - {-1}) == [0, 1, 2, 3]
        for a, b in itertools.combinations(range(4), 2):
            assert separable(embedder.z, labels == a, labels == b, margin)


def test_the_planes_are_as_many_as_the_zones_need():
    partitions = proposed(Vectors(8), zones=5, partitions=6, smallest=2, margin=0.0)
    assert partitions.max() < 2**3
    assert all(len(set(labels) - {-1}) >= 5 for labels in partitions)


def test_planes_through_the_origin_do_not_see_how_long_a_vector_is():
    embedder = Vectors(6)
    embedder.z[N // 2 :] = embedder.z[: N // 2] / 100
    for origin in (True, False):
        labels = proposed(embedder, zones=2, partitions=5, smallest=2, margin=0.0, origin=origin)
        assert np.array_equal(labels[:, : N // 2], labels[:, N // 2 :]) == origin


def test_small_zones_are_dropped_and_their_items_unused():
    found = [proposed(Vectors(4), zones=8, partitions=9, smallest=n, margin=0.0, retries=500) for n in (1, 12)]
    sizes = [np.stack([np.bincount(row[row >= 0], minlength=8) for row in one]) for one in found]
    assert ((sizes[1] == 0) | (sizes[1] >= 12)).all()
    assert sizes[0].min() < 12
    assert (found[0] >= 0).all()


def test_a_partition_with_too_few_zones_is_drawn_again_a_bounded_number_of_times(monkeypatch, capsys):
    kept = []
    original = Hyperplanes._partition

    def spy(self, z, draw):
        labels, zones = original(self, z, draw)
        kept.append(zones)
        return labels, zones

    monkeypatch.setattr(Hyperplanes, "_partition", spy)
    options = {"zones": 4, "smallest": 40, "margin": 0.0, "retries": 2}
    tasks = Hyperplanes(partitions=20, **options).propose(IMAGES, RunContext(progress=True), Vectors())
    best = tasks.usable(4, 40)
    assert len(kept) <= 20 * 3
    assert 0 < (few := (best < 4).sum()) < 20
    assert f"{few} of 20 partitions have fewer than 4 zones" in capsys.readouterr().err
    kept.clear()
    with pytest.raises(UserError, match=r"best of 1 partitions has . zones .* not 4; lower margin \(now 0, where"):
        Hyperplanes(partitions=1, **{**options, "smallest": 75}).propose(IMAGES, RunContext(), Vectors())
    assert len(kept) == 3


def test_same_seed_same_planes_and_resume_goes_on_with_them(tmp_path):
    options = {"zones": 4, "smallest": 2}
    whole = proposed(Vectors(), 1, partitions=4, **options)
    assert not np.array_equal(whole, proposed(Vectors(), 2, partitions=4, **options))
    Hyperplanes(partitions=4, **options).propose(IMAGES, RunContext(1, folder=tmp_path), Vectors())
    again = RunContext(1, folder=tmp_path, resume=True)
    assert np.array_equal(whole, Hyperplanes(partitions=4, **options).propose(IMAGES, again, Vectors()).partitions)


class NotNumbers(Vectors):
    def embed(self, images):
        return super().embed(images) / 0


@pytest.mark.parametrize(
    ("proposer", "embedder", "message"),
    [
        (Hyperplanes(zones=60), Vectors(), "60 zones of 6 images or more need 360 images, there are 300"),
        (Hyperplanes(zones=4), None, "needs an embedding"),
        (Hyperplanes(zones=4), NotNumbers(), "not numbers"),
        (Hyperplanes(zones=4, margin=9), Vectors(), r"lower margin \(now 9, where the embedding's .* is 0\.57\)"),
        (RandomLabels(k=301), None, "301 classes need at least as many images, there are 300"),
    ],
)
def test_bad_input_is_named(proposer, embedder, message):
    with pytest.raises(UserError, match=message):
        proposer.propose(IMAGES, RunContext(), embedder)


def test_random_labels_are_uniform_and_know_nothing_of_each_other():
    partitions = RandomLabels(k=5, partitions=200).propose(IMAGES, RunContext()).partitions
    assert partitions.shape == (200, N)
    assert np.bincount(partitions.ravel()) / partitions.size == pytest.approx(0.2, abs=0.01)
    together = (partitions[:, :, None] == partitions[:, None]).mean(0)[~np.eye(N, dtype=bool)]
    assert together.mean() == pytest.approx(0.2, abs=0.005)  # of two images
    assert together.max() < 0.2 + 6 * (0.2 * 0.8 / 200) ** 0.5
    assert not np.array_equal(partitions, RandomLabels(k=5, partitions=200).propose(IMAGES, RunContext(1)).partitions)
