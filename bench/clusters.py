"""k-means, seeding included, by umeta and by others. Each says the inertia it came to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch

from umeta.tasks import clustering

Run = Callable[[], dict[str, float]]


def drawn(n: int, d: int) -> np.ndarray:
    """1,000 overlapping clusters of unequal sizes in 64 directions, and noise in all: [n, d] float32."""
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(1000, 64))
    cluster = draw.choice(1000, n, p=draw.dirichlet(np.ones(1000)))
    z = np.empty((n, d), dtype=np.float32)
    directions = draw.normal(size=(64, d)) / 8
    for rows in np.array_split(np.arange(n), max(1, n // 50_000)):
        inside = centres[cluster[rows]] + 0.7 * draw.normal(size=(len(rows), 64))
        z[rows] = inside @ directions + 0.1 * draw.normal(size=(len(rows), d))
    return z


def umeta(n: int, d: int, k: int, iterations: int) -> Run:
    z = drawn(n, d)
    return lambda: {"inertia": float(clustering.kmeans(z, k, iterations, seed=0)[1].sum(dtype=np.float64))}


def faiss(n: int, d: int, k: int, iterations: int) -> Run:
    """With every item taking part, as many of its defaults as that allows, and the final assignment."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    z = drawn(n, d)
    options: dict[str, Any] = {"min_points_per_centroid": 1, "max_points_per_centroid": n}

    def run() -> dict[str, float]:
        means = faiss.Kmeans(d, k, niter=iterations, seed=0, **options)
        means.train(z)
        return {"inertia": float(means.index.search(z, 1)[0].sum(dtype=np.float64))}

    return run


def sklearn(n: int, d: int, k: int, iterations: int, init: Literal["k-means++", "random"]) -> Run:
    from sklearn.cluster import KMeans

    z = drawn(n, d)

    def run() -> dict[str, float]:
        found = KMeans(k, init=init, n_init=1, max_iter=iterations, tol=0, random_state=0).fit(z)
        return {"inertia": float(found.inertia_)}

    return run
