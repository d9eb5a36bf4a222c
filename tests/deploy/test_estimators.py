"""The scikit-learn classifier against prototypes and softmax written out, and as scikit-learn's tools use it."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline

import umeta
from umeta import EpisodeSpec, Features, FewShotClassifier, UserError, evaluate, load_run
from umeta.benchmarks.labelled import LabelledImages
from umeta.data import decode
from umeta.data.digits import Digits
from umeta.data.folder import Folder
from umeta.data.inputs import Format
from umeta.data.omniglot import Omniglot

TEST = Digits().read("test")
WORDS = np.array(["five", "six", "seven", "eight", "nine"])


def some(*counts: int, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """So many images of each class of TEST: uint8 [n, 1, 28, 28], and their class indices."""
    rows = np.concatenate([np.flatnonzero(TEST.labels == c)[start : start + n] for c, n in enumerate(counts)])
    return TEST.pixels[rows], TEST.labels[rows]


def embedded(run: Path, images: np.ndarray) -> torch.Tensor:
    """Features by the network itself, image by image."""
    loaded = umeta.load_run(run, device="cpu")
    x = torch.from_numpy(images).float() / 255
    with torch.no_grad():
        return torch.cat([loaded.learner.features(loaded.theta, one[None]) for one in x])


def prototype_probabilities(run: Path, support: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Prototypical networks written out: softmax of minus the squared distances to the class means."""
    z, q = embedded(run, support).double(), embedded(run, queries).double()
    means = torch.stack([z[labels == c].mean(0) for c in np.unique(labels)])
    distances = ((q[:, None] - means[None]) ** 2).sum(-1)
    return torch.softmax(-distances, dim=1).numpy()


# what it computes


@pytest.mark.parametrize("counts", [(1, 1), (3, 1, 2), (1, 4, 2, 5, 3)])
def test_it_is_a_prototype_classifier(made_run, counts):
    run = made_run("protonet")
    X, y = some(*counts)
    queries, _ = some(6, 6, 6, 6, 6, start=20)
    model = FewShotClassifier(run).fit(X, WORDS[y])
    expected = prototype_probabilities(run, X, y, queries)
    np.testing.assert_allclose(model.predict_proba(queries), expected[:, np.argsort(WORDS[np.unique(y)])], atol=1e-5)
    assert (model.predict(queries) == WORDS[np.unique(y)][expected.argmax(1)]).all()
    assert model.classes_.tolist() == sorted(WORDS[: len(counts)])


