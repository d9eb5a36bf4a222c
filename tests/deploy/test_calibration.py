"""Calibration against numbers worked out by hand, and on photographs against what holds for new ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from umeta.config.build import build
from umeta.data import archives, decode
from umeta.data.digits import Digits
from umeta.data.images import Items
from umeta.deploy.adapted import AdaptedLearner, load_source
from umeta.deploy.calibration import (
    calibrate,
    class_means,
    expected_calibration_error,
    fit_temperature,
    fit_threshold,
    folds,
    has_own_features,
    nearness,
)
from umeta.errors import UserError
from umeta.stages.metatrain import metatrain
from umeta.stages.propose import propose
from umeta.types import Theta

SHARED = Path(__file__).parents[3] / "shared" / "data"


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


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_the_mean_confidence_is_the_share_of_right_answers(scale):
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(20_000, 5, generator=generator)
    labels = torch.multinomial((logits / 2.5).softmax(1), 1, generator=generator)[:, 0]
    temperature = fit_temperature(scale * logits, labels)
    sure = (scale * logits.double() / temperature).softmax(1).amax(1).mean()
    assert float(sure) == pytest.approx(float((logits.argmax(1) == labels).float().mean()), abs=1e-4)
    assert temperature == pytest.approx(2.5 * scale, rel=0.03)


def test_answers_that_are_all_right_do_not_make_the_temperature_vanish():
    labels = torch.arange(100) % 2
    logits = 3.0 * torch.eye(2)[labels]
    # counted as if 100.5 of 101 were right
    assert fit_temperature(logits, labels) == pytest.approx(3 / math.log(100.5 / 0.5), rel=1e-6)


def test_the_threshold_by_hand():
    # a new one is below the second smallest of 19 with probability 2 in 20
    threshold, kept, low, high = fit_threshold(np.arange(19.0)[::-1])
    assert (threshold, kept) == (1.0, 0.9)
    assert low < 0.9 < high < 1
    # of one score as often above as below; the share kept of a threshold drawn uniformly is uniform
    assert fit_threshold(np.array([7.0])) == pytest.approx((7.0, 0.5, 0.05, 0.95))


@pytest.mark.parametrize("n", [2, 10, 25, 60])
def test_the_share_kept_is_as_stated_on_average_and_mostly_in_its_interval(n):
    draw = np.random.default_rng(0)
    found = [fit_threshold(draw.uniform(size=n)) for _ in range(2000)]
    kept = np.array([1 - threshold for threshold, *_ in found])  # of new uniform scores
    _, stated, low, high = found[0]
    assert kept.mean() == pytest.approx(stated, abs=0.015)
    assert ((low < kept) & (kept < high)).mean() == pytest.approx(0.9, abs=0.03)


def test_nearness_is_minus_the_squared_distance_to_the_nearest_mean_of_so_many():
    z = torch.tensor([[0.0, 0.0], [2.0, 0.0], [10.0, 0.0]])
    means = class_means(z, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(means, torch.tensor([[1.0, 0.0], [10.0, 0.0]]))
    found = nearness(torch.tensor([[1.0, 3.0], [9.0, 0.0]]), means, torch.tensor([2, 1]))
    torch.testing.assert_close(found, torch.tensor([-9.0 / 1.5, -1.0 / 2]))


def test_an_example_left_out_is_as_near_on_average_as_a_new_one():
    """Of any distribution: the squared distance to a mean of n others is 1 + 1 / n times the variance."""
    draw = torch.Generator().manual_seed(0)
    z = torch.rand(3, 40_000, 4, generator=draw)
    new = torch.rand(40_000, 4, generator=draw)
    left_out = ((z[0] - z[1]).square().sum(1) / 2).mean()
    assert float(((new - z.mean(0)).square().sum(1) / (1 + 1 / 3)).mean()) == pytest.approx(float(left_out), rel=0.02)


@pytest.mark.parametrize("shots", [[2, 2], [1, 2, 7], [5] * 5, [12, 1, 4], [1, 1]])
def test_each_example_is_left_out_once_and_never_all_of_a_class(shots):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(shots)), shots))
    found = list(folds(labels))
    assert len(found) <= 5
    times = np.sum(found, axis=0) if found else np.zeros(len(labels))
    assert (times == (np.bincount(labels)[labels] > 1)).all()
    assert all((np.bincount(labels[~out], minlength=len(shots)) > 0).all() for out in found)


def test_calibration_is_that_of_learners_that_have_not_seen_the_example(made_run):
    """Four classes of five of digits, each fold by a classifier of its own."""
    run = made_run("protonet")
    source, _ = load_source(run, device="cpu")
    test = Digits().read("test")
    chosen = [np.flatnonzero(test.labels == label)[:5] for label in range(4)]
    items, labels = test.pixels[np.concatenate(chosen)], np.repeat(np.arange(4), 5)
    learner = AdaptedLearner.adapt(source, items, labels).calibrate()
    order = sorted(range(20), key=lambda i: (items[i].tobytes(), labels[i]))
    items, labels = items[order], labels[order]
    place = np.array([(labels[:i] == labels[i]).sum() for i in range(20)])
    logits, near = torch.empty(20, 4), np.empty(20)
    for i in range(5):
        out = place == i
        rest = AdaptedLearner.adapt(source, items[~out], labels[~out])
        logits[out] = rest.logits(items[out])
        far = (source.features(items[out])[:, None] - rest.means).square().sum(2).min(1).values
        near[out] = -far.numpy() / 1.25
    found = learner.calibration
    assert found.right == int((logits.argmax(1).numpy() == labels).sum())
    assert found.temperature == pytest.approx(fit_temperature(logits, torch.from_numpy(labels)), rel=1e-4)
    assert found.threshold == pytest.approx(np.sort(near)[1], rel=1e-4)
    assert (found.kept, found.examples) == (1 - 2 / 21, 20)
    below = []
    for label in range(4):
        others = AdaptedLearner.adapt(source, items[labels != label], labels[labels != label])
        far = (source.features(items[labels == label])[:, None] - others.means).square().sum(2).min(1).values
        below += (-far.numpy() / 1.2 < found.threshold).tolist()
    assert found.refused == np.mean(below)


def test_copies_of_an_example_count_once(made_run):
    source, _ = load_source(made_run("protonet"), device="cpu")
    items = Digits().read("test").pixels[:6]
    labels = [0, 1, 0, 1, 0, 1]
    once = AdaptedLearner.adapt(source, items, labels).calibrate().calibration
    learner = AdaptedLearner.adapt(source, np.concatenate([items, items]), labels * 2)
    assert learner.calibrate().calibration == once


def test_one_example_of_each_class_is_refused_and_one_class_can_be_kept(made_run):
    source, _ = load_source(made_run("protonet"), device="cpu")
    items = Digits().read("test").pixels[:4]
    with pytest.raises(UserError, match="one example of a class cannot tell"):
        AdaptedLearner.adapt(source, items, [0, 1, 2, 3]).calibrate()
    found = AdaptedLearner.adapt(source, items, [7, 7, 7, 7]).calibrate().calibration
    assert (found.kept, found.refused, found.right) == (0.8, None, 4)
    assert "80%" in str(found)
    assert "refused" not in str(found)


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

    x = source.floats(Digits().read("test").pixels[:6])
    labels = np.array([0, 1, 2, 0, 1, 2])
    found = calibrate(Plain(), source.theta, x, labels, steps=None)
    whole = calibrate(source.learner, source.theta, x, labels, steps=None)
    assert found.threshold is None
    assert "no threshold" in str(found)
    assert found.temperature == whole.temperature
    assert whole.threshold is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["eurosat", "cifar", "omniglot"])
@pytest.mark.parametrize("method", ["protonet", "maml"])
def test_what_is_stated_holds_on_photographs_unlike_those_of_training(of_groceries, photographs, method, name):
    """Trained without labels on groceries: what `adapt` states of 40 drawn sets of 5 classes, and new pictures of them.

    Of 3,000 pictures the standard error of the shares, in which classes are what is drawn, is 1 to 2 points.
    """
    source, _ = load_source(of_groceries(method), device="cpu")
    images = photographs(name)
    draw = np.random.default_rng(0)
    rows = []
    for _ in range(40):
        classes = draw.choice(np.unique(images.labels), 5, replace=False)
        each = [draw.permutation(np.flatnonzero(images.labels == label))[:20] for label in classes]
        shown, asked = (np.concatenate([one[part] for one in each]) for part in (slice(5), slice(5, 20)))
        learner = AdaptedLearner.adapt(source, images.pixels[shown], images.labels[shown]).calibrate()
        found, probabilities = learner.answers(images.pixels[asked], unknown=True)
        right = learner.classes[probabilities.argmax(1)] == images.labels[asked]
        stated = learner.calibration
        rows.append([stated.kept, (found >= 0).mean(), probabilities.max(1).mean(), right.mean()])
    said, kept, sure, right = np.mean(rows, axis=0)
    assert kept == pytest.approx(said, abs=0.05)
    assert sure == pytest.approx(right, abs=0.05)
    assert right > 0.25  # of which chance is 0.2


@pytest.fixture(scope="session")
def of_groceries(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`of_groceries("maml")`: a run on the training products at 28 pixels."""
    place = tmp_path_factory.mktemp("groceries")
    data = {"name": "folder", "root": str(SHARED / "grocery84/images.zip"), "size": 28}
    plain = {
        "data": {**data, "splits": str(SHARED / "grocery84/splits")},
        "proposer": {"name": "instances", "augment": "photo"},
        "out": str(place),
        "tasks": str(place / "tasks"),
    }
    train = {"outer": {"name": "adam", "lr": 2e-3}, "shot": 1, "query": 2}
    kinds = {
        "protonet": ({"filters": 32, "halvings": 3}, {"steps": 150, "way": 32, "meta_batch": 1}),
        "maml": ({"filters": 16}, {"steps": 150, "way": 5, "meta_batch": 4}),
    }

    @cache
    def of_groceries(method: str) -> Path:
        model, size = kinds[method]
        learner = {"name": method, "model": {"name": "conv4", **model}}
        config = build({**plain, "metalearner": learner, "train": {**train, **size}, "name": method})
        if not config.tasks_folder.exists():
            propose(config, device="cpu")
        return metatrain(config, device="cpu")

    return of_groceries


@pytest.fixture(scope="session")
def photographs() -> Callable[[str], Items]:
    """`photographs("cifar")`: 40 pictures of each class, at 28 pixels; drawings for `omniglot`."""
    roots = {
        "eurosat": SHARED / "eurosat/images.zip",
        "cifar": SHARED / "cifar100/images.zip",
        "omniglot": SHARED / "omniglot-py/images_evaluation.zip",
    }

    @cache
    def photographs(name: str) -> Items:
        of_class: dict[str, list[archives.File]] = {}
        for file in archives.list_files(roots[name]):
            if decode.is_picture(file.name) and len(of_class.setdefault(str(Path(file.name).parent), [])) < 40:
                of_class[str(Path(file.name).parent)].append(file)
        files = [file for found in list(of_class.values())[:100] for file in found]
        pixels, _ = decode.decode(files, decode.Rule(28, 3), root=roots[name])
        return Items(pixels, np.unique([str(Path(file.name).parent) for file in files], return_inverse=True)[1])

    return photographs
