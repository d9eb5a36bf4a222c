"""Killed at any moment and resumed, a run ends in the bytes of one that nobody disturbed."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.forked import KILLED, Done, Forks

from umeta.errors import Interrupted
from umeta.runtime.checkpoints import Checkpoints
from umeta.runtime.loop import Pace, RunContext

IMAGES = {
    "data": {"name": "arrays", "path": "images.npz", "test": "images.npz"},
    "embedding": "pixels",
    "proposer": {"name": "kmeans", "k": 4, "partitions": 3, "smallest": 3, "keep": 0},
    "metalearner": {"name": "protonet", "model": {"name": "conv4", "filters": 4, "halvings": 2}},
    "train": {"outer": "adam", "steps": 3, "way": 2, "query": 2, "meta_batch": 2, "snapshots": 2},
    "evaluate": {
        "episodes": [[2, 1], [3, 2]],
        "query": 2,
        "tasks": 8,
        "baselines": ["pixels_knn", "knn", "scratch"],
        "scratch_tasks": 2,
        "scratch_steps": 2,
    },
}
SMALL = {"name": "conv4", "filters": 4, "halvings": 2}
ENV = {
    "env": {"name": "nav2d", "horizon": 6},
    "proposer": {"name": "diayn", "skills": 3, "iterations": 3, "episodes": 2, "hidden": 8},
    "metalearner": {"name": "maml", "model": {"name": "mlp", "hidden": [8]}, "inner_lr": 0.5, "steps": 1},
    "train": {"outer": "adam", "steps": 3, "meta_batch": 2, "episodes": 3},
    "evaluate": {
        "benchmark": "nav2d",
        "goals": 2,
        "validation": 1,
        "episodes": 2,
        "steps": 1,
        "baselines": ["scratch"],
    },
}
MAML = {"name": "maml", "model": SMALL, "steps": 2, "normalisation": "running"}
SAC = {**ENV["proposer"], "algorithm": {"name": "sac", "updates": 3, "batch": 6, "replay": 40}}
CONFIGS: dict[str, dict[str, Any]] = {
    "acai": {**IMAGES, "embedding": {"name": "acai", "steps": 4, "batch": 8, "depth": 4, "dimensions": 16}},
    "bigan": {
        **IMAGES,
        "embedding": {"name": "bigan", "steps": 4, "batch": 8, "depth": 4, "dimensions": 8},
        "proposer": {"name": "hyperplanes", "zones": 2, "partitions": 3, "smallest": 3, "margin": 0.0},
        "metalearner": MAML,
    },
    "deepcluster": {
        **IMAGES,
        "embedding": {
            "name": "deepcluster",
            "steps": 4,
            "every": 2,
            "k": 4,
            "batch": 8,
            "dimensions": 4,
            "model": SMALL,
        },
        "proposer": {"name": "mixture", "proposers": [IMAGES["proposer"], "instances"]},
    },
    "simclr": {
        **IMAGES,
        "embedding": {"name": "simclr", "steps": 4, "batch": 8, "projection": 8, "model": SMALL},
        "train": {**IMAGES["train"], "steps": 2},
        "rounds": [{"proposer": {"name": "progressive", "neighbours": [3], "k": [4], "similarity": 0.1}}],
    },
    "diayn": ENV,
    "sac": {**ENV, "proposer": SAC, "train": {**ENV["train"], "outer": "trpo"}},
    "metra": {
        **ENV,
        "proposer": {"name": "metra", "skills": 3, "iterations": 3, "episodes": 2, "hidden": 4, "map_steps": 2},
        "metalearner": {"name": "context", "model": {"name": "mlp", "hidden": [4, 4]}, "contexts": 3},
        "start": "skills",
    },
    "diayn_metra": {
        **ENV,
        "proposer": {"name": "diayn_metra", "skills": 3, "movers": 2, "iterations": 3, "episodes": 2, "hidden": 8},
    },
    "random_discriminator": {
        **ENV,
        "proposer": {"name": "random_discriminator", "skills": 3, "hidden": 8},
        "train": {**ENV["train"], "outer": "ppo", "rounds": 2},
    },
    "rl2": {
        **ENV,
        "metalearner": {"name": "rl2", "model": {"name": "mlp", "hidden": [4]}, "hidden": 4},
        "train": {**ENV["train"], "outer": "ppo"},
    },
    "sinusoid": {
        "proposer": "sinusoid",
        "metalearner": {"name": "maml", "model": {"name": "mlp", "hidden": [8]}, "steps": 1},
        "train": {"outer": "adam", "steps": 3, "shot": 3, "query": 3, "meta_batch": 2, "snapshots": 2},
        "evaluate": {"shots": [3, 5], "query": 5, "tasks": 8, "steps": 2, "ranges": {"amplitude": [[5, 9]]}},
    },
}
# painting takes most of a tiny run's time, and a picture holds no more than what is compared anyway
PREPARE = "import numpy; from umeta.draw import mosaic; mosaic.render = lambda f: numpy.zeros((4, 4, 3), numpy.uint8)"
CLOCK = {"minutes", "seconds", "date", "commit", "facts", "hash", "curves"}  # keys that change from day to day


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    made = Forks()
    yield made
    made.close()


def begin(folder: Path, name: str) -> None:
    """A folder with a config and images, and nothing else."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(CONFIGS[name]))
    write_images(folder / "images.npz")