def test_maml_is_gradient_steps_on_the_support(made_run):
    run = made_run("maml", inner_lr=0.01, steps=2, normalisation="group")
    X, y = some(2, 1, 3)
    queries, _ = some(4, 4, 4, start=20)
    loaded = umeta.load_run(run, device="cpu")
    net, params = loaded.learner.built.network, dict(loaded.theta.params)
    params["head.weight"] = params["head.weight"].expand(3, -1).clone()
    params["head.bias"] = params["head.bias"].expand(3).clone()
    x = torch.from_numpy(X).float() / 255

    def logits(params: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return net.shared(params, x)[0] @ params["head.weight"].T + params["head.bias"]

    for _ in range(2):
        params = {name: value.detach().requires_grad_() for name, value in params.items()}
        loss = torch.nn.functional.cross_entropy(logits(params, x), torch.from_numpy(y))
        grads = torch.autograd.grad(loss, list(params.values()))
        params = {n: p - loaded.learner.inner_lr * g for (n, p), g in zip(params.items(), grads, strict=True)}
    expected = torch.softmax(logits(params, torch.from_numpy(queries).float() / 255), 1).detach().numpy()
    found = FewShotClassifier(run).fit(X, y).predict_proba(queries)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_steps_are_those_of_adaptation(made_run):
    run = made_run("maml", inner_lr=0.01, normalisation="group")
    X, y = some(2, 2)
    one, four = (FewShotClassifier(run, steps=n).fit(X, y).predict_proba(X) for n in (1, 4))
    assert np.log(four[np.arange(4), y]).mean() > np.log(one[np.arange(4), y]).mean()  # of the support


# Small inner steps: large ones on an untrained network make much of what one task alone and six at once round apart.
@pytest.mark.parametrize(("name", "options"), [("protonet", {}), ("maml", {"inner_lr": 0.01})])
def test_scores_are_those_of_evaluate(made_run, name, options):
    """What `umeta evaluate` reports is what a person gets: the same tasks, answered by the classifier."""
    folder = made_run(name, **options)
    run = load_run(folder, device="cpu")
    tasks = LabelledImages.load(run.config.data, "test").tasks()
    episode = EpisodeSpec(5, 3, 4)
    expected = evaluate(run.learner, run.theta, tasks, episode, count=6, steps=run.test_steps)
    drawn = tasks.sample(np.arange(6), episode=episode, seed=0)
    pixels = tasks.items.numpy()
    scores = [
        FewShotClassifier(folder)
        .fit(pixels[drawn.support_index[t]], drawn.support_label[t].numpy())
        .score(pixels[drawn.query_index[t]], drawn.query_label[t].numpy())
        for t in range(6)
    ]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize(("name", "options"), [("protonet", {}), ("maml", {"normalisation": "support"})])
def test_one_by_one_is_the_same_as_all_at_once(made_run, name, options):
    X, y = some(2, 2, 2)
    queries, _ = some(5, 5, 5, start=20)
    model = FewShotClassifier(made_run(name, **options), batch_size=7).fit(X, y)
    together = model.predict_proba(queries)
    alone = np.concatenate([model.predict_proba(one[None]) for one in queries])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert (model.predict(queries) == [model.predict(one[None])[0] for one in queries]).all()


def test_one_class_is_always_the_answer(made_run):
    model = FewShotClassifier(made_run("protonet")).fit(*some(1))
    assert model.predict(some(2, 2)[0]).tolist() == [0] * 4
    assert model.predict_proba(some(1)[0]).tolist() == [[1.0]]


@pytest.mark.parametrize("y", [["b", "a"], [7, -3], np.array([2, 1], dtype=np.uint8), np.array(["b", "a"], object)])
def test_labels_keep_their_kind(made_run, y, tmp_path):
    X, _ = some(1, 1)
    model = FewShotClassifier(made_run("protonet")).fit(X, y)
    assert model.predict(X).tolist() == list(y)
    assert model.classes_.tolist() == sorted(y)
    assert model.score(X, y) == 1
    model.save(tmp_path / "learner")
    assert FewShotClassifier.load(tmp_path / "learner").predict(X).tolist() == list(y)


# partial_fit


def test_examples_that_come_later_count_as_if_they_had_been_there(made_run):
    for options in ({}, {"distance": "cosine"}, {"normalisation": "support"}):
        run = made_run("protonet", **options)
        X, y = some(3, 2, 4)
        y = WORDS[y]
        order = np.random.default_rng(0).permutation(len(X))
        queries, _ = some(5, 5, 5, start=20)
        whole = FewShotClassifier(run).fit(X[order], y[order])
        model = FewShotClassifier(run)
        for part in np.array_split(order, 4):
            model.partial_fit(X[part], y[part])
        assert (model.predict_proba(queries) == whole.predict_proba(queries)).all()
        assert (model.classes_ == whole.classes_).all()


def test_partial_fit_refuses_what_it_cannot_do(made_run):
    X, y = some(1, 1)
    with pytest.raises(UserError, match=r"MAML adapts to all examples in one go.*fit it again"):
        FewShotClassifier(made_run("maml")).partial_fit(X, y)
    model = FewShotClassifier(made_run("protonet")).partial_fit(X[:1], ["a"], classes=["a", "b"])
    with pytest.raises(UserError, match=r"'c' is not one of the classes \['a', 'b'\]"):
        model.partial_fit(X[1:], ["c"], classes=["a", "b"])
    with pytest.raises(UserError, match="all integers or all strings"):
        model.partial_fit(X[1:], [3])
    assert model.classes_.tolist() == ["a"]


# as scikit-learn's tools use it


def test_parameters_clone_and_repr(made_run):
    model = FewShotClassifier(made_run("protonet"), steps=3, unknown="none", device="cpu")
    assert clone(model).get_params() == model.get_params()
    assert clone(model).set_params(steps=5).steps == 5
    assert "steps=3" in repr(model)


def test_nothing_works_before_fit(made_run, tmp_path):
    model = FewShotClassifier(made_run("protonet"))
    for call in (model.predict, model.predict_proba, lambda _: model.save(tmp_path / "x")):
        with pytest.raises(NotFittedError):
            call(some(1)[0])
    with pytest.raises(NotFittedError):
        Features(made_run("protonet")).transform(some(1)[0])


def test_cross_validation_and_grid_search(made_run):
    X, y = some(6, 6)
    assert cross_val_score(FewShotClassifier(made_run("protonet")), X, y, cv=3).shape == (3,)
    grid = GridSearchCV(FewShotClassifier(made_run("maml")), {"steps": [1, 3]}, cv=2, error_score="raise").fit(X, y)
    assert grid.best_estimator_.predict(X).shape == (12,)
    assert grid.best_params_["steps"] in (1, 3)


def test_features_are_the_networks_vectors_and_fit_in_a_pipeline(made_run):
    run = made_run("protonet")
    X, y = some(4, 4)
    found = Features(run, batch_size=3).fit_transform(X)
    np.testing.assert_allclose(found, embedded(run, X).numpy(), atol=1e-5)
    pipeline = Pipeline([("features", Features(run)), ("linear", LogisticRegression(C=10))]).fit(X, WORDS[y])
    assert pipeline.score(X, WORDS[y]) == 1
    assert clone(Features(run, device="cpu")).get_params() == Features(run, device="cpu").get_params()
    again = pickle.loads(pickle.dumps(Features(run).fit(X)))
    assert (again.transform(X) == Features(run).fit(X).transform(X)).all()
    step = Pipeline([("learner", FewShotClassifier(run))]).fit(X, WORDS[y])
    assert (step.predict_proba(X) == FewShotClassifier(run).fit(X, WORDS[y]).predict_proba(X)).all()


def test_features_of_a_batch_are_refused(made_run, monkeypatch):
    def centred(self: Any, theta: Any, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)).flatten(1) + 1

    monkeypatch.setattr(umeta.ProtoNet, "features", centred)
    with pytest.raises(UserError, match=r"ProtoNet gives an image no features.*normalisation=running"):
        Features(made_run("protonet")).fit()


