"""Views keep their colours where colours go with shapes, and differ in them where they do not."""

import numpy as np
import pytest
import torch

from umeta.config.registry import build_part
from umeta.data.images import UnlabelledImages
from umeta.quickstart.views import FEWEST, MILD, STRONG, choose_views, compare_colours


def stripes(count: int, told: bool) -> np.ndarray:
    """Stripes in one of eight directions, in a colour of that direction or in one of eight at random."""
    random = np.random.default_rng(0)
    kinds = random.integers(8, size=count)
    colours = random.integers(128, 256, size=(8, 3))
    y, x = np.mgrid[:32, :32]
    angles = np.pi * (kinds + 0.3 * random.random(count)) / 8
    phases = 2 * np.pi * random.random(count)[:, None, None]
    waves = np.cos(0.8 * (np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y) + phases)
    painted = colours[kinds if told else random.integers(8, size=count)] * random.uniform(0.8, 1, (count, 1))
    noise = random.normal(0, 1, (count, 3, 32, 32))
    return ((0.7 + 0.3 * waves[:, None]) * painted[:, :, None, None] + noise).clip(0, 255).astype(np.uint8)


def test_views_keep_colours_that_go_with_shapes():
    share = compare_colours(torch.from_numpy(stripes(300, told=True)).float() / 255)
    views, why = choose_views(UnlabelledImages.of(stripes(300, told=True)), seed=0)
    assert share > 0.8
    assert views == MILD
    assert f"{share:.0%}" in why
    assert "keep their colours" in why


def test_views_change_colours_that_have_nothing_to_do_with_shapes():
    share = compare_colours(torch.from_numpy(stripes(300, told=False)).float() / 255)
    views, why = choose_views(UnlabelledImages.of(stripes(300, told=False)), seed=0)
    assert share == pytest.approx(0.5, abs=0.05)
    assert views == STRONG
    assert "differ strongly in colour" in why
    assert build_part("augment", views).grey == 0.2


def test_pictures_that_are_all_alike_are_described_too():
    assert 0 <= compare_colours(torch.full((FEWEST, 3, 16, 16), 0.5)) <= 1


@pytest.mark.parametrize("pixels", [stripes(FEWEST - 1, told=False), stripes(300, told=False)[:, :1]])
def test_nothing_is_said_of_few_pictures_or_grey_ones(pixels):
    assert choose_views(UnlabelledImages.of(pixels), seed=0) == (MILD, "")
