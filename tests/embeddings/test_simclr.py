"""SimCLR against its paper's formula, and learning: views of one image come nearer to each other than to the rest."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from helpers.toys import step_sizes

from embeddings.simclr import SimCLR, ntxent
from umeta.augment.drawing import Drawing
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.models.conv4 import Conv4
from umeta.runtime.loop import RunContext
from umeta.testing import same

TINY = Conv4(filters=4, halvings=3)


def strokes(count, side=16, seed=0):
    """Drawings of four random straight strokes each."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((count, side, side), dtype=np.uint8)
    for image in pixels:
        for _ in range(4):
            start, end = rng.uniform(3, side - 3, (2, 2))
            for t in np.linspace(0, 1, 3 * side):
                row, column = np.rint(start + t * (end - start)).astype(int)
                image[row, column] = 255
    return UnlabelledImages.of(pixels)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_loss_is_that_of_the_paper_worked_by_hand(temperature):
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    rows = z.tolist()

    def likeness(i, k):
        a, b = rows[i], rows[k]
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    losses = []
    for i, j in [(0, 3), (1, 4), (2, 5), (3, 0), (4, 1), (5, 2)]:
        others = sum(math.exp(likeness(i, k) / temperature) for k in range(6) if k != i)
        losses.append(-math.log(math.exp(likeness(i, j) / temperature) / others))
    assert ntxent(z, temperature).item() == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_the_loss_knows_no_lengths_and_is_least_for_views_that_agree():
    z = torch.eye(3).repeat(2, 1)
    # each of 6 views: cosine 1 with its other, 0 with 4 more
    assert ntxent(z, 0.5).item() == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + 4)))
    assert ntxent(z * torch.arange(1.0, 7).view(6, 1), 0.5).item() == pytest.approx(ntxent(z, 0.5).item())
    assert ntxent(z.roll(1, 0), 0.5) == ntxent(z, 0.5)
    assert ntxent(torch.cat([z[:3], z[[1, 2, 0]]]), 0.5) > ntxent(z, 0.5) + 1


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
    images = strokes(12)
    options = {"model": TINY, "projection": 5, "steps": 7, "batch": 6}
    whole = SimCLR(**options)
    whole.fit(images, RunContext(seed=3, folder=tmp_path / "whole"))

    place = tmp_path / "half"
    with pytest.raises(RuntimeError, match="the power went"):
        SimCLR(**options, augment=Failing()).fit(images, RunContext(3, folder=place, checkpoint_seconds=0))
    again = Failing(last=99)
    rest = SimCLR(**options, augment=again)
    rest.fit(images, RunContext(3, folder=place, resume=True))
    assert again.calls == [12] * 3  # two views of six images, at the three steps that were left
    assert same(whole.state_dict(), rest.state_dict())
    assert (tmp_path / "whole/contrastive.jsonl").read_bytes() == (place / "contrastive.jsonl").read_bytes()


def test_the_step_size_falls_from_its_largest_by_a_cosine():
    with step_sizes() as sizes:
        SimCLR(TINY, steps=4, batch=4, lr=0.02).fit(strokes(6), RunContext())
    assert sizes == pytest.approx([0.02, 0.02 * (2 + 2**0.5) / 4, 0.01, 0.02 * (2 - 2**0.5) / 4])


def agreement(embedder, images, augment):
    """Share of images one new view of which is nearest to another new view of the same, by cosine."""
    generator = torch.Generator().manual_seed(7)
    views = []
    for _ in range(2):
        x = augment(images.floats(slice(None)), torch.rand(len(images), augment.randoms, generator=generator))
        pixels = (x * 255).round().to(torch.uint8).numpy()
        views.append(embedder.embed(UnlabelledImages(pixels, np.arange(len(images)))))
    one, other = (torch.nn.functional.normalize(z, dim=1) for z in views)
    return ((one @ other.T).argmax(1) == torch.arange(len(images))).float().mean().item()


def test_it_learns_what_views_have_in_common():
    """Of drawings that it was not trained on."""
    augment = Drawing(rotate=10, shift=0.1, scale=0.1, shear=0.1, elastic=0.05)
    found = {}
    for steps, lr in ((20, 1e-9), (150, 1e-2)):  # the first only gathers normalisation statistics
        embedder = SimCLR(Conv4(16, halvings=2), augment, projection=32, steps=steps, batch=96, lr=lr)
        embedder.fit(strokes(512), RunContext())
        found[steps] = agreement(embedder, strokes(100, seed=1), augment)
    assert found[150] > found[20] + 0.12  # a guess agrees on 0.01


def test_the_embedding_is_the_direction_of_the_networks_output_before_the_projection():
    images = strokes(9)
    embedder = SimCLR(TINY, projection=7, steps=1, batch=256)  # more than there are images
    embedder.fit(images, RunContext())
    net = TINY.build((1, 16, 16))
    state = {name.removeprefix("0."): value for name, value in embedder.state_dict().items() if name.startswith("0.")}
    net.load_state_dict(state)
    features = net.eval()(images.floats(slice(None))).detach()
    assert features.shape == (9, 4 * 2 * 2)
    torch.testing.assert_close(embedder.embed(images), features / features.norm(dim=1, keepdim=True))


def test_colour_images_and_bfloat16_give_plain_vectors():
    images = UnlabelledImages.of(np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16), dtype=np.uint8))
    embedder = SimCLR(TINY, steps=2, batch=4, precision="bfloat16")
    embedder.fit(images, RunContext())
    z = embedder.embed(images)
    assert z.dtype == torch.float32
    assert z.isfinite().all()
    assert all(value.dtype != torch.bfloat16 for value in embedder.state_dict().values())


def test_one_image_is_refused_and_two_are_enough():
    with pytest.raises(UserError, match="one image has no other"):
        SimCLR(TINY, steps=1).fit(strokes(1), RunContext())
    SimCLR(TINY, steps=1).fit(strokes(2), RunContext())
    with pytest.raises(UserError, match="6x6 is too small"):
        SimCLR(TINY, steps=1).fit(UnlabelledImages.of(np.eye(6)[None].repeat(2, 0)), RunContext())
