"""Baselines on an embedding, the tuned training from scratch, curves over steps, and what an evaluation keeps."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.toys import Itself, batch, rand
from scipy.stats import kstest, norm
from sklearn.linear_model import LogisticRegression

from umeta.benchmarks import baselines
from umeta.benchmarks.labelled import LabelledImages
from umeta.config import build
from umeta.config.images import EvaluateConfig
from umeta.data.digits import Digits
from umeta.data.images import Items
from umeta.evaluation import images
from umeta.evaluation.images import trace_steps, train_from_scratch
from umeta.evaluation.run import evaluate_run
from umeta.models.conv4 import Conv4
from umeta.stages import metatrain, propose, runs
from umeta.tasks.partition import PartitionTasks
from umeta.testing import unchanged_randomness
from umeta.types import EpisodeSpec, TaskSpec

EPISODE = EpisodeSpec(3, 2, 4)


def vectors(noise: float, scale: float = 1, shift: float = 0) -> PartitionTasks:
    labels = np.arange(60) % 4
    z = np.eye(4)[labels] + np.random.default_rng(0).normal(0, noise, (60, 4))
    return PartitionTasks((z * scale + shift).astype(np.float32), labels[None])


# logistic regression


def test_the_linear_baseline_is_scikit_learns_with_the_penalty_of_cactus():
    tasks = vectors(0.8)
    found = baselines.linear(tasks, EPISODE, 12, seed=3)
    drawn = tasks.sample(np.arange(12), episode=EPISODE, seed=3)
    support, query = drawn.support(), drawn.query()
    for i in range(12):
        model = LogisticRegression(C=1.0, max_iter=200).fit(support.x[i].numpy(), support.y[i].numpy())
        assert found[i] == pytest.approx(model.score(query.x[i].numpy(), query.y[i].numpy()))
    assert not np.array_equal(found, baselines.linear(tasks, EPISODE, 12, seed=3, c=100.0))


# the MLP


def test_an_mlp_separates_what_no_line_does():
    """A disc, and a ring around it."""
    draw = np.random.default_rng(0)
    labels = np.arange(400) % 2
    angle, radius = draw.uniform(0, 2 * np.pi, 400), np.where(labels, 2, 0.5) + draw.normal(0, 0.1, 400)
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)
    tasks, episode = PartitionTasks(z, labels[None]), EpisodeSpec(2, 15, 15)
    assert baselines.linear(tasks, episode, 20, seed=0).mean() < 0.7
    assert baselines.mlp(tasks, episode, 20, seed=0).mean() > 0.95


def test_an_mlp_does_not_see_units_or_the_tasks_after_its_own():
    with unchanged_randomness("mlp"):
        found = baselines.mlp(vectors(0.5), EPISODE, 24, seed=1)
    assert found.shape == (24,)
    assert 0.5 < found.mean() < 1
    assert np.array_equal(found, baselines.mlp(vectors(0.5), EPISODE, 24, seed=1))
    assert np.array_equal(found[:16], baselines.mlp(vectors(0.5), EPISODE, 16, seed=1))
    assert np.abs(found - baselines.mlp(vectors(0.5, scale=1000, shift=30), EPISODE, 24, seed=1)).mean() < 0.02


def test_an_mlp_begins_as_he_initialisation_has_it(monkeypatch):
    """Normal, of the variance 2 / inputs (He et al. 2015), and without biases."""
    begun = []

    class Kept(torch.optim.Adam):
        def __init__(self, params, **options):
            begun.extend(value.detach().clone() for value in params)
            super().__init__(params, **options)

    monkeypatch.setattr(torch.optim, "Adam", Kept)
    tasks = vectors(0.5)
    baselines.mlp(tasks, EPISODE, 8, seed=0)
    first, last, *biases = begun
    assert not torch.cat([bias.flatten() for bias in biases]).any()
    for weight in (first, last):
        expected = norm(scale=(2 / weight.shape[1]) ** 0.5)
        assert kstest(weight.flatten().numpy(), expected.cdf).pvalue > 1e-3


def test_an_mlp_learns_from_the_support_alone():
    """Of the queries, only how often they are answered right depends on their labels: never the answers."""
    tasks = vectors(0.5)
    right = baselines.mlp(tasks, EPISODE, 8, seed=0)
    sample = tasks.sample

    def relabelled(*args, **options):
        batch = sample(*args, **options)
        return replace(batch, query_label=(batch.query_label + 1) % 3)

    tasks.sample = relabelled
    once = baselines.mlp(tasks, EPISODE, 8, seed=0)
    tasks.sample = lambda *args, **options: replace(
        batch := relabelled(*args, **options), query_label=(batch.query_label + 1) % 3
    )
    twice = baselines.mlp(tasks, EPISODE, 8, seed=0)
    np.testing.assert_allclose(
        right + once + twice, 1
    )  # each answer is right under exactly one of the three labellings


# cluster matching


def test_cluster_matching_is_the_rule_written_out():
    draw = np.random.default_rng(3)
    tasks = vectors(0.5)
    means = draw.normal(0.25, 0.5, (7, 4)).astype(np.float32)
    batch = tasks.sample(np.arange(30), episode=EPISODE, seed=2)
    expected = []
    for t in range(30):
        members: dict[int, list[int]] = {}
        for item, label in zip(batch.support_index[t], batch.support_label[t].tolist(), strict=True):
            nearest = int(np.linalg.norm(means - tasks.items[item].numpy(), axis=1).argmin())
            members.setdefault(nearest, []).append(label)
        majority = {
            c: min(Counter(labels).items(), key=lambda one: (-one[1], one[0]))[0] for c, labels in members.items()
        }
        right = [
            majority[min(majority, key=lambda c: np.linalg.norm(means[c] - tasks.items[item].numpy()))] == label
            for item, label in zip(batch.query_index[t], batch.query_label[t].tolist(), strict=True)
        ]
        expected.append(np.mean(right))
    found = baselines.cluster_matching(tasks, means, EPISODE, 30, seed=2)
    assert np.allclose(found, expected)
    assert 0.4 < found.mean() < 0.95


def test_clusters_that_are_the_classes_answer_everything():
    tasks = vectors(0.01)
    means = baselines.centroids(tasks.items.numpy(), 4, seed=0)
    assert np.allclose(means[means.argmax(1).argsort()], np.eye(4), atol=0.02)
    assert baselines.cluster_matching(tasks, means, EPISODE, 5, seed=0).tolist() == [1] * 5


# training from scratch


def test_training_from_scratch_steps_down_a_loss_that_is_way_times_the_mean():
    """As CACTUs does, from the same weights for every task."""
    learner = baselines.from_scratch(Itself(), lr=0.2, steps=2).build(TaskSpec((3,)), EpisodeSpec(4, 1, 1))
    theta = learner.init(0)
    x, y = rand(2, 6, 3), [[0, 1, 2, 3, 0, 1], [3, 3, 2, 1, 0, 2]]
    found = learner.adapt(theta, batch(x, y, 4)).params
    for t in range(2):
        weights = {name: value.clone().requires_grad_() for name, value in theta.params.items()}
        for _ in range(2):
            logits = x[t] @ weights["weight"].T @ weights["head.weight"].T + weights["head.bias"]
            loss = 4 * torch.nn.functional.cross_entropy(logits, torch.tensor(y[t]))
            grads = torch.autograd.grad(loss, list(weights.values()))
            weights = {n: value - 0.2 * grad for (n, value), grad in zip(weights.items(), grads, strict=True)}
        for name, value in weights.items():
            torch.testing.assert_close(found[name][t], value)


@dataclass(frozen=True)
class WithVal:
    """Digits 0 to 4 as validation classes, 5 to 9 as test classes."""

    def read(self, split) -> Items:
        return Digits().read("train" if split == "val" else split)


def scratched(data, **settings):
    """Training from scratch with `evaluate` in place of learning: 1 for the step size 0.3, 0 for others."""
    tasks = LabelledImages.load(Digits(), "test").tasks()
    run = SimpleNamespace(config=SimpleNamespace(evaluate=EvaluateConfig("small", **settings), data=data))
    rates: dict[str, float] = {}
    found = train_from_scratch(run, tasks, Conv4(4), EpisodeSpec(5, 1, 5), rates)
    return found, rates


def test_the_step_size_from_scratch_is_chosen_on_validation_tasks(monkeypatch, capsys):
    test, val = (LabelledImages.load(WithVal(), split).tasks().items for split in ("test", "val"))
    asked = []

    def evaluate(learner, theta, tasks, episode, *, count, seed, label):
        where = next(name for name, items in (("test", test), ("val", val)) if torch.equal(items, tasks.items))
        asked.append((where, learner.inner_lr, count))
        return np.full(count, float(learner.inner_lr == (0.3 if where == "val" else 0.1)))

    monkeypatch.setattr(images, "evaluate", evaluate)
    found, rates = scratched(WithVal(), scratch_tasks=30)
    assert asked == [("val", rate, 24) for rate in images.RATES] + [("test", 0.3, 30)]
    assert rates == {"5-way 1-shot": 0.3}
    assert found.shape == (30,)
    asked.clear()
    assert scratched(WithVal(), scratch_lr=0.02)[1] == {"5-way 1-shot": 0.02}
    assert asked == [("test", 0.02, 100)]
    asked.clear()
    assert scratched(Digits())[1] == {"5-way 1-shot": 0.1}
    assert asked == [("test", 0.1, 100)]
    assert "not tuned: data: digits have no val split" in capsys.readouterr().err


# curves, and what is kept

CONFIG = """
data: digits
embedding: pixels
proposer: {name: kmeans, k: 10, partitions: 2, smallest: 6}
metalearner: {name: maml, model: {name: conv4, filters: 4, down: stride}, steps: 1}
train: {outer: adam, steps: 4, way: 5, shot: 1, query: 5, meta_batch: 2, snapshots: 2}
evaluate: {protocol: small, tasks: 4, scratch_tasks: 2, scratch_steps: 2, baselines: [scratch, mlp, cluster_matching]}
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "small.yaml").write_text(CONFIG)
    plain = build.load(folder / "small.yaml", [f"out={folder}"])
    propose.propose(plain, device="cpu")
    return metatrain.metatrain(plain, device="cpu")


