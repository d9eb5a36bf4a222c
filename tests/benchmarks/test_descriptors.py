"""Descriptors that need no training, against their definitions."""

import numpy as np
import pytest

from umeta.benchmarks.descriptors import BINS, compute_colour_histogram, compute_hog


def test_a_histogram_holds_the_square_root_of_each_colours_share():
    image = np.zeros((1, 3, 4, 4), np.uint8)
    image[0, :, 0] = np.array([255, 0, 32])[:, None]  # a row of four in the bins 7, 0 and 1; the rest is black
    found = compute_colour_histogram(image)[0].reshape(BINS, BINS, BINS)
    assert found[7, 0, 1] == pytest.approx(0.25**0.5)
    assert found[0, 0, 0] == pytest.approx(0.75**0.5)
    assert (found > 0).sum() == 2


@pytest.mark.parametrize("channels", [1, 3])
def test_hog_sees_the_direction_of_an_edge_and_not_its_brightness(channels):
    ramp = np.arange(0, 160, 8, dtype=np.uint8)
    across = np.broadcast_to(ramp, (channels, 20, 20))
    down = across.swapaxes(1, 2)
    found = compute_hog(np.stack([across, across + 50, down]))
    assert found.shape == (3, 4 * 4 * 2 * 2 * 9)  # 5 x 5 cells, in blocks of 2 x 2
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    blocks = found.reshape(3, -1, 9)
    assert (blocks[0].argmax(1) == 0).all()  # a gradient along x is in the first orientation, one along y in the middle
    assert (blocks[2].argmax(1) == 4).all()


def test_hog_has_five_cells_along_the_shorter_side():
    """In 4 x 4 blocks of 2 x 2 cells with 9 orientations; a side three times as long has three times the cells."""
    sizes = [(5, 5), (28, 28), (84, 84), (30, 90), (90, 30)]
    lengths = [compute_hog(np.zeros((1, 1, *size), np.uint8)).shape[1] // (2 * 2 * 9) for size in sizes]
    assert lengths == [16, 16, 16, 4 * 14, 14 * 4]
