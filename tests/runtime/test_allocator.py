"""How much memory a stage takes: the estimate, and what is said where there is too little."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from umeta.cli.main import main
from umeta.config import reading, registry
from umeta.config.images import TrainConfig
from umeta.outer.adam import Adam
from umeta.quickstart import memory
from umeta.runtime import allocator
from umeta.tasks.partition import PartitionTasks
from umeta.train import BatchProblem
from umeta.types import EpisodeSpec, TaskSpec, Theta

ROOT = Path(__file__).parents[2]
MB = 1 << 20


def test_freed_memory_is_kept_where_the_c_library_can(monkeypatch):
    assert allocator.keep_buffers() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_buffers()


def test_tensors_are_counted_while_they_are_alive():
    live = memory.Live()
    with torch.device("meta"), live:
        a = torch.empty(MB)  # 4 MB
        b = a * 2
        view = b.view(2, -1)
        del a, b
        c = view.relu_().sum(0)  # in place: nothing new; then half as large
        del view
        assert live.now == 2 * MB
        assert c.sum().item() == 1.0
    assert live.most == 8 * MB
    assert live.peak >= live.most


@pytest.mark.parametrize(
    "options",
    [
        {"name": "maml", "steps": 2},
        {"name": "maml", "steps": 2, "first_order": True, "head": "prototypes"},
        {"name": "protonet"},
    ],
)
def test_what_is_simulated_is_what_a_meta_step_takes(options):
    """The same step is counted on real tensors."""
    learner = registry.build_part("metalearner", {**options, "model": {"name": "conv4", "filters": 4}})
    spec, settings = TaskSpec((1, 16, 16)), TrainConfig(Adam(), way=3, shot=1, query=2, meta_batch=4, task_chunk=2)
    found = memory.simulate_metatraining(learner, spec, settings)

    pixels, labels = np.zeros((30, 1, 16, 16), np.uint8), np.arange(30) % 5
    batch = PartitionTasks(pixels, labels).sample(np.arange(4), episode=settings.episode, seed=0)
    live, outer = memory.Live(), Adam()
    with live:
        learner = learner.build(spec, settings.episode)
        theta = Theta({n: v.requires_grad_() for n, v in learner.init(0).params.items()})
        outer.start(theta.params)
        supports, query = [batch.support()], batch.query()
        outer.step(BatchProblem(learner, theta, spec, supports, query, settings.task_chunk), 0.0)
    assert found.most == pytest.approx(live.most, rel=0.05)
    assert found.peak == pytest.approx(live.peak, rel=0.05)


@pytest.mark.slow
def test_the_chunk_bounds_the_memory():
    learner = registry.build_part("metalearner", {"name": "protonet", "model": {"name": "conv4", "filters": 8}})

    def taken(chunk: int) -> int:
        settings = TrainConfig(Adam(), way=5, meta_batch=16, task_chunk=chunk)
        return memory.simulate_metatraining(learner, TaskSpec((1, 28, 28)), settings).most

    assert taken(1) < taken(4) < taken(16)
    assert taken(16) > 5 * taken(1)


def test_answering_takes_no_more_for_more_steps():
    learner = registry.build_part("metalearner", {"name": "maml", "model": {"name": "conv4", "filters": 4}})
    few, many = (
        memory.simulate_adaptation(learner, TaskSpec((1, 16, 16)), EpisodeSpec(3, 1, 2), 2, steps).most
        for steps in (3, 300)
    )
    assert few == many > 0


def test_simulating_changes_neither_learner_nor_random_state():
    learner = registry.build_part("metalearner", {"name": "maml", "model": {"name": "conv4", "filters": 4}})
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    memory.simulate_metatraining(learner, TaskSpec((1, 16, 16)), TrainConfig(Adam(), way=2, meta_batch=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    learner = learner.build(TaskSpec((1, 16, 16)), EpisodeSpec(2, 1, 1))
    theta = learner.init(0)
    assert all(value.device.type == "cpu" for value in theta.params.values())


CONFIG = {
    "name": "small",
    "data": {"name": "digits"},
    "embedding": {"name": "pixels"},
    "proposer": {"name": "kmeans", "k": 12, "partitions": 2, "smallest": 6},
    "metalearner": {"name": "protonet", "model": {"name": "conv4", "filters": 8}},
    "train": {"outer": {"name": "adam"}, "steps": 2, "way": 5, "query": 2, "meta_batch": 2},
}


def no_room() -> None:
    torch.empty(2**62, dtype=torch.uint8)  # more than an address space


def no_room_for_an_array() -> None:
    np.empty(2**62, dtype=np.uint8)


@pytest.mark.parametrize("allocate", [no_room, no_room_for_an_array])
def test_a_stage_without_enough_memory_ends_with_advice(tmp_path, monkeypatch, capsys, allocate):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(reading.dump_yaml(CONFIG))
    with monkeypatch.context() as patch:
        patch.setattr("umeta.stages.metatrain.train", lambda *_: allocate())
        assert main(["run", "small.yaml", "evaluate.episodes=[]", "--device", "cpu"]) == 2
    assert re.search(r"umeta: out of memory: .*allocate.*; umeta inspect CONFIG says", capsys.readouterr().err)
    assert main(["metatrain", "small.yaml", "--device", "cpu", "--resume"]) == 0


def test_other_errors_of_torch_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(reading.dump_yaml(CONFIG))
    monkeypatch.setattr("umeta.stages.metatrain.train", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        main(["run", "small.yaml", "evaluate.episodes=[]", "--device", "cpu"])


def test_a_part_that_needs_contents_leaves_the_need_open():
    def reading() -> int:
        raise RuntimeError("content")

    found = memory.estimate_stage("metatrain", "train.way", reading)
    assert found.bytes is None
    assert "not known" in str(found)


def test_inspect_prints_the_needs_of_a_config(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(reading.dump_yaml(CONFIG))
    assert main(["inspect", "small.yaml", "evaluate.episodes=[[5,1]]", "evaluate.tasks=5", "--json"]) == 0
    out = capsys.readouterr().out
    needs = json.loads(out.splitlines()[-1])["memory"]
    assert set(needs) == {"propose", "metatrain", "evaluate"}
    assert all(value > memory.resident_bytes() / 2 for value in needs.values())
    assert "metatrain: about" in out
    assert "train.task_chunk" in out


def test_the_smallest_limit_of_the_machine_and_its_control_groups_counts(monkeypatch):
    monkeypatch.setattr(allocator, "_machine", lambda: (8 << 30, 500))
    monkeypatch.setattr(allocator, "_groups", lambda: [("max", 5), ("3000", 1000), (str(2**63), 7)])
    assert allocator.available() == 2500
    monkeypatch.setattr(allocator, "_groups", lambda: [("10", 1000)])
    assert allocator.available() == 500


def alone(code: str, *arguments: str, cwd: Path) -> str:
    """What a program prints, run in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


