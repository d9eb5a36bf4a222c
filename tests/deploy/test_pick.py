"""Which pictures to label first: one of each group, typical of it, and none of a group that has a label."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from umeta.deploy.pick import choose, typicality

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