@pytest.mark.parametrize("name", ["protonet", "maml"])
def test_a_pickled_copy_answers_the_same(made_run, name):
    X, y = some(2, 2)
    model = FewShotClassifier(made_run(name), unknown=-1).fit(X, y)
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict_proba(X) == model.predict_proba(X)).all()
    assert (again.predict(X) == model.predict(X)).all()
    assert again.get_params() == model.get_params()


def test_a_run_is_read_once_and_again_when_it_changes(made_run, tmp_path):
    import shutil

    from umeta.deploy.estimators import _loaded

    place = tmp_path / "run"
    shutil.copytree(made_run("protonet"), place)
    X, y = some(1, 1)
    FewShotClassifier(place).fit(X, y)
    before = _loaded.cache_info()
    FewShotClassifier(place).fit(X, y)
    assert _loaded.cache_info().hits == before.hits + 1
    shutil.rmtree(place)
    with pytest.raises(UserError, match="no such run"):
        FewShotClassifier(place).fit(X, y)
    shutil.copytree(made_run("protonet", distance="cosine"), place)
    assert "scale" in FewShotClassifier(place).fit(X, y).learner_.source.theta.params


# images


def test_files_and_pictures_go_the_way_of_the_runs_data(made_run, tmp_path):
    """A colour photograph and a grey one of another size, against `decode.open_image` of the same bytes."""
    generator = np.random.default_rng(0)
    paths = []
    for name, shape in (("a.png", (40, 60, 3)), ("b.png", (50, 30))):
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(tmp_path / name)
        paths.append(tmp_path / name)
    items = np.stack([decode.open_image(path.read_bytes(), decode.Rule(28, 1)) for path in paths])
    model = FewShotClassifier(made_run("protonet")).fit(items, ["a", "b"])
    expected = model.predict_proba(items)
    for images in (paths, [str(p) for p in paths], np.array(paths, object), [Image.open(p) for p in paths]):
        assert (model.predict_proba(images) == expected).all()
    again = FewShotClassifier(made_run("protonet")).fit([str(path) for path in paths], ["a", "b"])
    assert (again.predict_proba(items) == expected).all()


