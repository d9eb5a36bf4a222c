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


def whitened(z: np.ndarray, components: int) -> np.ndarray:
    """The leading principal components at unit variance, each item scaled to length 1: [n, at most components]."""
    from sklearn.decomposition import PCA

    z = z - z.mean(0)  # or float32 leaves noise of what never varies, which whitening would blow up
    pca = PCA(min(components, *z.shape), whiten=True, svd_solver="covariance_eigh").fit(z)
    out = pca.transform(z)
    return (out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)).astype(np.float32)
