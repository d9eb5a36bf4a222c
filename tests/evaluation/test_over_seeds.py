"""Several seeds of one config: their mean, and what it is recorded as."""

import json

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from umeta.report.write import average_seeds, own_rows, tabulate

FEW = ["embedding.steps=2", "proposer.partitions=2", "proposer.k=20", "train.steps=2", "evaluate.tasks=5"]


def result(seed, *means):
    cells = {f"{i}-way": {"mean": mean, "interval": 9.0, "tasks": 5} for i, mean in enumerate(means)}
    rows = {
        "chance": {"0-way": {"mean": 20.0, "interval": 0.0}},
        f"X, seed {seed}": cells,
        f"X, seed {seed}, soft": cells,
    }
    made = dict.fromkeys(("hardware", "umeta", "commit", "date", "config"))
    return {**made, "name": f"x-seed{seed}", "title": f"X, seed {seed}", "seed": seed, "protocol": {}, "rows": rows}


def test_the_interval_is_students():
    found = average_seeds([result(3, 50.0, None), result(4, 53.0, 1.0), result(5, 58.0, 1.0)])
    cell = found["rows"]["X, mean of 3 seeds"]["0-way"]
    low, high = ttest_1samp([50, 53, 58], 0).confidence_interval(0.95)
    assert cell["mean"] == pytest.approx(np.mean([50, 53, 58]))
    assert (cell["mean"] - cell["interval"], cell["mean"] + cell["interval"]) == pytest.approx((low, high))
    assert found["rows"]["X, mean of 3 seeds"]["1-way"]["mean"] is None  # one of them diverged
    assert list(found["rows"]) == ["X, mean of 3 seeds", "X, mean of 3 seeds, soft"] == own_rows([found])
    assert found["seed"] == "3, 4, 5"


def test_run_with_seeds_shows_and_records_each_and_their_mean(tmp_path, umeta):
    record = tmp_path / "results.json"
    words = ["run", "digits_acai_kmeans_protonet", "--seeds", 2, "--seed", 7, *FEW, "evaluate.baselines=[]"]
    code, out, err = umeta(*words, f"out={tmp_path}", "--record", record, "--device=cpu")
    assert code == 0, err
    kept = json.loads(record.read_text())
    assert [one["seed"] for one in kept] == [7, 8, "7, 8"]
    first, second, mean = (one["rows"][one["title"]]["5-way 1-shot"]["mean"] for one in kept)
    assert first != second
    assert mean == pytest.approx((first + second) / 2)
    assert "CACTUs-ProtoNet, mean of 2 seeds" in out
    assert "mean of 2 seeds" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert len(tabulate(kept)) == 5  # the header, chance, two seeds and their mean


def test_what_seeds_cannot_be(tmp_path, refused):
    refused("run", "digits_acai_kmeans_protonet", "--seeds", 0, says=["--seeds 0", "1 or more"])
    refused("run", "--images", tmp_path, "--seeds", 2, says=["--seeds"])
