"""Randomness by counter: a value depends on what it is for, never on what was drawn before it.

A *key* is a 64-bit hash of integers and words, such as `key(seed, "tasks", indices)`. Keys are numpy uint64 arrays, so
a whole meta-batch is drawn at once, in any order, in any process, with the same result.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_WORD = 2**64 - 1  # numbers are taken modulo 2^64
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_30, _27, _31, _A, _B = (np.uint64(n) for n in (30, 27, 31, _FIRST, _SECOND))


def _mix(z: Any) -> Any:
    """Return the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection with full avalanche.

    A number is mixed without numpy, which takes as long for one as for hundreds; an array in place.
    """
    if isinstance(z, int):
        z &= _WORD
        z = (z ^ (z >> 30)) * _FIRST & _WORD
        z = (z ^ (z >> 27)) * _SECOND & _WORD
        return z ^ (z >> 31)
    z ^= z >> _30
    z *= _A
    z ^= z >> _27
    z *= _B
    z ^= z >> _31
    return z


@functools.lru_cache(1024)
def _hash_word(text: str) -> int:
    return _hash(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


@functools.lru_cache(64)
def _hash_range(numbers: range) -> np.ndarray:
    return _hash(np.asarray(numbers))


def _hash(part: Any) -> Any:
    """Return what a part adds to the hash: an int, or an array uint64 of one dimension or more."""
    if isinstance(part, str):
        return _hash_word(part)
    if isinstance(part, range):
        return _hash_range(part)
    if isinstance(part, np.ndarray) and part.ndim:
        return _mix(part.astype(np.uint64) + np.uint64(_GOLDEN)) + np.uint64(_GOLDEN)
    return _mix(int(part) + _GOLDEN) + _GOLDEN


def key(*parts: int | str | range | np.ndarray) -> np.ndarray:
    """Hash of the parts, in order; arrays, and ranges as such, broadcast against each other. Returns uint64."""
    out: Any = 0
    for part in parts:
        number = _hash(part)
        if isinstance(out, int) and not isinstance(number, int):
            out, number = number, out
        if not isinstance(out, int) and isinstance(number, int):
            number = np.uint64(number & _WORD)
        out = _mix(out + number)
    return np.asarray(out, np.uint64)


def below(keys: np.ndarray, n: np.ndarray | int) -> np.ndarray:
    """Return a uniform integer in [0, n) for each key (n < 2^31; the bias is at most n / 2^32). Returns int64."""
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
    last = n[..., None] - size + np.arange(size)
    chosen = below(key(keys[..., None], "choose", range(size)), last + 1)
    for i in range(1, size):
        taken = (chosen[..., :i] == chosen[..., i : i + 1]).any(-1)
        np.copyto(chosen[..., i], last[..., i], where=taken)
    order = np.argsort(key(keys[..., None], "order", range(size)), axis=-1)
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
