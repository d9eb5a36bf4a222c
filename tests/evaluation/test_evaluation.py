"""Evaluation, baselines and reports against values worked by hand and reference libraries."""

import json
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from umeta.benchmarks import baselines
from umeta.benchmarks.labelled import LabelledImages
from umeta.benchmarks.protocols import PROTOCOLS, resolve_episodes
from umeta.config import build, reading
from umeta.config.images import EvaluateConfig
from umeta.data.digits import Digits
from umeta.errors import UserError
from umeta.evaluation import images
from umeta.evaluation.images import evaluate
from umeta.evaluation.result import list_cautions, summarize
from umeta.evaluation.rows import find_commit, record_result
from umeta.evaluation.run import evaluate_run
from umeta.metalearners.protonet import ProtoNet
from umeta.models.conv4 import Conv4
from umeta.report.tables import collect_series, rewrite
from umeta.report.write import align_columns, format_markdown, tabulate
from umeta.stages import metatrain, propose, runs
from umeta.tasks.partition import PartitionTasks
from umeta.testing import sampled, toy_tasks
from umeta.types import Adapted, EpisodeSpec, Theta

EPISODE = EpisodeSpec(3, 2, 4)


def vectors(noise):
    labels = np.arange(60) % 4
    z = np.eye(4)[labels] + np.random.default_rng(0).normal(0, noise, (60, 4))
    return PartitionTasks(z.astype(np.float32), labels[None])


def test_interval_is_the_published_formula():
    values = np.array([0.5, 0.7, 0.9, 0.7])
    found = summarize(values)
    assert found["mean"] == pytest.approx(0.7)
    assert found["interval"] == pytest.approx(1.96 * math.sqrt(0.02) / 2)


class Constant:
    """A learner that always answers class 0."""

    def adapt(self, theta, support, *, start=None, steps=None):
        return Adapted({})

    def predict(self, theta, adapted, x):
        out = torch.zeros(*x.shape[:2], 3)
        out[..., 0] = 1
        return out


def test_a_constant_answer_scores_exactly_chance():
    found = evaluate(Constant(), Theta({}), vectors(0.1), EPISODE, count=21)
    assert found.shape == (21,)
    assert np.allclose(found, 1 / 3)


class Memory:
    """A learner that knows the items it adapted on, and answers class 0 for any other."""

    def adapt(self, theta, support, *, start=None, steps=None):
        return Adapted({"x": support.x, "y": support.y})

    def predict(self, theta, adapted, x):
        known = (x[:, :, None] == adapted.params["x"][:, None]).all(-1).float()  # [T, N, support]
        return known @ torch.nn.functional.one_hot(adapted.params["y"], 3).float()


def test_what_is_adapted_on_is_never_what_is_asked_for():
    """Items that are all different: who learns the support by heart knows no query."""
    assert np.allclose(evaluate(Memory(), Theta({}), vectors(0.1), EPISODE, count=21), 1 / 3)
    repeated = PartitionTasks(np.eye(4, dtype=np.float32)[np.arange(60) % 4], np.arange(60)[None] % 4)
    assert np.allclose(evaluate(Memory(), Theta({}), repeated, EPISODE, count=21), 1)


def test_nearest_neighbour_equals_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    tasks = vectors(0.6)
    batch = tasks.sample(np.arange(10), episode=EPISODE, seed=1)
    expected = [
        KNeighborsClassifier(1)
        .fit(tasks.items[batch.support_index[i]], batch.support_label[i].numpy())
        .score(tasks.items[batch.query_index[i]], batch.query_label[i].numpy())
        for i in range(10)
    ]
    found = baselines.nearest_neighbour(tasks, EPISODE, 10, seed=1)
    assert np.allclose(found, expected)
    assert 0.3 < found.mean() < 1


def test_linear_separates_what_is_separable():
    assert baselines.linear(vectors(0.01), EPISODE, 5, seed=0).tolist() == [1] * 5


def test_linear_is_logistic_regression_with_the_strength_asked_for():
    from sklearn.linear_model import LogisticRegression

    tasks = vectors(0.6)
    batch = tasks.sample(np.arange(10), episode=EPISODE, seed=1)
    items = tasks.items.numpy()
    for strength, options in ((1.0, {}), (1e-4, {"c": 1e-4}), (100.0, {"c": 100.0})):
        found = baselines.linear(tasks, EPISODE, 10, seed=1, **options)
        models = [
            LogisticRegression(C=strength, max_iter=200).fit(items[some], label.numpy())
            for some, label in zip(batch.support_index, batch.support_label, strict=True)
        ]
        expected = [
            model.score(items[batch.query_index[i]], batch.query_label[i].numpy()) for i, model in enumerate(models)
        ]
        assert found.tolist() == expected


