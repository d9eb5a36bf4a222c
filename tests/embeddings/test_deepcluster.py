"""DeepCluster's parts by hand, and learning: its clusters come nearer to the true classes than those of raw pixels."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from helpers.toys import step_sizes
from sklearn.metrics import normalized_mutual_info_score

from embeddings.deepcluster import DeepCluster, Head, draw_balanced
from umeta.augment.drawing import Drawing
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.models.conv4 import Conv4
from umeta.runtime.loop import RunContext
from umeta.tasks.clustering import kmeans
from umeta.testing import same, toy_images

TINY = {"dimensions": 4, "model": Conv4(filters=4), "k": 6, "every": 3, "batch": 8}
HAND = Drawing(rotate=10, shear=0.1, scale=0.1, shift=0.2, elastic=0.05)


def test_clusters_are_drawn_uniformly_and_items_uniformly_within():
    labels = torch.tensor([5, 0, 5, 5, 2, 5])  # 0 and 2 have one item, 5 has four, 1, 3 and 4 none
    u = torch.cartesian_prod((torch.arange(3) + 0.5) / 3, (torch.arange(4) + 0.5) / 4)
    assert draw_balanced(labels, 6, u).tolist() == [1, 1, 1, 1, 4, 4, 4, 4, 0, 2, 3, 5]
    ends = torch.tensor([[0.0, 0.0], [1 - 2**-24, 1 - 2**-24]])
    assert draw_balanced(labels, 6, ends).tolist() == [1, 5]


def test_the_head_is_drawn_anew_with_the_clusters():
    head = Head(3, k=2, images=4)
    head.renew(np.array([0, 0, 1, 1]), torch.Generator().manual_seed(0))
    assert head.nmi == 0  # before, all were in one cluster
    first = head.weight.clone()
    head.renew(np.array([1, 1, 0, 0]), torch.Generator().manual_seed(1))
    assert head.nmi == pytest.approx(1)  # other numbers for the same clusters
    assert head.labels.tolist() == [1, 1, 0, 0]
    assert not torch.equal(head.weight, first)
    head.renew(np.array([0, 1, 0, 1]), torch.Generator().manual_seed(1))
    assert head.nmi == pytest.approx(0, abs=1e-6)


def test_the_network_learns_clusters_none_of_which_is_empty(monkeypatch):
    """k-means that leaves two of four clusters empty: each takes over part of another one, of two or more items."""
    images = toy_images()
    halves = np.arange(len(images), dtype=np.int32) % 2 * 3
    monkeypatch.setattr("embeddings.deepcluster.kmeans", lambda z, *_: (halves, np.zeros(len(z), np.float32)))
    seen = []
    renew = Head.renew
    monkeypatch.setattr(Head, "renew", lambda self, labels, *_: seen.append(labels) or renew(self, labels, *_))
    DeepCluster(**TINY | {"k": 4}, steps=4).fit(images, RunContext())
    assert len(seen) == 2
    for labels in seen:
        assert set(labels.tolist()) == {0, 1, 2, 3}
        assert all(len(set(halves[labels == c].tolist())) == 1 for c in range(4))


def test_the_embedding_is_the_networks_output_whitened_and_of_length_one():
    """As numpy has it: eigenvectors of the covariance, each projection divided by its standard deviation."""
    images = toy_images()
    wide = Conv4(filters=16)  # of four filters, training may leave one dead: nothing to whiten
    embedder = DeepCluster(**TINY | {"model": wide}, steps=5)
    embedder.fit(images, RunContext())
    net = wide.build(images.item_shape)
    state = embedder.state_dict().items()
    net.load_state_dict({n.removeprefix("network."): v for n, v in state if n.startswith("network.")})
    z = net.eval()(images.floats(slice(None))).detach().numpy().astype(np.float64)
    centred = z - z.mean(0)
    values, directions = np.linalg.eigh(np.cov(centred.T))
    scores = centred @ directions[:, -4:] / np.sqrt(values[-4:])
    expected = scores / np.linalg.norm(scores, axis=1, keepdims=True)
    found = embedder.embed(images).numpy()
    assert found.shape == (48, 4)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-3)  # a direction's sign is free


def test_the_step_size_falls_from_its_largest_by_a_cosine():
    """For the network and for the head alike."""
    with step_sizes() as sizes:
        DeepCluster(**TINY, steps=4, lr=0.02).fit(toy_images(), RunContext())
    falling = [0.02, 0.02 * (2 + 2**0.5) / 4, 0.01, 0.02 * (2 - 2**0.5) / 4]
    assert sizes == pytest.approx([size for size in falling for _ in range(2)])


def characters(classes=10, each=40, side=16):
    """Drawings of random characters, and which one each is of."""
    draw = np.random.default_rng(0)
    templates = torch.zeros(classes, 1, side, side)
    for template in templates:
        for _ in range(4):
            start, end = draw.uniform(3, side - 3, (2, 2))
            rows, columns = np.rint(np.linspace(start, end, 3 * side)).astype(int).T
            template[0, rows, columns] = 1
    u = torch.rand(classes * each, HAND.randoms, generator=torch.Generator().manual_seed(0))
    x = HAND(templates.repeat_interleave(each, 0), u)
    images = UnlabelledImages.of(x.numpy())
    return images, images.rows // each


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_finds_the_true_classes_better_than_pixels_do(precision):
    """By normalised mutual information of as many clusters as there are classes; one of unrelated ones is 0."""
    images, true = characters()

    def agreement(z):
        found = [kmeans(z.numpy(), 10, 20, seed)[0] for seed in range(5)]
        return np.mean([normalized_mutual_info_score(true, labels) for labels in found])

    model = Conv4(16, halvings=2)
    embedder = DeepCluster(
        dimensions=16, model=model, augment=HAND, k=20, every=40, steps=240, batch=64, precision=precision
    )
    embedder.fit(images, RunContext())
    pixels = agreement(images.floats(slice(None)).flatten(1))
    assert agreement(embedder.embed(images)) > pixels + 0.15


@dataclass(frozen=True)
class Failing(Drawing):
    """Views, until the power goes."""

    last: int = 4
    calls: list = field(default_factory=list)

    def __call__(self, x, u):
        self.calls.append(len(x))
        if len(self.calls) > self.last:
            raise RuntimeError("the power went")
        return super().__call__(x, u)


def test_interrupted_training_goes_on_to_the_same_bytes(tmp_path):
    """Cut between two clusterings: the one before is not made again."""
    images = toy_images()
    whole = DeepCluster(**TINY, steps=8)
    whole.fit(images, RunContext(seed=3, folder=tmp_path / "whole"))

    place = tmp_path / "half"
    failing = DeepCluster(**TINY, steps=8, augment=Failing())
    with pytest.raises(RuntimeError, match="the power went"):
        failing.fit(images, RunContext(3, folder=place, checkpoint_seconds=0))
    rest = DeepCluster(**TINY, steps=8)
    rest.fit(images, RunContext(3, folder=place, resume=True))
    assert same(whole.state_dict(), rest.state_dict())
    assert (tmp_path / "whole/deepcluster.jsonl").read_bytes() == (place / "deepcluster.jsonl").read_bytes()


def test_what_cannot_be_is_named():
    images = toy_images()
    with pytest.raises(UserError, match="50 clusters need at least as many images, there are 48"):
        DeepCluster(k=50).fit(images, RunContext())
    with pytest.raises(UserError, match=r"5 whitened components .* 48 images and 4 features"):
        DeepCluster(**TINY | {"dimensions": 5}).fit(images, RunContext())
    with pytest.raises(UserError, match=r"49 whitened components .* 48 images and 64 features"):
        DeepCluster(**TINY | {"dimensions": 49, "model": Conv4(4, halvings=2)}).fit(images, RunContext())
    with pytest.raises(UserError, match="6x6 is too small"):
        DeepCluster(k=2).fit(UnlabelledImages.of(np.eye(6)[None].repeat(2, 0)), RunContext())
