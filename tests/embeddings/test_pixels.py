"""Pixels, whitened ones against numpy's eigenvectors, and a random network's features against the formula."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from embeddings.pixels import Pixels
from embeddings.random_network import RandomNetwork
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.runtime.loop import RunContext

N, SIDE = 60, 4


def drawn(seed: int, n: int = N) -> UnlabelledImages:
    """Images whose neighbouring pixels are correlated."""
    noise = np.random.default_rng(seed).integers(0, 128, (n, SIDE, SIDE + 1))
    return UnlabelledImages.of((noise[..., 1:] + noise[..., :-1]).astype(np.uint8))


def flat(images: UnlabelledImages) -> np.ndarray:
    return images.pixels.reshape(len(images), -1).astype(np.float64) / 255


def embed(embedder: Pixels | RandomNetwork, images: UnlabelledImages, others: UnlabelledImages) -> np.ndarray:
    embedder.fit(images, RunContext())
    return embedder.embed(others).numpy()


def test_pixels_are_floats_in_reading_order() -> None:
    images = drawn(0)
    np.testing.assert_allclose(embed(Pixels(), images, drawn(1)), flat(drawn(1)), atol=1e-7)


def test_whitened_pixels_are_principal_components_at_unit_variance() -> None:
    """Of the images fitted on; others are projected in the same way."""
    images, others = drawn(0), drawn(1)
    x = flat(images)
    values, axes = np.linalg.eigh(np.cov(x, rowvar=False))
    expected = (flat(others) - x.mean(0)) @ (axes[:, ::-1] / np.sqrt(values[::-1]))[:, :5]
    found = embed(Pixels(whiten=5), images, others)
    assert found.shape == (N, 5)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)  # a direction's sign is free
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-2)
    most = min(N, SIDE * SIDE)
    assert embed(Pixels(whiten=most), images, others).shape == (N, most)
    with pytest.raises(UserError, match=rf"embedding\.whiten: {most + 1} components"):
        Pixels(whiten=most + 1).fit(images, RunContext())


def test_zca_is_the_symmetric_square_root_of_the_inverse_covariance() -> None:
    images, others = drawn(0), drawn(1)
    x = flat(images)
    from scipy.linalg import inv, sqrtm

    root = inv(sqrtm(np.cov(x, rowvar=False) + 0.1 * np.eye(SIDE * SIDE)).real)
    found = embed(Pixels(zca=0.1), images, others)
    np.testing.assert_allclose(found, (flat(others) - x.mean(0)) @ root, atol=1e-4)
    with pytest.raises(ValueError, match="not both"):
        Pixels(whiten=2, zca=0.1)


def test_contrast_brings_each_image_to_mean_zero_and_variance_one() -> None:
    """But for 10 grey levels squared that are added to the variance (Coates and Ng 2012)."""
    grey = 255 * flat(drawn(1))
    expected = (grey - grey.mean(1, keepdims=True)) / np.sqrt(grey.var(1, keepdims=True) + 10)
    np.testing.assert_allclose(embed(Pixels(contrast=True), drawn(0), drawn(1)), expected, atol=1e-5)
    blank = UnlabelledImages.of(np.full((2, SIDE, SIDE), 200, dtype=np.uint8))
    np.testing.assert_allclose(embed(Pixels(contrast=True), drawn(0), blank), 0, atol=1e-6)


@dataclass(frozen=True)
class Normalised:
    """A linear layer and its normalisation."""

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(item_shape)), 3), nn.BatchNorm1d(3, eps=1e-5))


def test_a_random_network_is_normalised_by_the_images_fitted_on() -> None:
    images, others = drawn(0), drawn(1)
    embedder = RandomNetwork(Normalised())
    found = embed(embedder, images, others)
    weight, bias = (embedder.state_dict()[f"1.{name}"].double().numpy() for name in ("weight", "bias"))
    seen = flat(images) @ weight.T + bias
    expected = (flat(others) @ weight.T + bias - seen.mean(0)) / np.sqrt(seen.var(0, ddof=1) + 1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    other = RandomNetwork(Normalised())
    other.fit(images, RunContext(seed=1))
    assert not torch.equal(other.state_dict()["1.weight"], embedder.state_dict()["1.weight"])
