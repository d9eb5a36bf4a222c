"""Learners that grow and shrink: the same as adapting to those examples at once; and how often they are right."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from umeta.data.digits import Digits
from umeta.deploy.adapted import AdaptedLearner

TEST = Digits().read("test")
KINDS = {"protonet": {"normalisation": "running"}, "maml": {"normalisation": "support"}}


def draw(root: Path, **classes: tuple[int, int, int]) -> Path:
    """`draw(root, five=(5, 0, 2))` writes images 0 and 1 of class 5 into root/five."""
    for name, (label, start, stop) in classes.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(start, stop):
            Image.fromarray(TEST.pixels[np.flatnonzero(TEST.labels == label)[i], 0]).save(root / name / f"{i}.png")
    return root


@pytest.fixture(params=KINDS)
def run(request, made_run):
    return made_run(request.param, **KINDS[request.param])


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "support", zero=(0, 0, 2), one=(1, 0, 3))
    draw(tmp_path / "more", one=(1, 3, 4), two=(2, 0, 2))
    return tmp_path


def answers(folder: str) -> dict[str, np.ndarray]:
    learner = AdaptedLearner.load(Path(folder), device="cpu")
    return dict(zip(learner.classes, learner.probabilities(TEST.pixels[:40]).T, strict=True))


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=1e-4)


def test_adding_renaming_and_removing_are_as_adapting_at_once(run, place, umeta):
    assert umeta("adapt", run, "--support", "support", "--out", "first", "--device", "cpu")[0] == 0
    changes = ["--add", "more", "--rename", "zero=nought", "--remove", "one:2"]
    code, _, err = umeta("adapt", "first", *changes, "--out", "second", "--device", "cpu")
    assert code == 0
    assert "calibrated" not in err  # it is, as its run is at hand
    draw(place / "all", nought=(0, 0, 2), one=(1, 0, 1), two=(2, 0, 2))
    draw(place / "all", one=(1, 2, 4))
    assert umeta("adapt", run, "--support", "all", "--out", "at-once", "--device", "cpu")[0] == 0
    same(answers("second"), answers("at-once"))
    assert umeta("adapt", "second", "--remove", "two", "--out", "third", "--device", "cpu")[0] == 0
    assert answers("third").keys() == {"nought", "one"}
    assert answers("first").keys() == {"zero", "one"}  # as it was


def test_what_cannot_be_changed_is_said(made_run, place, refused, umeta):
    run = made_run("protonet", normalisation="running")
    umeta("adapt", run, "--support", "support", "--out", "first", "--device", "cpu")
    refused("adapt", "first", "--remove", "zer", "--out", "x", says=["--remove zer", "did you mean 'zero'?"])
    refused("adapt", "first", "--remove", "zero:3", "--out", "x", says=["--remove zero:3", "2 examples"])
    refused("adapt", "first", "--rename", "zer=a", "--out", "x", says=["--rename zer", "did you mean 'zero'?"])
    refused("adapt", "first", "--rename", "zero", "--out", "x", says=["OLD=NEW"])
    refused("adapt", "first", "--remove", "zero", "--remove", "one", "--out", "x", says=["no example is left"])
    refused("adapt", "first", "--add", "none", "--out", "x", says=["none: no such folder"])
    refused("adapt", "first", "--out", "x", says=["--support PLACE for a run"])
    refused("adapt", run, "--support", "support", "--add", "more", "--out", "x", says=["--support PLACE for a run"])
    refused("adapt", run, "--add", "more", "--out", "x", says=["a run, which knows no classes yet"])
    refused("adapt", "first", "--add", "more", "--out", "first", says=["first exists"])
    assert not (place / "x").exists()


def test_truth_is_counted_by_class(made_run, place, umeta):
    run = made_run("protonet", normalisation="running")
    umeta("adapt", run, "--support", "support", "--out", "learner", "--device", "cpu")
    draw(place / "labelled", zero=(0, 20, 26), one=(1, 20, 25), four=(4, 0, 3))
    code, out, _ = umeta("predict", "learner", "labelled", "--truth", "--device", "cpu", "--json")
    assert code == 0
    rows = list(csv.DictReader(Path("predictions.csv").read_text().splitlines()))
    pairs = [(Path(row["path"]).parent.name, row["label"]) for row in rows]
    truth = json.loads(out.splitlines()[-1])["truth"]
    assert truth["accuracy"] == pytest.approx(np.mean([a == b for a, b in pairs]))
    assert truth["classes"]["four"] == {"images": 3, "right": 0}
    matrix = list(csv.DictReader(Path("predictions-truth.csv").read_text().splitlines()))
    for row in matrix:
        for answer in ("one", "zero"):
            assert int(row[answer]) == pairs.count((row["true class"], answer))
    assert f"{truth['accuracy']:.1%} right" in out
    assert Image.open("predictions-truth.png").width > 100


def test_truth_needs_a_folder_per_class(made_run, place, umeta, refused):
    umeta("adapt", made_run("protonet", normalisation="running"), "--support", "support", "--out", "learner")
    refused("predict", "learner", "support/zero", "--truth", says=["lies in no class folder"])
    refused("predict", "learner", "support/zero/0.png", "--truth", says=["a folder per class"])
    Path("predictions-truth.csv").touch()
    refused("predict", "learner", "support", "--truth", says=["predictions-truth.csv exists"])
