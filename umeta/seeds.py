"""Randomness by counter: a value depends on what it is for, never on what was drawn before it.

A *key* is a 64-bit hash of integers and words, such as `key(seed, "tasks", indices)`. Keys are numpy uint64 arrays, so
a whole meta-batch is drawn at once, in any order, in any process, with the same result.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """Return the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection with full avalanche."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@functools.lru_cache(256)
def _word(text: str) -> np.ndarray:
    """Return a word's number, mixed."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return _mixed(int.from_bytes(digest, "little"))


def _mixed(number: int | np.ndarray) -> np.ndarray:
    return _mix(np.asarray(number).astype(np.uint64) + _GOLDEN)


def key(*parts: int | str | np.ndarray) -> np.ndarray:
    """Hash of the parts, in order; arrays broadcast against each other. Returns uint64."""
    with np.errstate(over="ignore"):
        out = np.asarray(0, dtype=np.uint64)
        for part in parts:
            out = _mix(out + _GOLDEN + (_word(part) if isinstance(part, str) else _mixed(part)))
        return out


def below(keys: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """Return a uniform integer in [0, n) for each key (n < 2^31; the bias is at most n / 2^32). Returns int64."""
    with np.errstate(over="ignore"):
        return (((keys >> np.uint64(32)) * np.asarray(n).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def uniform(keys: np.ndarray) -> np.ndarray:
    """Return a uniform number in [0, 1) for each key, in steps of 2^-24. Returns float32."""
    return (keys >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def choose(keys: np.ndarray, n: np.ndarray | int, size: int) -> np.ndarray:
    """`size` distinct integers in [0, n) for each key, in uniformly random order: [*keys.shape, size] int64.

    Floyd's algorithm (Bentley and Floyd, CACM 30(9), 1987) picks a uniform subset in `size` steps, whatever n is; a
    shuffle by random keys then makes the order uniform too. Needs n >= size everywhere.
    """
    n = np.broadcast_to(np.asarray(n, dtype=np.int64), keys.shape)
    if size and n.size and n.min() < size:
        raise ValueError(f"cannot choose {size} distinct items from {n.min()}")
    draws = key(keys[..., None], "choose", np.arange(size))
    chosen = np.empty((*keys.shape, size), dtype=np.int64)
    for i in range(size):
        last = n - size + i
        pick = below(draws[..., i], last + 1)
        taken = (chosen[..., :i] == pick[..., None]).any(-1)
        chosen[..., i] = np.where(taken, last, pick)
    order = np.argsort(key(keys[..., None], "order", np.arange(size)), axis=-1)
    return np.take_along_axis(chosen, order, axis=-1)


@contextmanager
def seed_torch(seed: int) -> Iterator[None]:
    """Seed torch on the CPU within the block; after it the global random state is as it was, a GPU's all along."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def integer(*parts: int | str) -> int:
    """Return a seed below 2^31 for libraries that take one."""
    return int(key(*parts) >> np.uint64(33))


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator for one purpose (draw on the CPU, then move: the same numbers on every device)."""
    return torch.Generator().manual_seed(integer(*parts))