def test_from_scratch_learns_a_task():
    from umeta.models.conv4 import Conv4

    digits = LabelledImages.load(Digits(), "test")
    learner = baselines.from_scratch(Conv4(filters=8, down="stride"), lr=0.1, steps=60)
    learner = learner.build(digits.tasks().spec, EpisodeSpec(5, 5, 5))
    theta = learner.init(0)
    assert evaluate(learner, theta, digits.tasks(), EpisodeSpec(5, 5, 5), count=8).mean() > 0.4


def test_protocols_are_the_published_ones_and_options_replace_their_parts():
    assert PROTOCOLS["cactus"].query == 5
    assert PROTOCOLS["cactus"].tasks == 1000
    episodes, count = resolve_episodes(EvaluateConfig(protocol="cactus", episodes=[(3, 2)], tasks=7))
    assert (episodes, count) == ([EpisodeSpec(3, 2, 5)], 7)
    with pytest.raises(UserError, match="did you mean 'cactus'"):
        resolve_episodes(EvaluateConfig(protocol="cactos"))


TINY = """
title: tiny
data: digits
embedding: pixels
proposer: {name: kmeans, k: 10, partitions: 2, smallest: 6}
metalearner: {name: protonet, model: {name: conv4, filters: 8, down: stride}}
train: {outer: adam, steps: 3, way: 5, shot: 1, query: 5, meta_batch: 2}
evaluate: {protocol: small, tasks: 8, scratch_tasks: 2, scratch_steps: 2}
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "tiny.yaml").write_text(TINY)
    plain = reading.read(folder / "tiny.yaml", [f"out={folder}"])
    propose.propose(build.build(plain), device="cpu")
    return metatrain.metatrain(build.build(plain), device="cpu")


def test_a_run_is_evaluated_beside_its_baselines_and_reported(run_folder):
    result = evaluate_run(run_folder, device="cpu")
    assert list(result["rows"]) == [
        "chance",
        "raw pixels, 1-NN",
        "HOG, linear",
        "pixels, 1-NN",
        "pixels, linear",
        "from scratch",
        "tiny",
    ]
    assert result["rows"]["chance"]["5-way 1-shot"]["mean"] == pytest.approx(20)
    assert result["rows"]["raw pixels, 1-NN"] == result["rows"]["pixels, 1-NN"]
    assert result["protocol"]["inference"] == "inductive"
    assert result["protocol"]["proposed_with"] == "no labels"
    for name in ("report.md", "report.json", "test_tasks.png", "training.png"):
        assert (run_folder / name).stat().st_size > 100
    page = (run_folder / "report.md").read_text()
    for fact in ("5 classes of the split `test`", "5 queries", "8 tasks", "95 % interval", "inductive", "no labels"):
        assert fact in page


def test_finished_rows_are_kept_and_not_computed_again(run_folder, monkeypatch):
    first = evaluate_run(run_folder, device="cpu")
    monkeypatch.setattr(baselines, "nearest_neighbour", lambda *a, **k: pytest.fail("computed again"))
    assert evaluate_run(run_folder, device="cpu")["rows"] == first["rows"]
    monkeypatch.undo()
    other = evaluate_run(run_folder, {"evaluate": {"seed": 5}}, device="cpu")
    assert other["rows"]["tiny"] != first["rows"]["tiny"]


def test_test_images_that_were_trained_on_are_counted_and_stamped(run_folder, monkeypatch):
    """By their content: three of the test images replaced by such as meta-training saw, whatever their class."""
    assert "seen" not in evaluate_run(run_folder, {"evaluate": {"baselines": []}}, device="cpu")
    assert "trained on" not in (run_folder / "report.html").read_text()
    read = Digits.read

    def leaky(self, split):
        items = read(self, split)
        if split == "train":
            return items
        pixels = items.pixels.copy()
        pixels[:3] = read(self, "train").pixels[-3:]
        return replace(items, pixels=pixels)

    monkeypatch.setattr(Digits, "read", leaky)
    result = evaluate_run(run_folder, {"evaluate": {"baselines": []}}, device="cpu")
    assert result["seen"] == 3
    told = f"test images that were trained on: 3 of {len(read(Digits(), 'test').pixels)}; those are no test of new ones"
    assert all(told in (run_folder / f"report.{ending}").read_text() for ending in ("md", "html"))


def test_transductive_runs_are_stamped(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    plain = reading.read(
        tmp_path / "tiny.yaml", [f"out={tmp_path}", "metalearner.normalisation=batch", "evaluate.baselines=[]"]
    )
    propose.propose(build.build(plain), device="cpu")
    result = evaluate_run(metatrain.metatrain(build.build(plain), device="cpu"), device="cpu")
    assert result["protocol"]["inference"] == "transductive"
    assert "transductive" in (tmp_path / "runs/tiny/report.md").read_text()


def test_an_oracle_is_stamped(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    plain = reading.read(
        tmp_path / "tiny.yaml", [f"out={tmp_path}", "proposer=umeta.benchmarks.oracle:Oracle", "evaluate.baselines=[]"]
    )
    propose.propose(build.build(plain), device="cpu")
    result = evaluate_run(metatrain.metatrain(build.build(plain), device="cpu"), device="cpu")
    assert result["protocol"]["proposed_with"] == "true labels"


def test_results_name_the_commit_that_they_were_made_by():
    root = Path(__file__).parents[2]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True).stdout.strip()
    if not head:
        pytest.skip("no checkout")
    assert (find_commit() or "").rstrip("+") == head[:12]


def test_results_are_appended_once_per_name_seed_and_protocol(tmp_path):
    path = tmp_path / "results.json"
    result = {"name": "a", "seed": 0, "protocol": {"name": "cactus", "split": "test"}, "rows": 1}
    record_result(path, result)
    record_result(path, {**result, "seed": 1})
    record_result(path, {**result, "rows": 2})
    assert [(row["seed"], row["rows"]) for row in json.loads(path.read_text())] == [(1, 1), (0, 2)]
    path.write_text("{}")
    with pytest.raises(UserError, match=r"results\.json"):
        record_result(path, result)


def row(title, **cells):
    return {"title": title, "rows": {"chance": {"5w": {"mean": 20, "interval": 0}}, title: cells}}


def test_tables_name_what_was_not_run():
    rows = tabulate(
        [row("A", **{"5w": {"mean": 50.125, "interval": 0.5}}), row("B", **{"20w": {"mean": 9, "interval": 1}})]
    )
    assert rows == [
        ["", "5w", "20w"],
        ["chance", "20.00", "not run"],
        ["A", "50.12 ± 0.50", "not run"],
        ["B", "not run", "9.00 ± 1.00"],
    ]
    assert format_markdown(rows).splitlines()[1] == "|---|---:|---:|"
    assert len({len(line) for line in align_columns(rows).splitlines()}) == 1


def test_results_become_a_curve_over_a_key_of_their_configs():
    def result(k: int, mean: float) -> dict:
        rows = {
            "chance": {"5-way": {"mean": 20.0, "interval": 0.0}},
            f"k {k}": {"5-way": {"mean": mean, "interval": 1.5}},
        }
        return {"title": f"k {k}", "config": {"proposer": {"k": k}}, "rows": rows}

    found = collect_series([result(1, 50.0), result(10, 60.0)], "proposer.k")
    assert found == {"5-way": {"label": "proposer.k", "x": [1, 10], "mean": [50.0, 60.0], "interval": [1.5, 1.5]}}


def test_marked_tables_are_rewritten_from_results_files(tmp_path):
    published = [{"title": "P", "rows": {"P": {"5w": {"mean": 1, "interval": 0}}}, "source": "someone 2019"}]
    (tmp_path / "r.json").write_text(json.dumps(published))
    text = "before\n<!-- results: r.json -->\nold\n<!-- end -->\nafter"
    new = rewrite(text, tmp_path)
    assert "| P | 1.00 |\n\n*Published: “P” (someone 2019).*" in new
    assert "old" not in new
    assert new.startswith("before")
    assert new.endswith("after")
    assert rewrite(new, tmp_path) == new


def test_a_marked_table_may_have_chosen_rows(tmp_path):
    cells = {name: {"5w": {"mean": i, "interval": 0}} for i, name in enumerate("ABC")}
    (tmp_path / "r.json").write_text(json.dumps([{"title": "A", "rows": cells, "source": "someone 2019"}]))
    new = rewrite("<!-- results: r.json; C; A -->\n<!-- end -->", tmp_path)
    assert [line[:3] for line in new.splitlines() if line.startswith("| ") and line[2] in "ABC"] == ["| C", "| A"]
    assert rewrite(new, tmp_path) == new


def test_a_run_records_what_its_tasks_were_made_with(tmp_path, capsys):
    """Meta-training with another embedding in the config than the tasks' does not relabel them."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    common = [f"out={tmp_path}", "evaluate.baselines=[knn]"]
    propose.propose(build.load(tmp_path / "tiny.yaml", [*common, "embedding.whiten=8"]), device="cpu")
    acai = build.load(tmp_path / "tiny.yaml", [*common, "embedding={name: acai, steps: 1}", "proposer.k=7"])
    folder = metatrain.metatrain(acai, device="cpu")
    result = evaluate_run(folder, device="cpu")
    assert result["config"]["embedding"] == {"name": "pixels", "whiten": 8}
    assert result["config"]["proposer"]["k"] == 10
    assert "pixels, 1-NN" in result["rows"]
    (tmp_path / "tasks/tiny").rename(tmp_path / "tasks/gone")
    again = evaluate_run(folder, device="cpu")
    assert "pixels, 1-NN" not in again["rows"]
    assert "left out" in capsys.readouterr().err


