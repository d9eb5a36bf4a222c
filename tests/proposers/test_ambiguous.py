"""Ambiguous tasks: supports that both readings explain, queries that follow one, and what is made of them by hand."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from umeta.cli.main import main
from umeta.config.build import load
from umeta.config.registry import build_part
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.evaluation.images import check
from umeta.evaluation.readings import judge_readings
from umeta.runtime.loop import RunContext
from umeta.tasks.ambiguous import Ambiguous
from umeta.tasks.instances import InstanceTasks
from umeta.tasks.store import load_saved, save_tasks
from umeta.testing import check_proposer
from umeta.types import EpisodeSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
EPISODE, TASKS = EpisodeSpec(2, 3, 5), np.arange(40)


def test_both_readings_explain_the_support_and_one_of_them_the_query() -> None:
    plain = InstanceTasks(PIXELS)
    before, after = (tasks.sample(TASKS, episode=EPISODE, seed=0) for tasks in (plain, Ambiguous(plain)))
    found = set()
    for t in TASKS:
        shown, dim = {}, {}
        for name in ("support", "query"):
            old, new = (getattr(batch, name)() for batch in (before, after))
            as_it_is = (new.x[t] == old.x[t]).flatten(1).all(1)
            torch.testing.assert_close(new.x[t], torch.where(as_it_is[:, None, None, None], old.x[t], 0.4 * old.x[t]))
            shown[name], dim[name] = old.y[t], ~as_it_is
            told = new.y[t]
            if name == "support":
                assert torch.equal(told, shown[name])
                one = int(told[dim[name]][0])  # the class that is dimmed
                assert torch.equal(dim[name], told == one)
        by_shade = torch.where(dim["query"], one, 1 - one)
        assert (by_shade != shown["query"]).reshape(2, 5).sum(1).tolist() == [2, 2]  # of either class
        readings = [torch.equal(told, labels) for labels in (shown["query"], by_shade)]
        assert sum(readings) == 1
        found.add((one, readings[1]))
    assert found == {(one, by_shade) for one in (0, 1) for by_shade in (False, True)}


def test_a_task_reread_differs_in_the_labels_of_what_is_open() -> None:
    batch = Ambiguous(InstanceTasks(PIXELS)).sample(TASKS, episode=EPISODE, seed=0)
    again = batch.reread()
    assert torch.equal(batch.query().x, again.query().x)
    assert torch.equal(batch.support().y, again.support().y)
    assert (batch.query().y != again.query().y).sum(1).tolist() == [4] * 40


def test_contract_and_file(tmp_path: Path) -> None:
    proposer = build_part("proposer", {"name": "ambiguous", "proposer": {"name": "random_labels", "k": 6}})
    check_proposer(proposer, episode=EpisodeSpec(2, 2, 3))
    images = UnlabelledImages.of(PIXELS)
    tasks = proposer.propose(images, RunContext())
    assert not proposer.sees_labels
    loaded = load_saved(save_tasks(tasks, tmp_path), tmp_path, images)
    episode = EpisodeSpec(2, 1, 2)
    drawn = [each.sample(TASKS, episode=episode, seed=0).query() for each in (tasks, loaded)]
    assert torch.equal(drawn[0].x, drawn[1].x)
    assert torch.equal(drawn[0].y, drawn[1].y)
    assert "dimmed" in tasks.describe(episode)[-1]


@pytest.mark.parametrize("episode", [EpisodeSpec(3, 1, 2), EpisodeSpec(2, 1, 1)])
def test_other_tasks_are_refused(episode: EpisodeSpec) -> None:
    with pytest.raises(UserError, match="two ways, and at least two queries a class"):
        Ambiguous(InstanceTasks(PIXELS)).sample(TASKS, episode=episode, seed=0)


def test_an_evaluation_that_cannot_be_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="two ways"):
        check(load("omniglot_instances_protonet", ["evaluate.ambiguous=true"]))


def test_readings_by_hand() -> None:
    """Two queries that the readings agree on and two that they differ on, of one who knows both and one who hedges."""
    y, other = torch.tensor([[0, 1, 0, 1]]), torch.tensor([[0, 1, 1, 0]])
    sure = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
    one, two = sure[y[0]], sure[other[0]]  # the answers of each reading
    hedge = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5]])
    expected = {  # accuracy, an open item, all items, readings
        "both": ([one, two], [100, math.log(0.5), math.log((0.9**4 + 0.9**2 * 0.1**2) / 2), 2]),
        "hedged": ([hedge], [100, math.log(0.5), math.log(0.9**2 * 0.5**2), 1]),
        "wrong": ([two], [100, math.log(0.1), math.log(0.9**2 * 0.1**2), 1]),
        "ignorant": ([1 - one, 1 - one], [0, math.log(0.1), math.log(0.1**4), 1]),
    }
    for answers, numbers in expected.values():
        found = judge_readings(torch.stack(answers)[None].log(), y, other)
        assert [value.item() for value in found.values()] == pytest.approx(numbers, abs=1e-5)


def test_evaluation_reports_them(made_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made_run("protonet"), folder)
    settings = ["evaluate.episodes=[[2,2]]", "evaluate.tasks=16", "evaluate.baselines=[]", "evaluate.ambiguous=true"]
    assert main(["evaluate", str(folder), *settings, "--device", "cpu"]) == 0
    result = json.loads((folder / "report.json").read_text())
    found = result["readings"]["ambiguous, 2-way 2-shot"][result["title"]]
    assert found["readings covered"]["mean"] == 1
    assert found["log-likelihood, all queries"]["mean"] < math.log(0.5)
    for page in ("report.md", "report.html"):
        assert "readings covered" in (folder / page).read_text()
