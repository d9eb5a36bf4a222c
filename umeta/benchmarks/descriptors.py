"""Descriptors of images that need no training: what somebody in a hurry would try first."""

from __future__ import annotations

import numpy as np

CELLS = 5  # of HOG along the shorter side of an image
BINS = 8  # of a colour histogram, along each of red, green and blue


def compute_hog(pixels: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal and Triggs 2005) of images [n, c, h, w], by scikit-image: [n, d].

    Nine orientations, blocks of 2 x 2 cells; the channel with the strongest gradient counts.
    """
    from skimage.feature import hog

    cell = max(1, min(pixels.shape[2:]) // CELLS)
    options = {"pixels_per_cell": (cell, cell), "cells_per_block": (2, 2), "channel_axis": 0}
    return np.stack([hog(image, **options) for image in pixels]).astype(np.float32)


def compute_colour_histogram(pixels: np.ndarray) -> np.ndarray:
    """Joint histograms of the colours of images [n, 3, h, w] in bytes, as square roots of shares: [n, 512].

    The Euclidean distance of square roots is the Hellinger distance.
    """
    binned = pixels.astype(np.int64) * BINS // 256
    codes = ((binned[:, 0] * BINS + binned[:, 1]) * BINS + binned[:, 2]).reshape(len(pixels), -1)
    counts = np.stack([np.bincount(code, minlength=BINS**3) for code in codes])
    return np.sqrt(counts / codes.shape[1]).astype(np.float32)
