"""Calibration against numbers worked out by hand, and its promise to see no label."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from umeta.data.digits import Digits
from umeta.data.images import Items
from umeta.deploy.adapted import AdaptedLearner, load_source
from umeta.deploy.calibration import (
    QUERIES,
    calibrate,
    class_means,
    expected_calibration_error,
    feasible,
    fit_temperature,
    fit_threshold,
    has_own_features,
    held_out,
    nearness,
)
from umeta.errors import UserError
from umeta.stages import runs
from umeta.tasks.instances import InstanceTasks
from umeta.tasks.partition import PartitionTasks
from umeta.types import EpisodeSpec, Theta


def test_the_calibration_error_by_hand():
    # confidences 0.9, 0.88 (bin 14 of 15: one of two right) and 0.55, 0.54 (bin 9: both right)
    probabilities = np.array([[0.9, 0.1], [0.12, 0.88], [0.55, 0.45], [0.54, 0.46]])
    labels = np.array([0, 0, 0, 0])
    expected = 2 / 4 * abs(0.5 - 0.89) + 2 / 4 * abs(1 - 0.545)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)


def test_the_calibration_error_of_certain_answers_is_their_error_rate():
    certain = np.eye(3)[[0, 1, 2, 0]]
    assert expected_calibration_error(certain, np.array([0, 1, 2, 1])) == pytest.approx(0.25)
    assert expected_calibration_error(certain, np.array([0, 1, 2, 0])) == 0


def test_the_temperature_of_two_kinds_of_logits_by_hand():
    """Logits (z, 0) of which a share p is right: softmax(z / T) = p, so T = z / log(p / (1 - p))."""
    n, z, p = 40_000, 6.0, 0.8
    labels = (torch.arange(n) >= p * n).long()
    logits = torch.tensor([z, 0.0]).expand(n, 2)
    assert fit_temperature(logits, labels) == pytest.approx(z / math.log(p / (1 - p)), rel=1e-3)


def test_the_temperature_minimises_the_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial((logits / 2.5).softmax(1), 1, generator=generator)[:, 0]

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits.double() / temperature, labels))

    best = minimize_scalar(loss, bounds=(0.5, 10), method="bounded").x
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=2e-3)
    assert best == pytest.approx(2.5, rel=0.05)


def test_answers_that_are_all_right_do_not_make_the_temperature_vanish():
    labels = torch.arange(100) % 2
    logits = 3.0 * torch.eye(2)[labels]
    # smoothed targets: (100 + 1) / (100 + 2) for the right class
    assert fit_temperature(logits, labels) == pytest.approx(3 / math.log(101), rel=1e-6)


def test_the_threshold_by_hand():
    known, unknown = np.array([-1.0, -2.0, -3.0, -6.0]), np.array([-4.0, -7.0, -8.0])
    threshold, kept, refused = fit_threshold(known, unknown)
    assert (threshold, kept, refused) == (-3.5, 0.75, 1.0)
    assert fit_threshold(np.array([0.0]), np.array([0.0]))[1:] == (1, 0)  # nothing to tell them by: all is known


def test_nearness_is_minus_the_squared_distance_to_the_nearest_mean():
    z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 0.0]])
    means = class_means(z, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(means, torch.tensor([[1.0, 0.0], [10.0, 0.0]]))
    torch.testing.assert_close(nearness(torch.tensor([[1.0, 3.0], [9.0, 0.0]]), means), torch.tensor([-9.0, -1.0]))


def test_the_class_left_out_is_in_the_queries_and_not_in_the_support():
    items = np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1)
    tasks = PartitionTasks(items, np.repeat(np.arange(6), 10))
    every = tasks.sample(np.arange(10), episode=EpisodeSpec(4, 2, 3), seed=0).query()
    number = 0
    for support, query in held_out(tasks, EpisodeSpec(4, 2, 3), count=10, seed=0):
        assert torch.equal(query.x, every.x[number : number + len(support)])
        number += len(support)
        assert (support.way, query.way) == (3, 3)
        for t in range(len(support)):
            assert sorted(support.y[t].tolist()) == [0, 0, 1, 1, 2, 2]
            assert sorted(query.y[t].tolist()) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
            shown = (support.x[t] * 255).flatten().round() // 10  # the true classes, known from the pixels
            asked = (query.x[t] * 255).flatten().round() // 10
            assert not set(asked[query.y[t] == 3].tolist()) & set(shown.tolist())
            for label in range(3):
                assert set(asked[query.y[t] == label].tolist()) == set(shown[support.y[t] == label].tolist())
    assert number == 10


def test_tasks_that_are_too_small_lower_the_shot_and_then_the_way():
    tasks = PartitionTasks(np.zeros((24, 1, 8, 8), np.uint8), np.repeat(np.arange(4), 6))  # 4 classes of 6
    assert feasible(tasks, 3, 3, seed=0)[0] == EpisodeSpec(4, 3, QUERIES)
    assert feasible(tasks, 3, 5, seed=0)[0] == EpisodeSpec(4, 2, QUERIES)
    assert feasible(tasks, 7, 1, seed=0)[0] == EpisodeSpec(4, 1, QUERIES)
    with pytest.raises(UserError, match=r"no tasks to calibrate on: .*2 of 2"):
        feasible(PartitionTasks(np.zeros((12, 1, 8, 8), np.uint8), np.repeat(np.arange(2), 6)), 5, 1, seed=0)


def test_calibration_takes_twelve_to_a_hundred_tasks_of_three_thousand_images():
    def count(way: int, shot: int) -> int:
        items = np.zeros((6000, 1, 2, 2), np.uint8)
        episode, found = feasible(PartitionTasks(items, np.repeat(np.arange(60), 100)), way, shot, seed=0)
        assert episode == EpisodeSpec(way + 1, shot, QUERIES)
        return found

    assert count(2, 1) == 100
    assert count(9, 2) == 3000 // (10 * (2 + 3)) == 60
    assert count(24, 5) == 3000 // (25 * (5 + 3)) == 15
    assert count(50, 20) == 12


def test_features_that_depend_on_the_batch_are_found_out(made_run):
    for name, normalisation in [("protonet", "running"), ("protonet", "group"), ("maml", "support")]:
        source, _ = load_source(made_run(name, normalisation=normalisation), device="cpu")
        assert has_own_features(source.learner, source.theta, source.format.shape), (name, normalisation)

    class Centred:
        def features(self, theta: Theta, x: torch.Tensor) -> torch.Tensor:
            return (x - x.mean(0)).flatten(1) + 1

    assert not has_own_features(Centred(), source.theta, source.format.shape)
    assert not has_own_features(object(), source.theta, source.format.shape)


def test_a_learner_without_features_gets_a_temperature_and_no_threshold(made_run):
    source, _ = load_source(made_run("protonet"), device="cpu")

    class Plain:
        adapt, predict = source.learner.adapt, source.learner.predict

    tasks = PartitionTasks(Digits().read("train").pixels, Digits().read("train").labels)
    found = calibrate(Plain(), source.theta, tasks, way=3, shot=1, steps=None, seed=0)
    whole = calibrate(source.learner, source.theta, tasks, way=3, shot=1, steps=None, seed=0)
    assert found.threshold is None
    assert "no threshold" in str(found)
    assert found.temperature == whole.temperature
    assert whole.threshold is not None


def test_augmented_instances_can_be_calibrated_on():
    from umeta.augment.drawing import Drawing
    from umeta.metalearners.protonet import ProtoNet
    from umeta.models.conv4 import Conv4
    from umeta.tasks.instances import Augmented
    from umeta.types import TaskSpec

    learner = ProtoNet(Conv4(filters=4), normalisation="group").build(TaskSpec((1, 28, 28)), EpisodeSpec(5, 1, 1))
    theta = learner.init(0)
    tasks = Augmented(InstanceTasks(Digits().read("train").pixels), Drawing())
    found = calibrate(learner, theta, tasks, way=4, shot=2, steps=None, seed=0)
    assert (found.way, found.shot) == (4, 2)


def test_calibration_reads_no_label(made_run, monkeypatch):
    """Sources whose labels are dealt out anew, or gone, give the same numbers."""
    run = made_run("protonet")
    test = Digits().read("test")
    read = Digits.read
    found = []
    for change in ("none", "permuted", "gone"):

        def changed(self: Digits, split: str, change: str = change) -> Items:
            items = read(self, split)
            if change == "gone":
                return Items(items.pixels)
            labels = np.random.default_rng(0).permutation(items.labels)
            return dataclasses.replace(items, labels=items.labels if change == "none" else labels)

        monkeypatch.setattr(Digits, "read", changed)
        source, loaded = load_source(run, device="cpu")
        learner = AdaptedLearner.adapt(source, test.pixels[:6], [0, 1, 2, 0, 1, 2]).calibrated(loaded)
        found.append(learner.calibration)
    assert found[0] == found[1] == found[2]
    assert found[0] is not None


def test_tasks_that_the_run_was_not_trained_on_are_refused(made_run, tmp_path):
    import shutil

    place = tmp_path / "run"
    shutil.copytree(made_run("protonet"), place)
    (place / "tasks.json").write_text('{"hash": "other", "manifest": {}}')
    run = dataclasses.replace(runs.load_run(made_run("protonet"), device="cpu"), folder=Path(place))
    source, _ = load_source(made_run("protonet"), device="cpu")
    learner = AdaptedLearner.adapt(source, Digits().read("test").pixels[:2], ["a", "b"])
    with pytest.raises(UserError, match=r"is not what .*run was trained on"):
        learner.calibrated(run)
