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


def test_a_view_of_half_the_side_is_the_mean_of_four_pixels():
    half = Photo(smallest=1.0, flip=False, colour=0, side=14)
    expected = torch.nn.functional.avg_pool2d(images(3), 2)
    assert torch.allclose(half(images(3), middle(half)), expected, atol=1e-6)


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


@pytest.mark.parametrize("area", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("shape", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.999])
def test_a_crop_is_as_large_and_where_it_was_drawn(area, shape, place):
    """Seen on ramps, which say where each pixel comes from; a side is never longer than the image's."""
    augment = Photo(smallest=0.2, flip=False, colour=0, grey=0)
    u = middle(augment, 2)
    u[:, 0], u[:, 1] = (area - 0.2) / 0.8, shape
    u[:, 2], u[:, 3] = place, 1 - place
    ratio = (4 / 3) ** (2 * shape - 1)
    wide, high = min(1, (area * ratio) ** 0.5), min(1, (area / ratio) ** 0.5)
    centres = (torch.arange(84) + 0.5) / 84
    across, down = centres.expand(84, 84), centres[:, None].expand(84, 84)
    view = augment(torch.stack([across, down])[:, None], u)[:, 0]
    inside = slice(1, -1)  # at the image's border a ramp ends
    expected = place * (1 - wide) + wide * centres
    torch.testing.assert_close(view[0, 40, inside], expected[inside], atol=1e-4, rtol=0)
    expected = (1 - place) * (1 - high) + high * centres
    torch.testing.assert_close(view[1, inside, 40], expected[inside], atol=1e-4, rtol=0)


def test_colours_change_by_hand():
    """Brightness, then contrast about the image's mean, then saturation about each pixel's grey."""
    augment = Photo(smallest=1.0, flip=False, colour=0.2)
    x = 0.3 + 0.4 * images(3)
    for drawn in ((0.999, 0.5, 0.5), (0.5, 0.1, 0.5), (0.5, 0.5, 0.2), (0.8, 0.3, 0.9)):
        u = middle(augment)
        u[:, 5:8] = torch.tensor(drawn)
        brighter, contrast, saturation = (1 + 0.2 * (2 * one - 1) for one in drawn)
        expected = x.double().numpy() * brighter
        mean = expected.mean(axis=(1, 2, 3), keepdims=True)
        expected = mean + (expected - mean) * contrast
        grey = expected.mean(axis=1, keepdims=True)
        expected = grey + (expected - grey) * saturation
        np.testing.assert_allclose(augment(x, u), expected, atol=1e-5)


def test_half_of_the_views_are_mirrored():
    augment = Photo(smallest=1.0, colour=0, grey=0)
    for drawn, mirrored in ((0.0, True), (0.499, True), (0.5, False), (0.999, False)):
        u = middle(augment)
        u[:, 4] = drawn
        torch.testing.assert_close(augment(images(3), u), images(3).flip(3) if mirrored else images(3))


def test_a_drawing_is_turned_slanted_and_scaled_by_hand():
    """Ink at one point goes where the inverse of rotation, shear and scale takes it."""
    augment = Drawing(rotate=20, shear=0.3, scale=0.25, shift=0.2)
    drawn = torch.rand(60, 6, generator=torch.Generator().manual_seed(0))
    u = middle(augment, 60)
    u[:, :6] = drawn
    side, place = 101, (0.3, -0.2)  # to the right and up, in half widths
    row, column = (round((coordinate + 1) / 2 * side - 0.5) for coordinate in place[::-1])
    place = np.array([(2 * column + 1) / side - 1, (2 * row + 1) / side - 1])
    x = torch.zeros(60, 1, side, side)
    x[:, :, row - 1 : row + 2, column - 1 : column + 2] = 1
    views = augment(x, u)[:, 0].numpy()
    seen = 0
    for view, (a, b, c, d, e, f) in zip(views, (2 * drawn - 1).double().numpy(), strict=True):
        turn, slant, scale = np.deg2rad(20 * a), 0.3 * d, np.diag(np.exp([0.25 * b, 0.25 * c]))
        rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        looks = rotation @ np.array([[1, slant], [0, 1]]) @ scale
        expected = np.linalg.solve(looks, place - 0.2 * np.array([e, f]))
        if np.abs(expected).max() > 0.9:
            continue
        seen += 1
        axis = (2 * np.arange(side) + 1) / side - 1
        found = np.array([(view.sum(0) * axis).sum(), (view.sum(1) * axis).sum()]) / view.sum()
        np.testing.assert_allclose(found, expected, atol=0.01)
    assert seen > 40


def test_elastic_displacements_have_the_standard_deviation_asked_for():
    """Seen on a ramp, whose values say how far each pixel looks away; at the nodes of the field."""
    augment = Drawing(elastic=0.1)
    m, side = 500, 41
    u = middle(augment, m)
    u[:, 7:] = torch.rand(m, augment.randoms - 7, generator=torch.Generator().manual_seed(0))
    axis = (2 * torch.arange(side) + 1) / side - 1
    moved = augment(axis.expand(m, 1, side, side) + 2, u)[:, 0] - 2 - axis
    nodes = moved[:, [10, 20, 30]][:, :, [10, 20, 30]]
    assert nodes.std().item() == pytest.approx(0.1, rel=0.05)
    assert nodes.mean().item() == pytest.approx(0, abs=0.01)