def test_arrays_of_every_layout_are_the_same_images(made_run):
    X, y = some(2, 2)
    model = FewShotClassifier(made_run("protonet")).fit(X, y)
    expected = model.predict_proba(X)
    for images in (X[:, 0], X[..., None][:, 0], X / 255, torch.from_numpy(X), list(X[:, 0]), tuple(X)):
        np.testing.assert_allclose(model.predict_proba(images), expected, atol=1e-6)


def test_inversion_is_known_from_the_data_source():
    assert Format.of(Omniglot(), (1, 28, 28)).invert
    assert Format.of(Folder("x", invert=True), (3, 84, 84)).invert
    assert not Format.of(Folder("x"), (3, 84, 84)).invert
    assert [Format.of(Folder("x", pad=pad), (3, 84, 84)).pad for pad in (True, False)] == [True, False]
    assert not Format.of(Digits(), (1, 28, 28)).invert
    black = Image.new("L", (40, 40))
    assert Format((1, 28, 28), invert=True).items([black]).min() == 255
    assert Format((3, 28, 28)).items([black]).shape == (1, 3, 28, 28)


Bad = Callable[[Path], Any]
BAD_IMAGES: dict[str, tuple[Bad, str]] = {
    "none": (lambda _: [], "there are none"),
    "an empty array": (lambda _: np.zeros((0, 28, 28), np.uint8), "there are none"),
    "one path": (lambda _: "photo.png", "put a single one into a list"),
    "one picture": (lambda _: Image.new("L", (28, 28)), "put a single one into a list"),
    "one array": (lambda _: np.zeros((28, 28), np.uint8), r"expected shape .* got \(28, 28\)"),
    "nothing": (lambda _: None, "expected several"),
    "another size": (lambda _: np.zeros((2, 32, 32), np.uint8), "arrays of 1x28x28 .* got 1x32x32; give files"),
    "colour": (lambda _: np.zeros((2, 28, 28, 3), np.uint8), "got 3x28x28"),
    "sizes that differ": (lambda _: [np.zeros((28, 28)), np.zeros((20, 20))], "differ in shape"),
    "floats above 1": (lambda _: np.full((2, 28, 28), 3.5), "from 3.5 to 3.5"),
    "not a number": (lambda _: np.full((2, 28, 28), np.nan), "nan"),
    "a mixture": (lambda _: ["a.png", np.zeros((28, 28))], "cannot be mixed"),
    "a missing file": (lambda _: ["nowhere.png", "nowhere2.png"], "nowhere.png: no such file"),
    "text": (lambda place: [place / "text.png"] * 2, "text.png: not a readable image"),
    "half a file": (lambda place: [place / "half.png"] * 2, "half.png: not a readable image"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_are_named(made_run, case, tmp_path):
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(TEST.pixels[0, 0]).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    make, says = BAD_IMAGES[case]
    model = FewShotClassifier(made_run("protonet"))
    with pytest.raises(UserError, match=says):
        model.fit(make(tmp_path), ["a", "b"])
    model.fit(*some(1, 1))
    with pytest.raises(UserError, match=says):
        model.predict(make(tmp_path))


@pytest.mark.parametrize(
    ("y", "says"),
    [
        ([0], "1 for 2 images"),
        ([], "there are none"),
        ([0, "a"], "all integers or all strings, got int, str"),
        ([0.5, 1.5], "all integers or all strings, got float"),
        (["a", None], "got str, NoneType"),
    ],
)
def test_bad_labels_are_named(made_run, y, says):
    with pytest.raises(UserError, match=says):
        FewShotClassifier(made_run("protonet")).fit(some(1, 1)[0], y)


# runs that cannot do it


def test_a_fixed_head_refuses_another_way_and_a_shared_one_does_any(made_run):
    X, y = some(1, 1, 1)
    with pytest.raises(UserError, match=r"meta-trained for 5 ways, not 3.*head: shared"):
        FewShotClassifier(made_run("maml", head="fixed")).fit(X, y)
    assert FewShotClassifier(made_run("maml", head="fixed")).fit(*some(1, 2, 1, 1, 1)).classes_.tolist() == [*range(5)]
    assert FewShotClassifier(made_run("maml")).fit(X, y).predict_proba(X).shape == (3, 3)


def test_transductive_learners_are_refused_with_a_way_out(made_run):
    X, y = some(2, 2)
    for name, wanted in (("protonet", {"normalisation": "batch"}), ("maml", {"normalisation": "batch"})):
        run = made_run(name, **wanted)
        with pytest.raises(UserError, match=r"on the images beside it; adapt with metalearner.normalisation=support"):
            FewShotClassifier(run).fit(X, y)
        model = FewShotClassifier(run, options={"normalisation": "support"}).fit(X, y)
        np.testing.assert_allclose(model.predict_proba(X)[:1], model.predict_proba(X[:1]), atol=1e-5)
    with pytest.raises(UserError, match=r"metalearner\.refine=0"):
        FewShotClassifier(made_run("protonet", refine=2)).fit(X, y)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"modell": 3}, "unknown option 'modell'.*did you mean 'model'"),
        ({"model": {"name": "conv4", "filters": 4}}, "do not fit its configuration: '0.weight'"),
        ({"distance": "cosine"}, "'scale' is missing"),
    ],
)
def test_options_that_do_not_fit_are_named(made_run, options, says):
    with pytest.raises(UserError, match=says):
        FewShotClassifier(made_run("protonet"), options=options).fit(*some(1, 1))


