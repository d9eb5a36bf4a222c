"""Clusters of vectors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from umeta.data.images import share
from umeta.models.precision import fast_bfloat16
from umeta.runtime import distributed
from umeta.runtime.devices import keep, send

ROWS = 2048  # worked on at a time
GPU_SCORES = 1 << 26  # items times means worked on at a time on a GPU, which is given more so that it is busy
SAMPLE = 16  # items per mean that the first means are drawn from
GROUPS = 32  # in which they are drawn
WORTH = 10**9  # products in an assignment, from which on it pays to take them in bfloat16


def kmeans(
    z: np.ndarray, k: int, iterations: int, seed: int, device: torch.device | str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """k-means by Lloyd's algorithm: the nearest of the k means [n] int32, and the squared distance to it [n] (`tame`).

    Every item takes part. Large problems find the nearest mean in bfloat16 where the processor computes in it, but for
    the last two times, which are in float32 as the means always are.

    Several processes share the items out, whose sums over clusters are added up.

    z: [n, d] float32, the same in each process, of which a few rows at a time are held in memory beside it.
    device: where the nearest means are found; the first means, which are drawn one after the other, on the CPU. A GPU
    keeps the items where they fit.
    """
    z = tame(z)
    centre = z.mean(0, dtype=np.float64).astype(np.float32)  # around which numbers are small, and so are their errors
    means = distributed.run_once(lambda: seed_means(z, centre, k, seed)).to(device)
    rough = z.size * k >= WORTH and fast_bfloat16(torch.device(device))
    mine = Centred(distributed.shard(z), centre, k, torch.device(device))
    for left in range(iterations, 0, -1):
        _, _, sums, sizes = assign(mine, means, rough and left > 1)
        found = distributed.sum_tensors({"sums": sums, "sizes": sizes})
        means = found["sums"] / found["sizes"].clamp(min=1)[:, None]
        split_largest(means, found["sizes"].cpu())
    labels, distances, _, _ = assign(mine, means, False)
    parts = distributed.gather([(labels.cpu().numpy(), distances.cpu().numpy())])
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def tame(z: np.ndarray) -> np.ndarray:
    """Return vectors as they are where their squares neither overflow nor vanish, else divided by a power of two."""
    largest = float(max(z.max(initial=0), -z.min(initial=0)))
    if largest == 0 or 1e-9 < largest < 1e9 or not np.isfinite(largest):
        return z
    return np.ldexp(z, -int(np.floor(np.log2(largest)))).astype(z.dtype)


def seed_means(z: np.ndarray, centre: np.ndarray, k: int, seed: int) -> Tensor:
    """First means [k, d] less the centre, by greedy k-means++ (Arthur and Vassilvitskii 2007) on a sample.

    Each is the best of some items drawn by their squared distance to the nearest mean before: the one that lowers the
    sum of these distances most. They are drawn for many means at a time, so those of one group are a little stale.
    """
    random = np.random.default_rng(seed)
    rows = np.sort(random.choice(len(z), min(len(z), SAMPLE * k), replace=False))
    x = torch.from_numpy(z[rows] - centre)
    squares = x.square().sum(1)
    tries = 2 + int(np.log(k))  # as many as scikit-learn takes
    chosen = [int(random.integers(len(x)))]
    nearest = (x - x[chosen]).square().sum(1)
    while len(chosen) < k:
        group = min(max(1, k // GROUPS), k - len(chosen))
        total = nearest.numpy().cumsum(dtype=np.float64)
        where = total.searchsorted(random.random(group * tries) * total[-1], side="right").clip(max=len(x) - 1)
        drawn = torch.from_numpy(where)
        apart = torch.addmm(squares, x[drawn], x.T, alpha=-2).add_(squares[drawn, None]).clamp_(min=0)
        for items, distances in zip(drawn.split(tries), apart.split(tries), strict=True):
            lowered = torch.minimum(distances, nearest)
            best = int(lowered.sum(1).argmin())
            chosen.append(int(items[best]))
            nearest = lowered[best]
    return x[chosen]


class Centred:
    """Items less their centre, some rows at a time, on a device; a GPU keeps them all, where they fit."""

    def __init__(self, z: np.ndarray, centre: np.ndarray, k: int, device: torch.device) -> None:
        self.z, self.centre, self.device = z, centre, device
        self.rows = max(ROWS, GPU_SCORES // k) if device.type == "cuda" else ROWS
        whole = keep(share(z), device) if device.type == "cuda" else None
        self.kept = whole - send(torch.from_numpy(centre), device) if whole is not None and whole.is_cuda else None

    def __iter__(self) -> Iterator[Tensor]:
        if self.kept is not None:
            yield from self.kept.split(self.rows)
            return
        for start in range(0, max(1, len(self.z)), self.rows):
            yield send(torch.from_numpy(self.z[start : start + self.rows] - self.centre), self.device)


def assign(items: Centred, means: Tensor, rough: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Assign each item to its nearest mean.

    Returns the mean's index [n] int32 and the squared distance to it [n], zeros where `rough`; the sum [k, d] of each
    mean's items less the centre, and how many they are [k].

    The nearest mean is that of the largest `x m - |m|^2 / 2`; `rough` takes the products in bfloat16.
    """
    labels, distances = [], []
    sums, sizes = torch.zeros_like(means), torch.zeros(len(means), dtype=torch.int64, device=means.device)
    dtype = torch.bfloat16 if rough else torch.float32
    columns, half = means.T.to(dtype).contiguous(), means.square().sum(1) / 2
    for x in items:
        scores = (x.to(dtype) @ columns).float().sub_(half)
        # numpy's is many times faster than torch's on the CPU
        member = torch.from_numpy(scores.numpy().argmax(1)) if scores.is_cpu else scores.argmax(1)
        labels.append(member.int())
        sums.index_add_(0, member, x)
        sizes.index_add_(0, member, torch.ones_like(member))
        distances.append(x.new_zeros(len(x)) if rough else (x - means[member]).square().sum(1))
    return torch.cat(labels), torch.cat(distances), sums, sizes