def test_the_embedding_cache_looks_into_the_files_that_options_name(tmp_path, monkeypatch):
    (tmp_path / "tiny.yaml").write_text(TINY)
    vectors = np.random.default_rng(0).normal(size=(901, 4)).astype(np.float32)
    found = []
    for scale in (1, 2):
        np.save(tmp_path / "vectors.npy", vectors * scale)
        changes = [f"out={tmp_path / str(scale)}", f"embedding={{name: precomputed, path: {tmp_path / 'vectors.npy'}}}"]
        folder = propose.propose(build.load(tmp_path / "tiny.yaml", changes), device="cpu")
        found.append(np.load(folder / "embeddings.npy"))
    assert np.array_equal(found[0] * 2, found[1])


def test_other_inner_steps_at_test(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    learner = "metalearner={name: maml, model: {name: conv4, filters: 4, down: stride}, steps: 1}"
    plain = build.load(tmp_path / "tiny.yaml", [f"out={tmp_path}", learner, "evaluate.baselines=[]"])
    propose.propose(plain, device="cpu")
    folder = metatrain.metatrain(plain, device="cpu")
    few, many = (evaluate_run(folder, {"evaluate": {"steps": n}}, device="cpu") for n in (None, 20))
    assert few["protocol"]["steps"] == 1
    assert many["protocol"]["steps"] == 20
    assert few["rows"]["tiny"] != many["rows"]["tiny"]


def test_baselines_on_different_data_stand_apart_in_a_table():
    def result(name, mean):
        cell = {"5w": {"mean": mean, "interval": 0}}
        return {"title": name, "name": name, "rows": {"kNN": cell, name: cell}}

    assert [row[0] for row in tabulate([result("A", 1), result("B", 1)])] == ["", "kNN", "A", "B"]
    assert [row[0] for row in tabulate([result("A", 1), result("B", 2)])] == ["", "kNN", "kNN (B)", "A", "B"]


def test_a_damaged_record_of_finished_rows_is_passed_over(run_folder):
    for text in ("[]", "{", "null"):
        (run_folder / "evaluation.json").write_text(text)
        assert evaluate_run(run_folder, {"evaluate": {"baselines": []}}, device="cpu")["rows"]["tiny"]


@pytest.mark.parametrize("change", ["options", "version"])
def test_what_another_learner_or_version_found_is_not_kept(run_folder, monkeypatch, change):
    settings: dict = {"evaluate": {"baselines": []}}
    evaluate_run(run_folder, settings, device="cpu")
    if change == "options":
        settings["metalearner"] = {"normalisation": "batch"}
    else:
        monkeypatch.setattr("umeta.evaluation.rows.__version__", "0.0.0")
    done = []
    monkeypatch.setattr("umeta.evaluation.images.test_learner", lambda *_: done.append(1) or np.zeros(8))
    assert evaluate_run(run_folder, settings, device="cpu")["rows"]["tiny"]["5-way 1-shot"]["mean"] == 0
    assert done


def test_variants_are_further_rows_of_the_same_learner(run_folder):
    """Each is the learner with its options changed, and says so where it sees the queries together."""
    wanted = {"tuned": {"test_steps": 9}, "refined": {"refine": 3}, "unchanged": {"tune_lr": 0.1}}
    settings = {"baselines": [], "variants": wanted}
    rows = evaluate_run(run_folder, {"evaluate": settings}, device="cpu")["rows"]
    names = ["tiny, tuned", "tiny, refined, transductive", "tiny, unchanged"]
    assert list(rows) == ["chance", "tiny", *names]
    assert rows["tiny, unchanged"] == rows["tiny"]
    run = runs.load_run(run_folder, device="cpu")
    tasks = LabelledImages.load(Digits(), "test").tasks()
    episodes, count = resolve_episodes(run.config.evaluate)
    for name, learner, steps in (
        ("tiny", ProtoNet(run.learner.model), None),
        (names[0], ProtoNet(run.learner.model), 9),
        (names[1], ProtoNet(run.learner.model, refine=3), None),
    ):
        learner = learner.build(tasks.spec, episodes[0])
        found = evaluate(learner, run.theta, tasks, episodes[0], count=count, steps=steps)
        assert rows[name][str(episodes[0])] == pytest.approx(images.percent(found))
    accuracies = {name: rows[name][str(episodes[0])]["mean"] for name in ("tiny", *names[:2])}
    assert len(set(accuracies.values())) > 1


def test_a_transductive_learners_variants_are_named_as_well(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY)
    changes = ["evaluate.baselines=[]", "evaluate.variants={a: {test_steps: 2}}", "metalearner.normalisation=batch"]
    plain = build.load(tmp_path / "tiny.yaml", [f"out={tmp_path}", *changes])
    propose.propose(plain, device="cpu")
    result = evaluate_run(metatrain.metatrain(plain, device="cpu"), device="cpu")
    assert list(result["rows"]) == ["chance", "tiny", "tiny, a, transductive"]
    assert result["protocol"]["inference"] == "transductive"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"test_step": 2}, r"evaluate\.variants\.wrong: unknown option 'test_step'; did you mean 'test_steps'"),
        ({"test_steps": -1}, r"evaluate\.variants\.wrong\.test_steps"),
        ({"name": "mamml"}, "did you mean 'maml'"),
    ],
)
def test_a_mistake_in_a_variant_is_named_before_anything_runs(run_folder, monkeypatch, change, says):
    monkeypatch.setattr("umeta.evaluation.images.evaluate", lambda *a, **k: pytest.fail("evaluated"))
    settings = {"baselines": [], "variants": {"right": {"test_steps": 2}, "wrong": change}, "seed": 77}
    before = {path: path.stat().st_mtime_ns for path in run_folder.iterdir()}
    with pytest.raises(UserError, match=says):
        evaluate_run(run_folder, {"evaluate": settings}, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in run_folder.iterdir()} == before


