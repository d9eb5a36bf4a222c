"""Vectors of one's own: each goes with its image, and what does not fit is named."""

import numpy as np
import pytest

from embeddings.precomputed import Precomputed
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.runtime.loop import RunContext

IMAGES = UnlabelledImages.of(np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8))


def fitted(path, vectors) -> Precomputed:
    np.save(path / "vectors.npy", vectors)
    embedder = Precomputed(str(path / "vectors.npy"))
    embedder.fit(IMAGES, RunContext())
    return embedder


def test_each_image_has_the_vector_of_its_row_in_the_source(tmp_path):
    vectors = np.random.default_rng(1).random((6, 3))
    found = fitted(tmp_path, vectors).embed(IMAGES)
    np.testing.assert_allclose(found, vectors[IMAGES.rows], rtol=1e-6)
    some = UnlabelledImages(IMAGES.pixels[[4, 1]], np.arange(2))
    np.testing.assert_allclose(fitted(tmp_path, vectors).embed(some), vectors[IMAGES.rows[[4, 1]]], rtol=1e-6)


def test_images_without_a_vector_are_counted(tmp_path):
    others = UnlabelledImages(np.concatenate([IMAGES.pixels[:4], 255 - IMAGES.pixels[:2]]), np.arange(6))
    with pytest.raises(UserError, match="no vectors for 2 of 6 images"):
        fitted(tmp_path, np.zeros((6, 3))).embed(others)


@pytest.mark.parametrize(
    "vectors",
    [np.zeros(6), np.zeros((5, 3)), np.zeros((7, 3)), np.zeros((6, 3), dtype=np.int64), np.zeros((6, 3, 1))],
)
def test_vectors_of_another_number_shape_or_type_are_named(tmp_path, vectors):
    with pytest.raises(UserError, match=r"expected floats \[6, d\], one row per training image, got"):
        fitted(tmp_path, vectors)


def test_images_that_are_alike_have_vectors_of_their_own(tmp_path):
    images = UnlabelledImages.of(
        np.repeat(np.arange(3, dtype=np.uint8), 2)[:, None, None, None] * np.ones((8, 8), np.uint8)
    )
    vectors = np.random.default_rng(1).random((6, 3))
    np.save(tmp_path / "x.npy", vectors)
    embedder = Precomputed(str(tmp_path / "x.npy"))
    embedder.fit(images, RunContext())
    np.testing.assert_allclose(embedder.embed(images), vectors[images.rows], rtol=1e-6)
