"""Same seed and number of threads, same bytes; and the same tasks for any number of processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from umeta.config import build
from umeta.rl.rollout import Paths
from umeta.stages import metatrain, propose
from umeta.stages.tasks import load_tasks
from umeta.tasks.reward import RewardTasks
from umeta.types import EpisodeSpec

CHAINS: dict[str, list[str]] = {
    "digits_acai_kmeans_protonet": [
        "embedding.steps=3",
        "proposer.k=10",
        "proposer.partitions=3",
        "train.way=5",
        "train.steps=3",
    ],
    "digits_acai_kmeans_maml": [
        "embedding={name: pixels}",
        "proposer.k=10",
        "proposer.partitions=3",
        "train.way=5",
        "train.steps=2",
    ],
    "nav2d_diayn": ["proposer.iterations=2", "train.steps=2", "train.episodes=4"],
}


@pytest.fixture
def threads() -> Iterator[None]:
    """Sets the number of threads back at the end."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def chain(name: str, place: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> dict[str, str]:
    """Hashes of what `propose` and `metatrain` write, on so many threads, nothing taken from a cache."""
    import faiss

    monkeypatch.setenv("UMETA_CACHE", str(place / "cache"))
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    small = build.load(name, [*CHAINS[name], "train.meta_batch=2", f"out={place}", "name=x"])
    folders = [propose.propose(small, device="cpu"), metatrain.metatrain(small, device="cpu")]
    found = [path for folder in folders for path in sorted(folder.glob("*")) if path.suffix in (".npy", ".safetensors")]
    return {path.name: hashlib.blake2b(path.read_bytes()).hexdigest() for path in found}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("digits_acai_kmeans_protonet", 2),
        ("digits_acai_kmeans_maml", 1),
        pytest.param("nav2d_diayn", 2, marks=pytest.mark.slow),
    ],
)
def test_the_same_seed_and_number_of_threads_give_the_same_bytes(name, count, tmp_path, monkeypatch, threads):
    once, again = (chain(name, tmp_path / place, monkeypatch, count) for place in ("once", "again"))
    assert len(once) >= 2
    assert once == again


def shares(count: int, processes: int) -> list[np.ndarray]:
    """Task numbers as processes take them in turn."""
    return [np.arange(count)[rank::processes] for rank in range(processes)]


def joined(parts: list[Any], count: int) -> Any:
    """What processes got, in the order of the tasks."""
    order = torch.from_numpy(np.concatenate(shares(count, len(parts))))
    return torch.cat(parts)[order.argsort()]


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_any_number_of_processes_sees_the_same_image_tasks(tmp_path, processes):
    small = build.load("digits_acai_kmeans_protonet", [*CHAINS["digits_acai_kmeans_maml"], f"out={tmp_path}"])
    propose.propose(small, device="cpu")
    episode = EpisodeSpec(4, 1, 2)

    def sampled(indices: np.ndarray) -> Any:
        tasks, _ = load_tasks(small)  # each process loads them for itself
        return tasks.sample(indices, episode=episode, seed=5)

    whole = sampled(np.arange(16))
    parts = [sampled(share) for share in shares(16, processes)]
    for role in ("support", "query"):
        for name in ("x", "y"):
            expected = getattr(getattr(whole, role)(), name)
            assert torch.equal(joined([getattr(getattr(part, role)(), name) for part in parts], 16), expected)


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_any_number_of_processes_sees_the_same_rewards_and_episodes(tmp_path, processes):
    small = build.load("nav2d_random", [f"out={tmp_path}"])
    propose.propose(small, device="cpu")

    def rolled(indices: np.ndarray) -> tuple[torch.Tensor, Paths]:
        tasks, _ = load_tasks(small)
        assert isinstance(tasks, RewardTasks)
        batch = tasks.sample(indices, episode=EpisodeSpec(1, 2, 2), seed=5)

        def act(x: torch.Tensor) -> torch.Tensor:  # mean 0 and log standard deviation 0, whatever is seen
            return torch.zeros(*x.shape[:-1], 2 * tasks.env.action)

        return batch.which, batch.paths(act, 2, "query")

    which, paths = rolled(np.arange(16))
    parts = [rolled(share) for share in shares(16, processes)]
    assert torch.equal(joined([part[0] for part in parts], 16), which)
    for name in ("observations", "actions", "logp"):
        assert torch.equal(joined([getattr(part[1], name) for part in parts], 16), getattr(paths, name))
