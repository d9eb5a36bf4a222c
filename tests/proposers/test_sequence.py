"""Tasks in sequence: which come when, and the regret that a report has."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from umeta.cli.main import main
from umeta.config.registry import build_part
from umeta.data.images import UnlabelledImages
from umeta.runtime.loop import RunContext
from umeta.stages.runs import load_run, snapshots
from umeta.stages.tasks import load_tasks
from umeta.tasks.instances import InstanceTasks
from umeta.tasks.sequence import InSequence
from umeta.tasks.store import load_saved, save_tasks
from umeta.testing import check_proposer
from umeta.types import EpisodeSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
EPISODE = EpisodeSpec(4, 2, 3)


def draw(tasks, numbers):
    return tasks.sample(np.array(numbers), episode=EPISODE, seed=0).support().x


def test_each_new_task_comes_first_and_then_those_met_so_far() -> None:
    plain = InstanceTasks(PIXELS)
    known = draw(plain, range(40))
    seen = draw(InSequence(plain, 5), range(200))
    which = [next(n for n in range(40) if torch.equal(x, known[n])) for x in seen]
    assert which[::5] == list(range(40))
    assert all(n <= i // 5 for i, n in enumerate(which))
    late = [n for i, n in enumerate(which) if i % 5 and i >= 100]
    assert 10 < np.mean(late) < 20  # of the 20 to 40 met so far, drawn evenly
    assert torch.equal(draw(InSequence(plain, 5).coming(7), range(3)), known[7:10])


def test_contract_and_file(tmp_path: Path) -> None:
    check_proposer(build_part("proposer", {"name": "sequence", "proposer": {"name": "random_labels", "k": 6}}))
    proposer = build_part("proposer", {"name": "sequence", "updates": 3, "proposer": "instances"})
    images = UnlabelledImages.of(PIXELS)
    tasks = proposer.propose(images, RunContext())
    loaded = load_saved(save_tasks(tasks, tmp_path), tmp_path, images)
    assert torch.equal(*(draw(each, range(5)) for each in (tasks, loaded)))
    assert "after every 3" in tasks.describe(EPISODE)[-1]


def test_a_report_has_the_regret(tmp_path: Path) -> None:
    """Of each snapshot but the last, after which nothing came."""
    digits = ["data=digits", "metalearner={name: protonet, model: {name: conv4, filters: 4, down: stride}}"]
    train = ["train.steps=6", "train.snapshots=3", "train.meta_batch=4", "train.way=3", "train.query=2"]
    proposer = "proposer={name: sequence, updates: 2, proposer: instances}"
    test = ["evaluate.episodes=[[3,1]]", "evaluate.tasks=4", f"out={tmp_path}"]
    assert main(["run", "omniglot_sequence_maml", proposer, *digits, *train, *test, "--device", "cpu"]) == 0
    folder = tmp_path / "runs" / "omniglot_sequence_maml"
    found = json.loads((folder / "report.json").read_text())["extrapolation"]["tasks met, 3-way 1-shot"]
    assert {name: list(cells) for name, cells in found.items()} == {
        "when they came": ["4", "8"],
        "in hindsight": ["4", "8"],
    }
    run = load_run(folder, device="cpu")
    tasks = load_tasks(run.config)[0].tasks
    batch = tasks.sample(np.arange(8, 12), episode=run.config.train.episode, seed=run.config.seed)
    query = batch.query()
    for name, theta in (("when they came", list(snapshots(run, "cpu"))[1][1].theta), ("in hindsight", run.theta)):
        with torch.no_grad():
            output = run.learner.predict(theta, run.learner.adapt(theta, batch.support()), query.x)
        assert found[name]["8"]["mean"] == pytest.approx(100 * (output.argmax(-1) == query.y).float().mean().item())