@pytest.mark.parametrize(
    ("baseline", "interval", "said"),
    [(60.0, 1.0, True), (52.0, 1.0, True), (51.0, 1.0, False), (40.0, 0.0, False), (None, None, False)],
)
def test_a_report_says_where_a_baseline_is_better_by_more_than_the_intervals(baseline, interval, said):
    cells = {"5w": {"mean": 50.0, "interval": 0.5, "tasks": 9}, "20w": {"mean": 10.0, "interval": 0.5, "tasks": 9}}
    other = {"5w": {"mean": baseline, "interval": interval, "tasks": 9}}
    variant = {"5w": {"mean": 99.0, "interval": 0.1, "tasks": 9}}  # of the learner itself, which is no baseline
    result = {"title": "A", "rows": {"pixels": other, "A": cells, "A, changed": variant}}
    expected = ["5w: a simpler method is better here, pixels"] if said else []
    assert list_cautions(result) == expected
    assert list_cautions({**result, "domain": "regression"}) == []


def test_a_report_judges_what_is_handed_back_once_it_has_adapted():
    def cell(mean):
        return {"mean": mean, "interval": 1.0, "tasks": 5}

    def cells(*means):
        return dict(zip(["0 steps", "1 step", "2 steps"], map(cell, means), strict=True))

    result = {
        "title": "A",
        "domain": "env",
        "rows": {"scratch": cells(9, 5, 9), "A": cells(0, 1, 1), "A, with practice": cells(0, 8, 1)},
    }
    assert list_cautions({**result, "handed_back": "A, with practice"}) == [
        "2 steps: a simpler method is better here, scratch"
    ]
    assert len(list_cautions(result)) == 2


def test_certainty_is_the_mean_log_probability_of_the_right_class():
    tasks, episode = toy_tasks(), EpisodeSpec(3, 2, 2)
    learner = ProtoNet(Conv4(filters=4)).build(tasks.spec, episode)
    theta = learner.init(0)
    config = SimpleNamespace(evaluate=SimpleNamespace(seed=3))
    run = SimpleNamespace(learner=learner, theta=theta, test_steps=None, config=config)
    found = images.measure_calibration(run, tasks, episode, 10)
    support, query = sampled(tasks, np.arange(10), episode, 3)
    logits = learner.predict(theta, learner.adapt(theta, support), query.x)
    expected = -F.cross_entropy(logits.flatten(0, 1), query.y.flatten())
    assert found["log_likelihood"] == pytest.approx(expected.item(), rel=1e-4)