def test_nothing_that_is_kept_is_computed_again(run_folder, monkeypatch):
    first = evaluate_run(run_folder, device="cpu")
    assert list(first["rows"]) == ["chance", "pixels, MLP", "pixels, cluster matching", "from scratch", "small"]
    assert first["scratch_lr"] == {"5-way 1-shot": 0.1, "5-way 5-shot": 0.1}
    assert [len(curve["x"]) for curve in first["curves"].values()] == [2, 2]
    for name in ("evaluate", "answers", "trace_learning", "measure_calibration", "train_from_scratch"):
        monkeypatch.setattr(images, name, lambda *a, **k: pytest.fail("computed again"))
    for name in ("mlp", "centroids", "cluster_matching"):
        monkeypatch.setattr(baselines, name, lambda *a, **k: pytest.fail("computed again"))
    assert (run_folder / "snapshots").exists()
    shutil.move(run_folder / "snapshots", run_folder / "moved")
    again = evaluate_run(run_folder, device="cpu")
    shutil.move(run_folder / "moved", run_folder / "snapshots")
    changing = {"date", "commit"}
    assert {k: v for k, v in first.items() if k not in changing} == {
        k: v for k, v in again.items() if k not in changing
    }


def test_an_interrupted_evaluation_keeps_its_curves(run_folder, monkeypatch):
    """Each is there as soon as it is finished."""
    settings = {"evaluate": {"seed": 3, "baselines": []}}
    monkeypatch.setattr(images, "measure_calibration", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate_run(run_folder, settings, device="cpu")
    monkeypatch.undo()
    kept = json.loads((run_folder / "evaluation.json").read_text())
    assert list(kept["curves"]) == ["5-way 1-shot", "5-way 5-shot"]
    assert kept["calibration"] == {}
    monkeypatch.setattr(images, "trace_learning", lambda *a: pytest.fail("computed again"))
    assert evaluate_run(run_folder, settings, device="cpu")["curves"] == kept["curves"]


def test_a_curve_over_steps_is_what_evaluation_gives_at_each(run_folder):
    run = runs.load_run(run_folder, {"evaluate": {"step_curve": [0, 1, 30]}}, device="cpu")
    tasks = LabelledImages.load(Digits(), "test").tasks()
    for episode in (EpisodeSpec(5, 1, 5), EpisodeSpec(3, 5, 5)):
        found = trace_steps(run, tasks, episode, 6)
        assert found["x"] == [0, 1, 30]
        assert found["label"] == "steps of adaptation"
        at = [
            images.percent(images.evaluate(run.learner, run.theta, tasks, episode, count=6, steps=n))
            for n in (0, 1, 30)
        ]
        assert found["mean"] == [one["mean"] for one in at]
        assert found["interval"] == [one["interval"] for one in at]
        assert found["mean"][0] == pytest.approx(100 / episode.way)  # a shared head starts without any preference
        assert found["mean"][2] > found["mean"][0]
