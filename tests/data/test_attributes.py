"""Tasks made of attributes (CelebA), against every triple and pattern tried one by one."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import pytest

from umeta.benchmarks.labelled import LabelledImages, attribute_partitions
from umeta.benchmarks.protocols import PROTOCOLS
from umeta.config import build
from umeta.data.images import Items
from umeta.errors import UserError
from umeta.evaluation.run import evaluate_run
from umeta.stages import metatrain, propose
from umeta.testing import check_tasks, sampled
from umeta.types import EpisodeSpec

N, A = 400, 5
HAS = np.random.default_rng(0).random((N, A)) < np.array([0.2, 0.4, 0.5, 0.6, 0.8])
PIXELS = np.random.default_rng(1).integers(0, 256, (N, 1, 16, 16), dtype=np.uint8)


@dataclass(frozen=True)
class Faces:
    """Images with attributes; test images are others than those to learn from."""

    def read(self, split):
        pixels = PIXELS if split == "test" else 255 - PIXELS
        return Items(pixels, names=tuple("abcde"), attributes=HAS)


def test_partitions_are_all_triples_and_patterns_against_their_complement():
    found = {tuple(row) for row in attribute_partitions(HAS)}
    by_hand = set()
    for triple in combinations(range(A), 3):
        for pattern in product((False, True), repeat=3):
            if not pattern[-1]:  # the other half are the same with the classes the other way round
                row = []
                for has in HAS[:, triple]:
                    row.append(0 if tuple(has) == pattern else 1 if tuple(~has) == pattern else -1)
                by_hand.add(tuple(row))
    assert found == by_hand
    assert len(attribute_partitions(HAS)) == len(by_hand) == 10 * 4


def test_a_task_is_three_attributes_and_a_pattern_against_its_complement():
    test = LabelledImages.load(Faces(), "test")
    episode = EpisodeSpec(2, 5, 5)
    support, query = sampled(test.tasks(), np.arange(60), episode, seed=0)
    row = {bytes(image): i for i, image in enumerate(PIXELS)}
    drawn = set()
    for t in range(60):
        x = np.concatenate([(b.x[t].numpy() * 255).round().astype(np.uint8) for b in (support, query)])
        y = np.concatenate([b.y[t].numpy() for b in (support, query)])
        items = [row[bytes(image)] for image in x]
        assert len(set(items)) == 20
        has = HAS[items]
        fits = [
            triple
            for triple in combinations(range(A), 3)
            if (has[y == 0][:, triple] == has[y == 0][0, triple]).all()
            and (has[y == 1][:, triple] != has[y == 0][0, triple]).all()
        ]
        assert fits
        drawn.update(fits)
    assert len(drawn) == 10  # every triple


def test_attribute_tasks_keep_the_contract_of_tasks():
    test = LabelledImages.load(Faces(), "test")
    check_tasks(test.tasks(), test.images, EpisodeSpec(2, 2, 3))


def test_attributes_stay_with_their_images():
    test = LabelledImages.load(Faces(), "test")
    row = {bytes(image): i for i, image in enumerate(PIXELS)}
    order = [row[bytes(image)] for image in test.images.pixels]
    np.testing.assert_array_equal(test.attributes, HAS[order])
    words = [", ".join(n for n, one in zip("abcde", has, strict=True) if one) for has in HAS[order]]
    assert [test.names[label] for label in test.labels] == [one or "none of the attributes" for one in words]
    with pytest.raises(UserError, match="attributes"):
        test.rotated()


def test_the_fingerprint_sees_attributes_that_no_image_has():
    """They change no label, and yet the tasks there are."""

    @dataclass(frozen=True)
    class More:
        def read(self, split):
            return Items(PIXELS, names=tuple("abcdef"), attributes=np.pad(HAS, ((0, 0), (0, 1))))

    some, again, more = (LabelledImages.load(source, "test") for source in (Faces(), Faces(), More()))
    assert some.names == more.names
    assert np.array_equal(some.labels, more.labels)
    assert some.fingerprint == again.fingerprint != more.fingerprint


def test_more_than_two_ways_are_refused():
    with pytest.raises(UserError, match=r"5-way tasks .* lower way"):
        sampled(LabelledImages.load(Faces(), "test").tasks(), np.arange(2), EpisodeSpec(5, 1, 1), 0)


CONFIG = """
data: FACES
embedding: pixels
proposer: {name: kmeans, k: 10, partitions: 2, smallest: 6}
metalearner: {name: protonet, model: {name: conv4, filters: 4}}
train: {outer: adam, steps: 2, way: 2, shot: 5, query: 5, meta_batch: 2}
evaluate: {protocol: celeba, tasks: 6, baselines: [pixels_knn, knn, mlp, cluster_matching]}
"""


def test_a_run_is_evaluated_on_attributes(tmp_path):
    assert (PROTOCOLS["celeba"].episodes, PROTOCOLS["celeba"].query) == (((2, 5),), 5)
    assert PROTOCOLS["celeba"].tasks == 1000
    (tmp_path / "faces.yaml").write_text(CONFIG.replace("FACES", f"'{__file__}:Faces'"))
    plain = build.load(tmp_path / "faces.yaml", [f"out={tmp_path}"])
    propose.propose(plain, device="cpu")
    folder = metatrain.metatrain(plain, device="cpu")
    result = evaluate_run(folder, device="cpu", trusted=None)
    assert list(result["rows"]) == [
        "chance",
        "raw pixels, 1-NN",
        "pixels, 1-NN",
        "pixels, MLP",
        "pixels, cluster matching",
        "faces",
    ]
    assert result["rows"]["chance"] == {"2-way 5-shot": {"mean": 50, "interval": 0, "tasks": 6}}
    assert result["protocol"]["attributes"] == A