def split_largest(means: Tensor, sizes: Tensor) -> None:
    """Split the largest cluster for each empty one, the two means a little apart, in place; sizes are on the CPU."""
    for empty in (sizes == 0).nonzero()[:, 0].tolist():
        apart = 1 + (1 - 2 * (torch.arange(means.shape[1], device=means.device) % 2)) / 1024
        largest = int(sizes.argmax())
        means[empty] = means[largest] * apart
        means[largest] *= 2 - apart
        sizes[empty] = sizes[largest] // 2
        sizes[largest] -= sizes[empty]


def keep_core(labels: np.ndarray, distances: np.ndarray, share: float) -> np.ndarray:
    """Return the labels with -1 for the members of each cluster that are not among its nearest `share`."""
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

    n, z = len(z), tame(z)
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


def refill_empty(z: np.ndarray, labels: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return the labels with no cluster of the k left empty, by DeepCluster's rule (Caron et al. 2018, section 3.3).

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
    """Return mean [d] and directions [d, c] that whiten: `(z - mean) @ directions`.

    These are the leading c principal components at unit variance, c as many as asked for or as there are.

    A direction in which z varies by rounding alone is zero: whitening would blow it up.
    """
    from sklearn.decomposition import PCA

    mean = z.mean(0)
    solver = "covariance_eigh" if len(z) >= z.shape[1] else "full"  # whichever is of the smaller matrix
    pca = PCA(min(components, *z.shape), svd_solver=solver).fit(z - mean)
    variances = pca.explained_variance_
    scale = np.where(variances > 1e-6 * variances[0], variances, np.inf) ** -0.5
    return mean, (pca.components_.T * scale).astype(np.float32)


def whiten(z: np.ndarray, components: int) -> np.ndarray:
    """Return the leading principal components at unit variance, items scaled to length 1: [n, at most components]."""
    z = tame(z)
    mean, directions = whitening(z, components)
    out = (z - mean) @ directions
    return (out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)).astype(np.float32)