def write_images(path: Path) -> None:
    """Images of four classes, each a pattern under noise, and their labels."""
    draw = np.random.default_rng(0)
    labels = np.arange(4).repeat(12)
    patterns = draw.integers(0, 200, (4, 1, 8, 8))
    images = (patterns[labels] + draw.integers(0, 56, (48, 1, 8, 8))).astype(np.uint8)
    np.savez(path, images=images, labels=labels)


def content(folder: Path) -> dict[str, Any]:
    """All that a run wrote, by file; what is a time left out, and pages, which show times."""
    found: dict[str, Any] = {}
    # a lock in the cache whose owner was killed is held by nobody, and stays until somebody wants it again
    left = set(folder.glob("cache/*/.*.lock"))
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path not in left):
        name = str(path.relative_to(folder))
        found[name] = path.read_bytes()
        if path.name in ("evaluation.json", "report.json", "meta.json"):
            found[name] = {key: value for key, value in json.loads(found[name]).items() if key not in CLOCK}
        elif path.name in ("seconds.json", "report.md", "report.html") or name.startswith("cache"):
            found[name] = b""
    return found


def test_the_comparison_covers_what_a_run_writes(forks: Forks, tmp_path: Path) -> None:
    begin(tmp_path / "a", "acai")
    assert forks(tmp_path / "a", "run", "acai.yaml", prepare=PREPARE).code == 0
    found = content(tmp_path / "a")
    for name in ("tasks/acai/partitions.npy", "tasks/acai/embedder.safetensors", "runs/acai/model.safetensors"):
        assert len(found[name]) > 100
    assert found["runs/acai/report.json"]["rows"]["acai"]["2-way 1-shot"]["tasks"] == 8
    assert not [name for name in found if name.endswith((".tmp", ".lock"))]