def test_from_run_finds_mistakes_at_once(made_run, tmp_path):
    assert FewShotClassifier.from_run(made_run("protonet"), steps=2).get_params()["steps"] == 2
    with pytest.raises(UserError, match="nowhere: no such run"):
        FewShotClassifier.from_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="which run"):
        FewShotClassifier().fit(*some(1, 1))


# calibration and unknown


def test_calibration_divides_the_logits_and_changes_no_answer(made_run):
    X, y = some(2, 2, 2)
    queries, _ = some(9, 9, 9, start=20)
    plain = FewShotClassifier(made_run("protonet")).fit(X, y)
    model = FewShotClassifier(made_run("protonet"), calibrated=True).fit(X, y)
    temperature = model.learner_.calibration.temperature
    expected = prototype_probabilities(made_run("protonet"), X, y, queries) ** (1 / temperature)
    np.testing.assert_allclose(
        model.predict_proba(queries), expected / expected.sum(1, keepdims=True), rtol=1e-3, atol=1e-5
    )
    assert (model.predict(queries) == plain.predict(queries)).all()
    assert plain.learner_.calibration is None
    assert temperature != 1


def test_what_is_far_from_every_class_is_unknown(made_run):
    run = made_run("protonet")
    X, y = some(3, 3)
    queries = np.concatenate([some(5, 5, start=20)[0], np.full((3, 1, 28, 28), 255, np.uint8)])
    model = FewShotClassifier(run, unknown="?").fit(X, WORDS[y])
    z, q = embedded(run, X), embedded(run, queries)
    near = torch.stack([((q - z[y == c].mean(0)) ** 2).sum(1) for c in (0, 1)]).amin(0).numpy()
    far = -near / (1 + 1 / 3) < model.learner_.calibration.threshold
    assert far[-3:].all()
    found = model.predict(queries)
    assert (found == np.where(far, "?", FewShotClassifier(run).fit(X, WORDS[y]).predict(queries))).all()
    assert model.predict_proba(queries).shape == (13, 2)
    assert set(FewShotClassifier(run, unknown=-1).fit(X, y).predict(queries)) <= {-1, 0, 1}


def test_an_unknown_label_must_fit_the_classes(made_run):
    X, y = some(2, 2)
    with pytest.raises(UserError, match="must be of the labels' type, such as 0"):
        FewShotClassifier(made_run("protonet"), unknown="none").fit(X, y)
    with pytest.raises(UserError, match="unknown=1: is one of the classes"):
        FewShotClassifier(made_run("protonet"), unknown=1).fit(X, y)


def test_of_one_example_a_class_there_is_a_warning_or_for_unknown_a_refusal(made_run):
    X, y = some(1, 1)
    run = made_run("protonet")
    with pytest.warns(UserWarning, match="not calibrated, probabilities are a plain softmax: one example of a class"):
        model = FewShotClassifier(run, calibrated=True).fit(X, y)
    assert (model.predict_proba(X) == FewShotClassifier(run).fit(X, y).predict_proba(X)).all()
    with pytest.raises(UserError, match="unknown: cannot be calibrated: one example of a class"):
        FewShotClassifier(run, unknown=-1).fit(X, y)


