"""Which pictures to label first: one of each group, typical of it, and none of a group that has a label."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from umeta.deploy.pick import choose, choose_beside, find_doubt, find_entropy, typicality
from umeta.deploy.seen import BLOCK, Seen, see

GROUPS = 6


@pytest.fixture
def groups() -> tuple[np.ndarray, np.ndarray]:
    """Vectors around six directions, the first with most, and which each is around."""
    random = np.random.default_rng(0)
    centres = np.linalg.qr(random.normal(size=(16, 16)))[0][:GROUPS]
    member = np.repeat(np.arange(GROUPS), [60, 50, 40, 30, 20, 10])
    return (centres[member] + 0.05 * random.normal(size=(len(member), 16))).astype(np.float32), member


def test_each_group_gives_its_most_typical_item_the_largest_first(groups):
    z, member = groups
    chosen = choose(z, GROUPS)
    assert member[chosen].tolist() == list(range(GROUPS))
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    for i in chosen:
        inside = np.flatnonzero(member == member[i])
        near = [np.sort(unit[inside] @ unit[j])[::-1][1:21].mean() for j in inside]
        assert i == inside[np.argmax(near)]


def test_groups_with_a_label_are_passed_over(groups):
    z, member = groups
    labelled = np.array([0, 1, 60])  # of the groups 0 and 1
    chosen = choose(z, 3, labelled)
    assert not set(chosen) & set(labelled)
    assert set(member[choose(z, GROUPS - 2, np.array([0, 60]))]) == set(range(2, GROUPS))


def test_of_groups_with_labels_what_is_in_doubt_comes_first():
    random = np.random.default_rng(0)
    centres = np.linalg.qr(random.normal(size=(16, 16)))[0][:4]
    centres[1] = 0.8 * centres[0] + 0.6 * centres[1]  # two that are taken for each other, and two that are not
    member = np.repeat(np.arange(4), 20)
    z = centres[member] + 0.02 * random.normal(size=(80, 16))
    chosen = choose(z, 4, np.array([0, 20, 40, 60]), np.arange(4))
    assert member[chosen[0]] in (0, 1)
    assert len(set(chosen)) == 4
    assert not set(chosen) & {0, 20, 40, 60}


def test_doubt_is_one_between_two_prototypes_and_least_at_one():
    shown, labels = np.eye(3)[:2], np.array([7, 3])
    between = np.array([[1.0, 1, 0]]) / 2**0.5
    assert find_doubt(np.concatenate([between, shown]), shown, labels) == pytest.approx([1, 0.5, 0.5])
    assert find_doubt(between, shown[:1], labels[:1]).tolist() == [1]


def test_entropy_is_one_where_nothing_is_known_and_zero_where_all_is():
    answers = np.array([[1, 1, 1, 1], [4, 0, 0, 0], [2, 2, 0, 0]], np.float32) / 4
    assert find_entropy(answers) == pytest.approx([1, 0, 0.5])
    assert find_entropy(np.ones((2, 1))).tolist() == [1, 1]


def test_a_learner_without_prototypes_is_asked_what_it_is_unsure_of():
    """Of pictures of one group among many, more than are looked at together, and an example that is one of them."""
    random = np.random.default_rng(0)
    member = np.repeat(np.arange(4), BLOCK)
    z = np.eye(8)[member] + 0.05 * random.normal(size=(len(member), 8))
    items = random.integers(0, 256, (len(member), 1, 4, 4), dtype=np.uint8)
    of = dict(zip((one.tobytes() for one in items), range(len(items)), strict=True))
    shown = np.arange(4) * BLOCK

    def find(pictures):
        return [of[one.tobytes()] for one in pictures]

    learner: Any = SimpleNamespace(
        support=items[shown],
        labels=np.arange(4),
        adapted=SimpleNamespace(params={"weight": None}),
        source=SimpleNamespace(features=lambda pictures: torch.from_numpy(z[find(pictures)])),
        probabilities=lambda pictures: np.where(member[find(pictures)][:, None] == 2, 0.25, np.eye(4)[0]),
    )
    chosen = choose_beside(learner, Seen([], list(items), z, []), 3)
    assert member[chosen][0] == 2
    assert not set(chosen) & set(shown)


def test_doubt_that_is_given_takes_the_place_of_prototypes(groups):
    z, member = groups
    doubt = np.where(member == 4, 1.0, 0.001)
    labelled = np.array([0, 60, 110, 150, 180, 200])
    assert member[choose(z, 1, labelled, doubt=doubt)].tolist() == [4]


@pytest.mark.parametrize("count", [1, 5, 50])
def test_no_more_than_there_are_and_never_one_twice(count):
    z = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    chosen = choose(z, count)
    assert len(set(chosen)) == len(chosen) == min(count, 7)
    assert typicality(z[:1]).tolist() == [1.0]
    assert choose(np.ones((9, 4), np.float32), 3).tolist() == [0]  # of copies one says it all


def test_the_command_writes_a_list_a_sheet_and_copies(made_run, umeta, draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = draw(tmp_path / "photos", cat=6, dog=6, side=8)
    run = made_run("protonet", normalisation="running")
    code, out, _ = umeta("pick", run, photos, "-n", 4, "--device", "cpu")
    assert code == 0
    rows = list(csv.DictReader(Path("pick/pick.csv").read_text().splitlines()))
    assert len(rows) == 4
    for row in rows:
        assert (tmp_path / "pick" / row["path"]).read_bytes() == Path(row["original"]).read_bytes()
        assert row["original"] in out
    # filled in, it is what adapt takes
    text = Path("pick/pick.csv").read_text().splitlines()
    filled = [line.replace(",,", f",{'ab'[i % 2]},") for i, line in enumerate(text[1:])]
    Path("pick/pick.csv").write_text("\n".join([text[0], *filled]))
    assert umeta("adapt", run, "--support", "pick/pick.csv", "--out", "learner", "--device", "cpu")[0] == 0
    # and of what that knows nothing is asked for again
    code, out, _ = umeta("pick", "learner", photos, "-n", 20, "--out", "next", "--device", "cpu")
    assert code == 0
    assert "umeta adapt learner --add" in out
    following = {row["original"] for row in csv.DictReader(Path("next/pick.csv").read_text().splitlines())}
    assert following
    assert not following & {row["original"] for row in rows}


def test_what_it_cannot_do_is_said(made_run, refused, draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = draw(tmp_path / "photos", flat=5, side=8)
    run = made_run("protonet", normalisation="running")
    refused("pick", run, photos, "-n", 0, says=["-n 0", "1 or more"])
    refused("pick", run, photos, "--out", photos / "pick", says=["within the pictures"])
    refused("pick", run, tmp_path / "none", says=["none", "no such folder"])
    (tmp_path / "pick").mkdir()
    (tmp_path / "pick" / "mine").touch()
    refused("pick", run, photos, says=["pick exists"])


def test_a_picture_that_vanishes_meanwhile_is_named_and_nothing_is_left(made_run, refused, draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = draw(tmp_path / "photos", flat=5, side=8)
    look = see

    def vanish(*args):
        seen = look(*args)
        for path in photos.iterdir():
            path.unlink()
        return seen

    monkeypatch.setattr("umeta.deploy.pick.see", vanish)
    refused("pick", made_run("protonet", normalisation="running"), photos, says=[".png", "no such file"])
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
