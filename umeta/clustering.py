"""Clusters of vectors."""

from __future__ import annotations

import numpy as np


def kmeans(z: np.ndarray, k: int, iterations: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means by Lloyd's algorithm: the nearest of the k means [n] int32, and the squared distance to it [n].

    z: [n, d] float32.
    """
    import faiss

    # Every item takes part (faiss would subsample above 256 per centroid, and warn below 39).
    means = faiss.Kmeans(
        z.shape[1], k, niter=iterations, seed=seed, min_points_per_centroid=1, max_points_per_centroid=len(z)
    )
    means.train(z)
    distances, nearest = means.index.search(z, 1)
    return nearest[:, 0].astype(np.int32), distances[:, 0]


def core(labels: np.ndarray, distances: np.ndarray, share: float) -> np.ndarray:
    """The labels with -1 for the members of each cluster that are not among its nearest `share`."""
    order = np.lexsort((distances, labels))
    sizes = np.bincount(labels)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.where(rank < np.ceil(share * sizes[labels]), labels, -1).astype(np.int32)


def reciprocal(z: np.ndarray, neighbours: int, similarity: float) -> np.ndarray:
    """Clusters of items that share their neighbours, as many as there are: labels [n] int32, -1 for items on their own.

    Two items are joined when the Jaccard similarity of their sets of mutual nearest neighbours (each other's, and the
    item itself) is at least `similarity`; clusters are the connected components. The distance is that of k-reciprocal
    re-ranking (Zhong, Zheng, Cao, Li 2017), as UFLST (Ji et al. 2020) clusters by.

    z: [n, d] float32.
    """
    import faiss
    from scipy.sparse import csr_matrix, identity
    from scipy.sparse.csgraph import connected_components

    n = len(z)
    index = faiss.IndexFlatL2(z.shape[1])
    index.add(z)
    nearest = index.search(z, min(neighbours + 1, n))[1]
    rows = np.repeat(np.arange(n), nearest.shape[1])
    near = csr_matrix((np.ones(rows.size, dtype=np.float32), (rows, nearest.ravel())), shape=(n, n))
    mutual = near.minimum(near.T).maximum(identity(n, dtype=np.float32, format="csr"))
    shared = (mutual @ mutual.T).tocoo()
    sizes = np.asarray(mutual.sum(1)).ravel()
    close = shared.data >= similarity * (sizes[shared.row] + sizes[shared.col] - shared.data)
    joined = csr_matrix((shared.data[close], (shared.row[close], shared.col[close])), shape=(n, n))
    labels = connected_components(joined, directed=False)[1]
    _, labels, counts = np.unique(labels, return_inverse=True, return_counts=True)
    renumbered = np.where(counts > 1, np.cumsum(counts > 1) - 1, -1)
    return renumbered[labels].astype(np.int32)


def refilled(z: np.ndarray, labels: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The labels with no cluster of the k left empty, by DeepCluster's rule (Caron et al. 2018, section 3.3).

    An empty cluster's mean becomes that of a random other cluster, slightly perturbed, and the items of that cluster go
    to the nearer of the two. Clusters of one item, or of items all alike, cannot be shared.

    z: [n, d] float32; labels: [n] below k.
    """
    draw = np.random.default_rng(seed)
    labels = labels.copy()
    for empty in np.flatnonzero(np.bincount(labels, minlength=k) == 0):
        some = np.flatnonzero(np.bincount(labels) > 1)
        if not len(some):
            break
        members = np.flatnonzero(labels == draw.choice(some))
        apart = z[members] - z[members].mean(0, dtype=np.float64)
        shift = 1e-3 * apart.std() * draw.normal(size=z.shape[1])
        labels[members[apart @ shift > shift @ shift / 2]] = empty
    return labels


def whitening(z: np.ndarray, components: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and directions [d, c] that give, as `(z - mean) @ directions`, the leading c principal components at
    unit variance, c as many as asked for or as there are.

    A direction in which z varies by rounding alone is zero: whitening would blow it up.
    """
    from sklearn.decomposition import PCA

    mean = z.mean(0)
    pca = PCA(min(components, *z.shape), svd_solver="covariance_eigh").fit(z - mean)
    variances = pca.explained_variance_
    scale = np.where(variances > 1e-6 * variances[0], variances, np.inf) ** -0.5
    return mean, (pca.components_.T * scale).astype(np.float32)


def whitened(z: np.ndarray, components: int) -> np.ndarray:
    """The leading principal components at unit variance, each item scaled to length 1: [n, at most components]."""
    mean, directions = whitening(z, components)
    out = (z - mean) @ directions
    return (out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)).astype(np.float32)