def survived(forks: Forks, place: Path, name: str, kills: int, seed: int) -> int:
    """Runs a config, killing it that often and resuming, and compares each time it comes through; how often it did."""
    place.mkdir()
    begin(place / "whole", name)
    command = ("run", f"{name}.yaml")
    whole = forks(place / "whole", *command, prepare=PREPARE)
    assert whole.code == 0, whole.err
    expected = content(place / "whole")
    dice = random.Random(seed)
    killed = through = 0
    begin(place / "cut", name)
    while True:
        by_touch = {"touch": dice.randint(1, whole.touches // 2)}
        by_time = {"after": dice.uniform(0, whole.seconds / 2)}
        moment: dict[str, Any] = {} if killed == kills else by_touch if dice.random() < 0.7 else by_time
        done: Done = forks(place / "cut", *command, "--resume", prepare=PREPARE, **moment)
        if done.code == KILLED:
            killed += 1
            continue
        assert done.code == 0, (moment, done.err)
        found = content(place / "cut")
        assert found.keys() == expected.keys(), (name, moment)
        assert [file for file in expected if found[file] != expected[file]] == [], (name, moment)
        through += 1
        if killed >= kills:
            return through
        begin(place / "cut", name)


@pytest.mark.parametrize("name", ["acai", "metra", "sac"])
def test_a_few_kills_are_survived_bit_for_bit(forks: Forks, tmp_path: Path, name: str) -> None:
    assert survived(forks, tmp_path / "place", name, kills=3, seed=1) >= 1


@pytest.mark.slow
@pytest.mark.timeout(3600)  # each is a minute where nothing else runs
@pytest.mark.parametrize("name", CONFIGS)
def test_kills_at_random_moments_are_survived_bit_for_bit(forks: Forks, tmp_path: Path, name: str) -> None:
    """16 kills in each of the configs."""
    assert survived(forks, tmp_path / "place", name, kills=16, seed=0) >= 1


# checkpoints


@pytest.mark.parametrize("cost", [0.0, 0.1, 3.0, 40.0])
def test_at_most_one_percent_of_a_resumable_run_goes_into_checkpoints(cost: float) -> None:
    """A slow writer under a clock of our own: steps of 1 s, a run of 20,000 s."""
    pace, now, written = Pace(60.0, 0.0), 0.0, []
    while now < 20_000:
        now += 1
        if pace.due(now):
            pace.wrote(now, now + cost)
            now += cost
            written.append(now)
    assert written[0] == 60 + cost  # the first is due whatever it may cost
    assert len(written) * cost <= 0.01 * now
    assert len(written) >= min(20_000 / (60 + 1 + cost), 0.01 * 20_000 / max(cost, 1e-9)) - 2  # no fewer than need be
    assert all(b - a >= 60 for a, b in itertools.pairwise(written))


def test_a_resume_after_no_more_than_a_few_steps_when_every_step_is_kept() -> None:
    pace = Pace(0.0, 0.0)
    for now in range(1, 5):
        assert pace.due(float(now))
        pace.wrote(float(now), now + 0.9)


def test_a_slow_writer_does_not_slow_a_resumable_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop itself, on a clock that steps and checkpoints push on."""
    now = [0.0]
    monkeypatch.setattr("umeta.runtime.loop.time.monotonic", lambda: now[0])
    write, writes = Checkpoints.write, []

    def slow(self: Checkpoints, *arguments: Any) -> None:
        now[0] += 2
        writes.append(now[0])
        write(self, *arguments)

    def step(i: int) -> dict[str, float]:
        now[0] += 10
        return {}

    monkeypatch.setattr(Checkpoints, "write", slow)
    RunContext(folder=tmp_path).loop("work", 300, step, lambda: {"x": torch.zeros(1)}, lambda state: None)
    assert 2 * (len(writes) - 1) <= 0.01 * now[0]  # but for the one at the end
    assert Checkpoints(tmp_path, "work").steps()[-1] == 300


def test_a_kill_in_the_middle_of_pruning_leaves_no_checkpoint_behind_once_resumed(tmp_path: Path) -> None:
    log = Checkpoints(tmp_path, "work")
    for step in (2, 3):
        log.write({"x": torch.zeros(1)}, step, 0.0)
    (log.folder / "step-1").mkdir()  # of which no more was removed than its files
    RunContext(folder=tmp_path, resume=True).loop("work", 3, lambda i: {}, dict, lambda state: None)
    assert sorted(path.name for path in log.folder.iterdir()) == ["step-2", "step-3"]


def test_seconds_before_a_resume_count(tmp_path: Path) -> None:
    Checkpoints(tmp_path, "0-work").write({"x": torch.zeros(1)}, 2, 500.0)
    context = RunContext(folder=tmp_path, resume=True)
    watch = context.watch()
    replace(context, label="0-").loop("work", 3, lambda i: {}, lambda: {"x": torch.zeros(1)}, lambda state: None)
    assert 500 <= watch() < 510
    assert context.watch()() < 10
    assert Checkpoints(tmp_path, "0-work").newest()[2] >= 500


# Ctrl-C


def press(*arguments: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_in_the_last_moment_is_not_lost_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    """After the last step has been looked at, or where there is none left to be taken."""
    done: list[int] = []
    handler = signal.getsignal(signal.SIGINT)

    def loop(context: RunContext, **options: Callable[[Any], Any]) -> None:
        context.loop(
            "work",
            2,
            lambda i: done.append(i) or {},
            options.get("save", lambda: {"x": torch.zeros(1)}),
            options.get("load", lambda state: None),
        )

    def pressing_save() -> dict[str, torch.Tensor]:
        if len(done) == 2:
            press()
        return {"x": torch.zeros(1)}

    with pytest.raises((KeyboardInterrupt, Interrupted)):
        loop(RunContext(folder=tmp_path), save=pressing_save)
    loop(RunContext(folder=tmp_path, resume=True))
    assert done == [0, 1]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("name", ["acai", "diayn"])
def test_ctrl_c_in_an_evaluation_keeps_finished_rows_and_a_resume_gives_the_rest(
    forks: Forks, tmp_path: Path, name: str
) -> None:
    """The press comes in the middle of a row; the row is finished, kept and never computed again."""
    begin(tmp_path / "a", name)
    assert forks(tmp_path / "a", "run", f"{name}.yaml", prepare=PREPARE).code == 0
    expected = content(tmp_path / "a")
    where = "images, 'train_from_scratch'" if name == "acai" else "environments.Trial, 'scratch'"
    pressing = f"""
import os, signal
from umeta.evaluation import environments, images
owner, method = {where}
real = getattr(owner, method)
def pressed(*a):
    os.kill(os.getpid(), signal.SIGINT)
    return real(*a)
setattr(owner, method, pressed)
"""
    again = ("run", f"{name}.yaml", "--resume")
    (tmp_path / "a/runs" / name / "evaluation.json").unlink()
    stopped = forks(tmp_path / "a", *again, prepare=PREPARE + pressing)
    assert stopped.code == 130, stopped.err
    assert "stopping after this row" in stopped.err
    assert "go on with the same command and --resume" in stopped.err
    kept = content(tmp_path / "a")[f"runs/{name}/evaluation.json"]["rows"]
    assert "from scratch" in kept
    assert name not in kept
    never = "\n" + pressing.replace("os.kill(os.getpid(), signal.SIGINT)", "raise AssertionError('computed again')")
    never = never if name == "diayn" else ""
    done = forks(tmp_path / "a", *again, prepare=PREPARE + never)
    assert done.code == 0, done.err
    found = content(tmp_path / "a")
    assert [file for file in expected if found[file] != expected[file]] == []
