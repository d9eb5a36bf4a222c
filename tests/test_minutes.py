"""Accuracy after minutes: whose turn it is, that it goes on where it was, and that answers are what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bench import minutes
from bench.recipes import METHODS, Training, answer_by_prototypes, features
from umeta.tasks.partition import PartitionTasks
from umeta.types import EpisodeSpec


def test_methods_take_turns_and_what_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
    asked = []

    def ask(question, data):
        asked.append((question["seed"], question["minutes"], question["method"]))
        if question["method"].startswith("DINO"):
            return {"missing": "No module named 'lightly'"}
        value = 50 + question["minutes"] + 10 * question["seed"]
        return {"accuracy": {"1": [value, 1], "5": [value + 5, 1]}, "took": 1, "threads": 2}

    monkeypatch.setattr(minutes, "ask", ask)
    origin = {"date": "2026-01-02", "commit": "cafe", "hardware": "a slow machine"}
    monkeypatch.setattr(minutes, "find_origin", lambda: origin)
    places = ["--out", str(tmp_path / "a.json"), "--picture", str(tmp_path / "a.png"), "--datasets", "omniglot"]
    some = ["--methods", "umeta", "DINO, lightly", "pixels"]
    minutes.main([*places, *some, "--minutes", "3", "1", "--seeds", "2"])
    turns = [(s, m, method) for s in (0, 1) for m in (1, 3) for method in ("umeta", "DINO, lightly")]
    assert [turn for turn in asked if turn[2] != "pixels"] == turns
    assert [turn for turn in asked if turn[2] == "pixels"] == [(0, 1, "pixels")]
    said = capsys.readouterr().out
    assert "| umeta | 56.0 / 61.0 | 58.0 / 63.0 |" in said
    assert "| DINO, lightly | No module named 'lightly' |" in said
    assert "\n2026-01-02, a slow machine; commits cafe;" in said
    asked.clear()
    origin = origin | {"hardware": "a fast machine"}
    minutes.main([*places, *some, "--minutes", "1", "3", "--seeds", "3"])
    assert {turn[0] for turn in asked if turn[2] == "umeta"} == {2}
    assert len([turn for turn in asked if turn[2].startswith("DINO")]) == 6  # which is asked for again
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert len(rows) == 13
    slow = {(row["seed"], row["method"]) for row in rows if row["hardware"] == "a slow machine"}
    assert slow == {(0, "pixels"), (0, "umeta"), (1, "umeta")}  # what was measured earlier stays that machine's
    assert "\n2026-01-02, a slow machine, a fast machine; commits cafe;" in capsys.readouterr().out
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_the_nearest_prototype_answers():
    labels = np.arange(60) % 6
    items = np.eye(6, dtype=np.float32)[labels].reshape(60, 1, 2, 3) + 0.01
    tasks = PartitionTasks(items, labels)
    assert answer_by_prototypes(lambda x: x, tasks, EpisodeSpec(5, 1, 5), 10).tolist() == [1.0] * 10
    blind = answer_by_prototypes(torch.ones_like, tasks, EpisodeSpec(5, 1, 5), 10)
    assert blind.mean() == pytest.approx(0.2, abs=0.05)


def test_networks_are_trained_in_the_mode_for_training():
    training = Training(np.zeros((4, 3, 16, 16), np.uint8), np.arange(4), 1, seed=0)
    net = training.network(3)
    assert features(net, training) == 256 * 2 * 2
    assert all(part.training for part in net.modules())
    assert net[2].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        pytest.param("umeta", 60, marks=pytest.mark.slow),  # as long as the command itself takes
        ("ProtoNet with labels, plain loop", 0.2),
        ("pixels", 0.2),
    ],
)
def test_methods_learn_and_answer(name, seconds):
    draw = np.random.default_rng(0)
    patterns = draw.integers(0, 200, (8, 1, 1, 16, 16))
    pixels = (patterns + draw.integers(0, 56, (8, 20, 1, 16, 16))).reshape(160, 1, 16, 16).astype(np.uint8)
    labels = np.arange(8).repeat(20)
    answer = METHODS[name](Training(pixels, labels, seconds, seed=0))
    found = answer(PartitionTasks(pixels, labels), EpisodeSpec(5, 1, 5), 8)
    assert found.shape == (8,)
    assert found.mean() > 0.4
