"""Tasks with unequally many queries of each class: how many, which ones, and what evaluation reports of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from umeta import seeds
from umeta.benchmarks.labelled import LabelledImages
from umeta.benchmarks.unbalanced import Unbalanced, draw_counts
from umeta.cli.main import main
from umeta.data.digits import Digits
from umeta.errors import UserError
from umeta.evaluation.images import evaluate
from umeta.report.tables import make_table
from umeta.stages.runs import load_run
from umeta.tasks.partition import PartitionTasks
from umeta.types import EpisodeSpec

EPISODE = EpisodeSpec(3, 2, 4)
LABELS = np.arange(100) % 5
TASKS = PartitionTasks(np.arange(100.0, dtype=np.float32)[:, None], LABELS[None])


@pytest.mark.parametrize("concentration", [0.5, 2, 30])
def test_shares_are_of_a_dirichlet_distribution(concentration: float) -> None:
    keys = seeds.key(0, np.arange(4000)[:, None], np.arange(4))
    counts = draw_counts(keys, concentration, 10**6)
    found = counts / 10**6
    expected = np.random.default_rng(0).dirichlet([concentration] * 4, 200_000)
    assert (counts.sum(1) == 10**6).all()
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        below = np.quantile(expected, share)
        assert (found < below).mean(0) == pytest.approx(share, abs=0.025)
    assert np.cov(found.T)[0, 1] == pytest.approx(np.cov(expected.T)[0, 1], rel=0.15)


def test_counts_are_the_nearest_to_the_shares() -> None:
    keys = seeds.key(1, np.arange(200)[:, None], np.arange(3))
    exact = draw_counts(keys, 2, 10**9) / 10**9 * 7
    possible = np.array([counts for counts in product(range(8), repeat=3) if sum(counts) == 7])
    nearest = possible[((exact[:, None] - possible) ** 2).sum(2).argmin(1)]
    np.testing.assert_array_equal(draw_counts(keys, 2, 7), nearest)


def test_a_task_has_as_many_queries_of_its_own_classes_and_depends_on_its_number_alone() -> None:
    tasks = Unbalanced(TASKS, 2)
    batch = tasks.sample(np.arange(60), episode=EPISODE, seed=0)
    assert batch.query_index.shape == (60, 12)
    assert batch.support_index.shape == (60, 6)
    counts = []
    for support, known, query, asked in zip(
        batch.support_index, batch.support_label, batch.query_index, batch.query_label, strict=True
    ):
        classes = {int(label): int(LABELS[i]) for i, label in zip(support, known, strict=True)}
        assert [classes[int(label)] for label in asked] == LABELS[query].tolist()
        assert len({*support.tolist(), *query.tolist()}) == 18
        counts.append(np.bincount(asked, minlength=3))
    assert np.ptp(counts, 1).mean() > 3
    np.testing.assert_array_equal(
        counts, draw_counts(seeds.key(0, "shares", np.arange(60)[:, None], np.arange(3)), 2, 12)
    )
    alone = tasks.sample(np.array([41]), episode=EPISODE, seed=0)
    assert alone.query_index[0].tolist() == batch.query_index[41].tolist()


def test_too_few_items_are_said_before_anything_runs(
    made_run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UserError, match=r"evaluate\.dirichlet: all 24 queries may be of one class: .* 26 items a class"
    ):
        Unbalanced(TASKS, 2).sample(np.arange(1), episode=EpisodeSpec(3, 2, 8), seed=0)
    assert main(["evaluate", str(made_run("protonet")), "evaluate.query=90", "evaluate.dirichlet=2"]) == 2
    assert "evaluate.dirichlet: all 450 queries" in capsys.readouterr().err


def test_the_learner_and_its_variants_stand_in_a_table_of_their_own(
    made_run: Callable[..., Path], tmp_path: Path
) -> None:
    folder, record = tmp_path / "run", tmp_path / "results.json"
    shutil.copytree(made_run("protonet"), folder)
    settings = ["evaluate.episodes=[[3,1],[3,2]]", "evaluate.query=4", "evaluate.tasks=16", "evaluate.baselines=[]"]
    settings += ["evaluate.dirichlet=0.7", "evaluate.variants={OpTA: {transport: true}}"]
    assert main(["evaluate", str(folder), *settings, "--device", "cpu", "--record", str(record)]) == 0
    result = json.loads((folder / "report.json").read_text())
    own, name = result["title"], f"{result['title']}, OpTA, transductive"
    (told, rows), *_ = result["unbalanced"].items()
    assert told == "Dirichlet queries, 0.7 a class"
    assert list(rows) == [own, name]
    columns = [f"3-way {shot}-shot, {kind}" for shot in (1, 2) for kind in ("balanced", "Dirichlet")]
    run, tasks = load_run(folder, device="cpu"), LabelledImages.load(Digits(), "test").tasks()
    for row in rows:
        assert list(rows[row]) == columns
        assert rows[row][columns[0]] == result["rows"][row]["3-way 1-shot"]
    for shot in (1, 2):
        found = evaluate(run.learner, run.theta, Unbalanced(tasks, 0.7), EpisodeSpec(3, shot, 4), count=16)
        assert rows[own][f"3-way {shot}-shot, Dirichlet"]["mean"] == pytest.approx(100 * found.mean(), abs=1e-4)
    for page in ("report.md", "report.html"):
        text = (folder / page).read_text()
        assert "unequal shares of a Dirichlet distribution" in text
        assert "3-way 1-shot, Dirichlet" in text
    table = make_table({"results.json": record}, change=told)
    assert f"| {name} |" in table
    assert "inductive unless a row says transductive" in table
