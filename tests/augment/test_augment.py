"""Augmentations: identity when switched off, each distortion as worked by hand, views independent of their batch."""

import numpy as np
import pytest
import torch

from umeta.augment.drawing import Drawing
from umeta.augment.photo import Photo

BOTH = [Drawing(), Photo()]


def images(channels=1, side=28):
    return torch.rand(4, channels, side, side, generator=torch.Generator().manual_seed(0))


def middle(augment, m=4):
    """Random numbers that mean no change: the middle of every range."""
    return torch.full((m, augment.randoms), 0.5)


@pytest.mark.parametrize("augment", BOTH, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_images_and_do_not_depend_on_the_batch(augment, channels):
    x = images(channels)
    u = torch.rand(4, augment.randoms, generator=torch.Generator().manual_seed(1))
    views = augment(x, u)
    assert views.shape == x.shape
    assert views.min() >= 0
    assert views.max() <= 1
    for i in range(4):
        assert torch.allclose(augment(x[i : i + 1], u[i : i + 1])[0], views[i], atol=1e-5)
    assert torch.equal(augment(x, u), views)
    assert not torch.allclose(views, augment(x, u.flip(0)))


def test_drawing_in_the_middle_of_its_ranges_changes_nothing():
    assert torch.allclose(Drawing()(images(), middle(Drawing())), images(), atol=1e-5)


def test_a_rotation_by_a_right_angle_is_that_of_numpy():
    augment = Drawing(rotate=90)
    u = middle(augment)
    u[:, 0] = 1.0
    x = images()
    assert torch.allclose(augment(x, u), x.rot90(1, (2, 3)), atol=1e-4) or torch.allclose(
        augment(x, u), x.rot90(-1, (2, 3)), atol=1e-4
    )


def test_a_shift_by_whole_pixels_moves_them():
    augment = Drawing(shift=2 * 3 / 28)
    u = middle(augment)
    u[:, 4] = 1.0  # looks three pixels to the right
    x = images()
    moved = augment(x, u)
    assert torch.allclose(moved[..., :-3], x[..., 3:], atol=1e-4)
    assert moved[..., -2:].abs().max() < 1e-4


def test_strokes_widen_and_narrow():
    x = torch.zeros(1, 1, 28, 28)
    x[..., 10:13, 5:20] = 1
    augment = Drawing(stroke=1.0)
    u = middle(augment, 1)
    u[:, 6] = 1.0
    wide = augment(x, u)
    u[:, 6] = 0.0
    narrow = augment(x, u)
    assert wide[0, 0, :, 12].sum().item() == pytest.approx(5, abs=1e-3)
    assert narrow[0, 0, :, 12].sum().item() == pytest.approx(1, abs=1e-3)


def test_photo_switched_off_changes_nothing_and_flips_mirror():
    off = Photo(smallest=1.0, flip=False, colour=0, grey=0)
    u = middle(off)
    assert torch.allclose(off(images(3), u), images(3), atol=1e-5)
    u[:, 4] = 0.0
    assert torch.allclose(Photo(smallest=1.0, colour=0, grey=0)(images(3), u), images(3).flip(3), atol=1e-5)


def test_grey_views_have_equal_channels():
    u = middle(Photo(grey=0.5))
    u[:, 8] = 0.0
    view = Photo(grey=0.5)(images(3), u)
    assert np.allclose(view[:, 0], view[:, 1], atol=1e-6)
    assert np.allclose(view[:, 0], view[:, 2], atol=1e-6)


def test_crops_keep_at_least_the_share_asked_for():
    augment = Photo(smallest=0.25, flip=False, colour=0, grey=0)
    ramp = torch.linspace(0, 1, 84).expand(1, 1, 84, 84)
    u = torch.rand(200, augment.randoms, generator=torch.Generator().manual_seed(2))
    spread = augment(ramp.expand(200, -1, -1, -1), u)[:, 0, 42]
    width = spread.amax(1) - spread.amin(1)  # share of the ramp that each crop shows
    assert width.min() > (0.25 * 3 / 4) ** 0.5 - 0.05
    assert width.max() <= 1
    assert width.std() > 0.1
