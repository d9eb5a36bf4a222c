"""Shifted domains: support and query of a task look apart, each in one way, and evaluation can be so too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from umeta.cli.main import main
from umeta.config.registry import build_part
from umeta.data.images import UnlabelledImages
from umeta.errors import UserError
from umeta.runtime.loop import RunContext
from umeta.tasks.instances import InstanceTasks
from umeta.tasks.shifted import Shifted
from umeta.tasks.store import load_saved, save_tasks
from umeta.testing import check_proposer
from umeta.types import EpisodeSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
EPISODE = EpisodeSpec(4, 2, 3)


def find_domain(before: np.ndarray, after: np.ndarray) -> int:
    """Which turn it is, and whether of the negative."""
    looks = [np.rot90(image, turn, (-2, -1)) for image in (before, 1 - before) for turn in range(4)]
    (found,) = (i for i, look in enumerate(looks) if np.allclose(look, after))
    return found


@pytest.mark.parametrize("domains", [2, 8])
def test_support_and_query_are_of_two_domains_all_of_which_occur(domains: int) -> None:
    plain, numbers = InstanceTasks(PIXELS), np.arange(60)
    drawn = [tasks.sample(numbers, episode=EPISODE, seed=0) for tasks in (plain, Shifted(plain, domains))]
    pairs = set()
    for t in range(60):
        sides = [(batch.support().x[t].numpy(), batch.query().x[t].numpy()) for batch in drawn]
        found = [{find_domain(*images) for images in zip(*side, strict=True)} for side in zip(*sides, strict=True)]
        assert [len(side) for side in found] == [1, 1]
        pairs.add((*found[0], *found[1]))
    assert all(support != query for support, query in pairs)
    assert {domain for pair in pairs for domain in pair} == set(range(domains))


def test_contract_and_file(tmp_path: Path) -> None:
    base = {"name": "random_labels", "k": 6}
    proposer = build_part("proposer", {"name": "shifted", "proposer": base, "domains": 4})
    check_proposer(proposer)
    images = UnlabelledImages.of(PIXELS)
    tasks = proposer.propose(images, RunContext())
    loaded = load_saved(save_tasks(tasks, tmp_path), tmp_path, images)
    drawn = [each.sample(np.arange(3), episode=EPISODE, seed=0).query().x for each in (tasks, loaded)]
    assert torch.equal(*drawn)
    assert "4 domains" in tasks.describe(EPISODE)[-1]


def test_pictures_that_cannot_be_turned_are_refused() -> None:
    with pytest.raises(UserError, match="square"):
        Shifted(InstanceTasks(PIXELS[..., :6]))


def test_evaluation_reports_the_accuracy_over_domains(made_run: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(made_run("protonet"), folder)
    settings = ["evaluate.episodes=[[5,1]]", "evaluate.tasks=16", "evaluate.baselines=[]", "evaluate.domains=[1,8]"]
    assert main(["evaluate", str(folder), *settings, "--device", "cpu"]) == 0
    result = json.loads((folder / "report.json").read_text())
    found = result["extrapolation"]["domains, 5-way 1-shot"][result["title"]]
    assert found["1"] == result["rows"][result["title"]]["5-way 1-shot"]
    assert found["8"]["mean"] < found["1"]["mean"]
