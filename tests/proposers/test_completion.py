"""Images to complete: tasks against the images themselves, what is painted of them, and a run with its picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from umeta.cli.main import main
from umeta.config.registry import build_part
from umeta.draw.mosaic import TILE
from umeta.draw.regression import UNSEEN, paint
from umeta.errors import UserError
from umeta.runtime.loop import RunContext
from umeta.tasks.completion import PixelTasks
from umeta.testing import same, sampled
from umeta.types import EpisodeSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
TASKS, NUMBERS, EPISODE = PixelTasks(PIXELS), np.arange(40), EpisodeSpec(1, 7, 17)


def test_a_task_is_an_image_and_its_points_are_pixels_of_it() -> None:
    pairs = ((b.x, b.y) for b in sampled(TASKS, NUMBERS, EPISODE, 0))
    x, y = (torch.cat(both, 1).numpy() for both in zip(*pairs, strict=True))
    assert (x.shape, y.shape, TASKS.spec.outputs) == ((40, 24, 2), (40, 24, 3), 3)
    found = set()
    for places, colours in zip(x, y, strict=True):
        row, column = np.rint((places + 1) * [1.5, 2.5]).astype(int).T  # from -1 to 1 to 0 to 3, and 0 to 5
        assert len({*zip(row, column, strict=True)}) == 24  # all pixels, each once
        of = [i for i in range(5) if np.allclose(PIXELS[i][:, row, column].T / 255, colours)]
        assert len(of) == 1
        found.add(of[0])
    assert found == set(range(5))


def test_a_task_depends_on_its_number_and_the_seed_alone() -> None:
    many = sampled(TASKS, NUMBERS, EPISODE, 0)
    assert same(sampled(TASKS, np.array([4]), EPISODE, 0), tuple(part.chunk(4, 5) for part in many))
    assert not same(many, sampled(TASKS, NUMBERS, EPISODE, 1))


def test_painting_all_pixels_gives_the_image_and_some_leave_the_others_blue() -> None:
    support, query = sampled(TASKS, NUMBERS, EPISODE, 0)
    whole = TASKS.draw(NUMBERS, 0)
    for t in range(3):
        x, y = (torch.cat([s[t], q[t]]).numpy() for s, q in ((support.x, query.x), (support.y, query.y)))
        true = np.rint(255 * whole[t].numpy())
        assert np.array_equal(paint(x, y, (3, 4, 6)), true)
        some = paint(x[:7], y[:7], (3, 4, 6))
        blue = (some == np.reshape(UNSEEN, (3, 1, 1))).all(0)
        assert blue.sum() == 24 - 7
        assert np.array_equal(some[:, ~blue], true[:, ~blue])
    assert paint(np.zeros((1, 2)), np.array([[1.7]]), (1, 1, 1)).tolist() == [[[255]]] * 3


def test_more_pixels_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="25 pixels of each image"):
        TASKS.sample(NUMBERS, episode=EpisodeSpec(1, 20, 5), seed=0)


def test_tasks_to_test_on_are_of_the_test_images() -> None:
    proposer = build_part("proposer", {"name": "completion", "data": "digits"})
    assert not proposer.sees_labels
    train, test = proposer.propose(None, RunContext()), proposer.test()
    both = [{one.tobytes() for one in tasks.items.numpy()} for tasks in (train, test)]
    assert not both[0] & both[1]
    assert "28x28" in train.describe(EPISODE)[0]


@pytest.mark.parametrize("name", ["neural_process", "maml"])
def test_a_run_ends_with_a_picture_of_completions(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {
        "proposer": {"name": "completion", "data": "digits"},
        "metalearner": {"name": name, "model": {"name": "mlp", "hidden": [8]}},
        "train": {"outer": "adam", "steps": 2, "shot": 20, "query": 20, "meta_batch": 2},
        "evaluate": {"shots": [10, 40], "query": 20, "tasks": 4, "steps": 1, "baselines": []},
    }
    Path("pixels.yaml").write_text(yaml.safe_dump(config))
    assert main(["run", "pixels.yaml", "--device", "cpu"]) == 0
    result = json.loads(Path("runs/pixels/report.json").read_text())
    assert result["protocol"]["proposed_with"] == "images without labels"
    assert "40 points, 1 step" in result["rows"]["pixels"]
    columns = {"neural_process": 6, "maml": 3}[name]  # what is known, the answer, three draws of it, the truth
    picture = np.asarray(Image.open("runs/pixels/fits.png"))
    assert picture.shape == (6 * TILE, 160 + columns * TILE, 3)