# saved


def test_a_saved_learner_needs_nothing_else(made_run, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(made_run("protonet"), run)
    X, y = some(2, 1)
    queries, _ = some(5, 5, start=20)
    model = FewShotClassifier(run, unknown="far", calibrated=True).fit(X, WORDS[y])
    model.save(tmp_path / "learner")
    shutil.rmtree(run)
    again = FewShotClassifier.load(tmp_path / "learner", unknown="far")
    assert (again.predict_proba(queries) == model.predict_proba(queries)).all()
    assert (again.predict(queries) == model.predict(queries)).all()
    more, labels = some(0, 0, 2)
    again.set_params(unknown=None).partial_fit(more, WORDS[labels])  # needs no run to be calibrated again
    model.set_params(unknown=None).partial_fit(more, WORDS[labels])
    assert again.classes_.tolist() == ["five", "seven", "six"]
    assert (again.predict_proba(queries) == model.predict_proba(queries)).all()


def test_save_takes_no_folder_that_is_in_use(made_run, tmp_path):
    model = FewShotClassifier(made_run("protonet")).fit(*some(1, 1))
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="exists; choose another place"):
        model.save(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "x"
    model.save(tmp_path / "learner")
    with pytest.raises(UserError, match="unknown: the learner is not calibrated"):
        FewShotClassifier.load(tmp_path / "learner", unknown=-1)


# odd labels and options


ODD = [[0.0, 1.0], [np.float32(3), np.int8(4)], [-1, 2**63 - 1], [True, False], ["", "a b"]]


@pytest.mark.parametrize("labels", ODD)
def test_labels_of_any_kind_are_answered_as_equals(made_run, labels):
    X, y = some(3, 3)
    model = FewShotClassifier(made_run("protonet")).fit(X, [labels[i] for i in y])
    assert set(model.predict(X).tolist()) <= set(labels)
    assert model.score(X, np.array(labels)[y]) > 0.5


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["a", "a\0"], "ends with a zero byte.*rename"),
        ([2**63, 1], "more than 64 bits.*strings"),
        ([2**70, 2**71], "more than 64 bits.*strings"),
        ([0.5, 1.0], "all integers or all strings"),
        ([float("nan"), 1.0], "all integers or all strings"),
        ([None, "a"], "all integers or all strings"),
    ],
)
def test_labels_that_would_be_mixed_up_are_refused(made_run, labels, says):
    X, y = some(2, 2)
    with pytest.raises(UserError, match=says):
        FewShotClassifier(made_run("protonet")).fit(X, [labels[i] for i in y])


def test_numpy_numbers_are_options_like_any_other(made_run, tmp_path):
    X, y = some(3, 3)
    run = made_run("maml", inner_lr=0.01, steps=2, normalisation="group")
    grid = {"steps": np.arange(1, 3), "options": [{"test_steps": np.int64(2), "inner_lr": np.float32(0.01)}]}
    found = GridSearchCV(FewShotClassifier(run, batch_size=np.int64(4)), grid, cv=2).fit(X, y).best_estimator_
    found.save(tmp_path / "learner")
    np.testing.assert_array_equal(FewShotClassifier.load(tmp_path / "learner").predict(X), found.predict(X))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_is_fitted_works_in_processes_that_are_started_anew(made_run, method):
    X, y = some(2, 2)
    fitted = [FewShotClassifier(made_run(name)).fit(X, y) for name in ("protonet", "anil")]
    vectors = Features(made_run("protonet")).fit()
    with multiprocessing.get_context(method).Pool(1) as pool:
        for model in fitted:
            np.testing.assert_array_equal(pool.apply(model.predict, (X,)), model.predict(X))
        np.testing.assert_allclose(pool.apply(vectors.transform, (X,)), vectors.transform(X), rtol=1e-5)


def test_features_have_names(made_run):
    X, _ = some(2)
    vectors = Features(made_run("protonet")).fit(X)
    names = [f"features{i}" for i in range(vectors.transform(X).shape[1])]
    assert vectors.get_feature_names_out().tolist() == names