STAGE = """
import resource, sys
from umeta.cli.main import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("change", [[], ["metalearner={name: maml, steps: 3, model: {name: conv4, filters: 32}}"]])
def test_the_estimate_is_near_the_peak(tmp_path, change):
    (tmp_path / "small.yaml").write_text(reading.dump_yaml(CONFIG))
    overrides = [*change, "evaluate.episodes=[[5,1]]", "evaluate.tasks=20", "evaluate.scratch_tasks=10"]
    printed = alone(STAGE, "inspect", "small.yaml", *overrides, "--json", cwd=tmp_path)
    needs = json.loads(printed.splitlines()[-2])["memory"]
    commands = {
        "propose": ["propose", "small.yaml", *overrides],
        "metatrain": ["metatrain", "small.yaml", *overrides],
        "evaluate": ["evaluate", "runs/small"],
    }
    for stage, command in commands.items():
        taken = int(alone(STAGE, *command, "--device", "cpu", cwd=tmp_path).splitlines()[-1])
        print(f"{stage}: estimate {needs[stage] / MB:.0f} MB, peak {taken / MB:.0f} MB")
        assert 0.8 * taken <= needs[stage] <= 1.5 * taken


MILLION = """
import resource, sys
import faiss, numpy as np, torch, scipy.sparse
from umeta.tasks.clustering import kmeans
from umeta.tasks.partition import PartitionTasks
from umeta.types import EpisodeSpec

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

z = np.load(sys.argv[1], mmap_mode="r")
kmeans(z[:1000], 10, 1, 0)
before = peak()
labels, distances = kmeans(z, 100, 3, 0)
after_kmeans = peak()
tasks = PartitionTasks(z, labels[None])
batch = tasks.sample(np.arange(1000), episode=EpisodeSpec(5, 1, 5), seed=0)
batch.support(), batch.query()
print(len(np.unique(labels)), after_kmeans - before, peak() - before, z.nbytes)
"""


@pytest.mark.slow
def test_a_million_embeddings_on_disk_take_at_most_512_mb_more(tmp_path):
    z = np.lib.format.open_memmap(tmp_path / "z.npy", "w+", np.float32, (1_000_000, 64))
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((100, 64), dtype=np.float32) * 10
    for start in range(0, len(z), 100_000):
        z[start : start + 100_000] = centres[draw.integers(100, size=100_000)]
        z[start : start + 100_000] += draw.standard_normal((100_000, 64), dtype=np.float32)
    z.flush()
    clusters, by_kmeans, by_all, mapped = map(int, alone(MILLION, str(tmp_path / "z.npy"), cwd=tmp_path).split())
    print(f"k-means {(by_kmeans - mapped) / MB:.0f} MB, with tasks {(by_all - mapped) / MB:.0f} MB above the file")
    assert clusters > 50
    assert by_all <= mapped + 512 * MB
