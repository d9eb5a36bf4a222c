"""Sine waves: the tasks by their formula, learners that regress by hand, and every stage through the command line."""

from __future__ import annotations

import contextlib
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.toys import Itself, rand

from proposers.sinusoid import Sinusoid
from umeta import seeds
from umeta.cli.main import main
from umeta.config import build, reading, registry
from umeta.config.regression import TrainConfig
from umeta.errors import UserError
from umeta.evaluation import regression
from umeta.metalearners.lstm_learner import LSTMLearner
from umeta.metalearners.maml import MAML
from umeta.metalearners.neural_process import NeuralProcess
from umeta.metalearners.reptile import Reptile
from umeta.metalearners.snail import SNAIL
from umeta.models.mlp import MLP
from umeta.objectives import log_likelihood, squared_error
from umeta.outer.adam import Adam
from umeta.report import write
from umeta.report.tables import make_table
from umeta.runtime.loop import RunContext
from umeta.stages.runs import load_run
from umeta.tasks.sinusoid import SinusoidTasks
from umeta.testing import same, sampled, unchanged_randomness
from umeta.train import BatchProblem, metatrain
from umeta.types import Batch, EpisodeSpec, MetaLearner, TaskSpec, Theta

TASKS = Sinusoid().propose(None, RunContext())
EPISODE = EpisodeSpec(1, 10, 10)
LINE = TaskSpec((2,), "regression", outputs=1)
TINY = {
    "title": "MAML",
    "proposer": "sinusoid",
    "metalearner": {"name": "maml", "inner_lr": 0.01, "steps": 1, "model": {"name": "mlp", "hidden": [8]}},
    "train": {"outer": "adam", "steps": 12, "shot": 5, "query": 5, "meta_batch": 4},
    "evaluate": {
        "shots": [3, 5],
        "query": 10,
        "tasks": 20,
        "steps": 3,
        "ranges": {"amplitude": [[0.1, 5], [9, 10]], "phase": [[3.2, 6.2]]},
    },
}


def points(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor | None = None) -> Batch:
    return Batch(x, y, torch.ones(y.shape[:2], dtype=torch.bool) if mask is None else mask, 1)


def test_tasks_are_sine_waves_in_their_ranges() -> None:
    assert Sinusoid.sees_labels  # they are the waves that are tested on: a report says so
    batch = TASKS.sample(np.arange(500), episode=EPISODE, seed=3)
    for part in (batch.support(), batch.query()):
        assert part.x.shape == part.y.shape == (500, 10, 1)
        assert part.x.abs().max() <= 5
        torch.testing.assert_close(
            part.y[..., 0], batch.amplitude[:, None] * torch.sin(part.x[..., 0] - batch.phase[:, None])
        )
    for value, low, high in ((batch.amplitude, 0.1, 5), (batch.phase, 0, math.pi)):
        assert low <= value.min() < low + 0.1
        assert high - 0.1 < value.max() <= high
        assert abs(value.mean() - (low + high) / 2) < 0.1 * (high - low)  # 7 standard errors


def test_a_task_depends_on_its_number_and_the_seed_alone() -> None:
    with unchanged_randomness("sample"):
        many = sampled(TASKS, np.arange(6), EPISODE, 0)
    alone = sampled(TASKS, np.array([4]), EPISODE, 0)
    assert same(alone, tuple(part.chunk(4, 5) for part in many))
    assert not same(many, sampled(TASKS, np.arange(6), EPISODE, 1))
    assert not torch.equal(many[0].x, many[1].x)
    fewer = sampled(TASKS, np.arange(6), EpisodeSpec(1, 5, 10), 0)[0]
    assert torch.equal(fewer.x, many[0].x[:, :5])  # five points are the first of ten


def test_the_oracle_is_told_amplitude_and_phase() -> None:
    told = replace(TASKS, told=True)
    batch = told.sample(np.arange(3), episode=EPISODE, seed=0)
    x = batch.query().x
    assert told.spec.item_shape == x.shape[2:] == (3,)
    assert torch.equal(x[..., 1], batch.amplitude[:, None].expand(3, 10))
    assert torch.equal(x[..., 2], batch.phase[:, None].expand(3, 10))
    assert torch.equal(batch.query().y, TASKS.sample(np.arange(3), episode=EPISODE, seed=0).query().y)


def test_squared_error_by_hand() -> None:
    output, y = torch.tensor([[[1.0], [2.0], [9.0]]]), torch.tensor([[[0.0], [4.0], [0.0]]])
    mask = torch.tensor([[True, True, False]])
    assert squared_error(output, points(y, y, mask)).tolist() == [2.5]  # (1 + 4) / 2
    two = torch.tensor([[[1.0, 3.0]]])
    assert squared_error(two, points(two, torch.zeros_like(two))).tolist() == [5.0]  # (1 + 9) / 2


def test_log_likelihood_is_that_of_the_spread_an_answer_has() -> None:
    y, mean, log_std = rand(2, 3, 1), rand(2, 3, 1, seed=1), 0.3 * rand(2, 3, 1, seed=2)
    mask = torch.tensor([[True, True, False]] * 2)
    query = points(rand(2, 3, 2), y, mask)
    for std, output in ((log_std.exp(), torch.cat([mean, log_std], -1)), (torch.tensor(0.5), mean)):
        expected = torch.distributions.Normal(mean, std).log_prob(y)[:, :2].mean((1, 2))
        torch.testing.assert_close(log_likelihood(output, query, torch.tensor(0.5)), expected)
    errors = squared_error(torch.cat([mean, log_std], -1), query)
    torch.testing.assert_close(errors, squared_error(mean, query))


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_adaptation_by_hand(steps: int) -> None:
    """A line w M x + b after gradient steps on its mean squared error, all of M, w and b moving."""
    learner = MAML(Itself(), inner_lr=0.1).build(LINE, EPISODE)
    theta = learner.init(0)
    x, y, query = rand(2, 4, 2), rand(2, 4, 1, seed=1), rand(2, 3, 2, seed=2)
    with torch.no_grad():
        found = learner.predict(theta, learner.adapt(theta, points(x, y), steps=steps), query)
    for t in range(2):
        m, w, b = (theta.params[n].clone() for n in ("weight", "head.weight", "head.bias"))
        for _ in range(steps):
            hidden = x[t] @ m.T
            slope = 2 * (hidden @ w.T + b - y[t]) / 4  # d loss / d prediction [4, 1]
            m, w, b = m - 0.1 * (slope @ w).T @ x[t], w - 0.1 * slope.T @ hidden, b - 0.1 * slope.sum(0)
        torch.testing.assert_close(found[t], query[t] @ m.T @ w.T + b)


def test_the_picture_shows_the_draws_that_an_answer_mixes() -> None:
    learner = NeuralProcess(MLP([8]), draws=4).build(TASKS.spec, EPISODE)
    fitted = regression.Fitted(learner, learner.init(0))
    trial: Any = SimpleNamespace(settings=SimpleNamespace(shots=[5], seed=0, steps=1), device="cpu")
    (fit,) = regression.collect_fits(trial, TASKS, {"NP": lambda shot: fitted})
    assert fit.draws.shape == (4, 200)
    assert list(fit.after) == [0]  # it takes no steps
    np.testing.assert_allclose(fit.draws.mean(0), fit.after[0], atol=1e-6)
    assert fit.draws.std(0).min() > 0


def test_the_baselines_are_trained_on_all_points_alike() -> None:
    learner = MAML(MLP([4], "relu"), steps=0).build(TASKS.spec, EPISODE)
    theta = learner.init(0)
    theta = Theta({name: value.requires_grad_() for name, value in theta.params.items()})
    support, query = sampled(TASKS, np.arange(5), EPISODE, 0)
    _, found = BatchProblem(learner, theta, TASKS.spec, [support], query, 2).loss_and_grad()
    x, y = query.x.flatten(0, 1), query.y.flatten(0, 1)
    p = theta.params
    hidden = torch.relu(x @ p["1.weight"].T + p["1.bias"])
    loss = (hidden @ p["head.weight"].T + p["head.bias"] - y).square().mean()
    for grad, name in zip(torch.autograd.grad(loss, list(p.values())), p, strict=True):
        torch.testing.assert_close(found[name], grad)


@pytest.mark.parametrize("kind", [SNAIL, LSTMLearner])
def test_sequence_learners_read_the_numbers(kind: Any) -> None:
    learner = kind(Itself()).build(LINE, EPISODE)
    theta = learner.init(0)
    x, y, query = rand(1, 4, 2), rand(1, 4, 1, seed=1), rand(1, 3, 2, seed=2)
    adapted = learner.adapt(theta, points(x, y))
    assert torch.equal(adapted.params["pairs"], torch.cat([x, y], -1))  # in the order they came
    found = learner.predict(theta, adapted, query)
    assert found.shape == (1, 3, 1)
    assert not torch.equal(found, learner.predict(theta, learner.adapt(theta, points(x, -y)), query))
    mask = torch.tensor([[True, False, True, True]])
    some = [
        learner.predict(theta, learner.adapt(theta, points(x, other, mask)), query)
        for other in (y, y + 9 * ~mask[..., None])
    ]
    assert torch.equal(*some)  # what is masked is not read
    left = learner.predict(theta, learner.adapt(theta, points(x[:, [0, 2, 3]], y[:, [0, 2, 3]])), query)
    torch.testing.assert_close(some[0], left)


def trained(learner: MetaLearner, steps: int) -> tuple[float, float]:
    """Mean squared error on other tasks before and after meta-training, adapted."""
    train = TrainConfig(Adam(5e-3), steps=steps)
    learner = learner.build(TASKS.spec, EPISODE)
    support, query = sampled(TASKS, np.arange(200), EPISODE, 99)

    def error(theta: Theta) -> float:
        with torch.no_grad():
            answer = learner.predict(theta, learner.adapt(theta, support), query.x)
        return squared_error(answer, query).mean().item()

    before = error(learner.init(0))
    return before, error(metatrain(learner, TASKS, train))


@pytest.mark.slow
@pytest.mark.parametrize(
    "learner",
    [
        MAML(MLP([40, 40], "relu"), inner_lr=0.01, steps=1),
        Reptile(MLP([40, 40], "relu"), inner_lr=0.02, steps=5),
        SNAIL(MLP([20]), filters=8, reach=16),
        LSTMLearner(MLP([20]), hidden=32),
    ],
    ids=lambda learner: type(learner).__name__,
)
def test_learners_learn_waves(learner: MetaLearner) -> None:
    before, after = trained(learner, 300)
    assert after < 0.8 * before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A directory in which the tiny config was run, and what that printed; nothing may change it."""
    place = tmp_path_factory.mktemp("sinusoid")
    (place / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    with contextlib.chdir(place), contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["run", "tiny.yaml", "--device", "cpu", "--record", "results.json"]) == 0
    return place, out.getvalue()


def test_every_stage_runs_and_reports(finished: tuple[Path, str]) -> None:
    place, printed = finished
    run = place / "runs" / "tiny"
    result = json.loads((run / "report.json").read_text())
    assert list(result["rows"]) == [*regression.BASELINES.values(), "MAML"]
    columns = [f"{n} points, {k}" for n in (3, 5) for k in ("1 step", "3 steps")]
    assert list(result["rows"]["MAML"]) == [*columns, *(f"{n} points, log-likelihood" for n in (3, 5))]
    assert "5 points, 3 steps" in printed
    for picture in ("adaptation", "fits", "extrapolation", "training"):
        assert (run / f"{picture}.png").stat().st_size > 1000
    assert (place / "tasks" / "tiny" / "preview.png").exists()
    page = (run / "report.html").read_text()
    assert "Extrapolation" in page
    assert "mean squared error" in page
    assert "## Extrapolation: amplitude" in (run / "report.md").read_text()
    oracle = result["adaptation"][regression.BASELINES["oracle"]]["mean"]
    assert oracle == [oracle[0]] * 4  # it does not adapt
    assert result["protocol"]["proposed_with"] == "ranges made by hand"


def test_the_errors_are_those_of_the_run_on_tasks_of_their_own(finished: tuple[Path, str]) -> None:
    place, _ = finished
    result = json.loads((place / "runs" / "tiny" / "report.json").read_text())
    with contextlib.chdir(place):
        run = load_run("runs/tiny", device="cpu")
    seed = seeds.integer(0, "test")
    assert seed != run.config.seed  # whose tasks meta-training has seen
    for name, changed in (("0.1 to 5", {}), ("9 to 10", {"amplitude": (9, 10)})):
        tasks = replace(SinusoidTasks((0.1, 5), (0, math.pi), (-5, 5)), **changed)
        support, query = sampled(tasks, np.arange(20), EpisodeSpec(1, 5, 10), seed)
        adapted = run.learner.adapt(run.theta, support, steps=3)
        each = (run.learner.predict(run.theta, adapted, query.x) - query.y).square().mean((1, 2))
        cell = result["extrapolation"]["amplitude"]["MAML"][name]
        assert cell["mean"] == pytest.approx(each.mean().item(), rel=1e-4)
        assert cell["interval"] == pytest.approx(1.96 * each.std(correction=0).item() / 20**0.5, rel=1e-3)
    mean = result["rows"]["MAML"]["5 points, 3 steps"]["mean"]
    likelihood = result["rows"]["MAML"]["5 points, log-likelihood"]["mean"]  # of Gaussians of this variance
    assert likelihood == pytest.approx(-0.5 * math.log(2 * math.pi * mean) - 0.5, rel=1e-4)
    inside = result["rows"]["MAML"]["5 points, 3 steps"]
    assert inside == result["extrapolation"]["amplitude"]["MAML"]["0.1 to 5"]


def test_an_evaluation_goes_on_where_it_stopped(finished: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    place, printed = finished
    monkeypatch.chdir(place)
    monkeypatch.setattr(regression, "compute_row", lambda *_: pytest.fail("every row is finished"))
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["run", "tiny.yaml", "--device", "cpu", "--resume"]) == 0
    assert out.getvalue().splitlines()[:4] == printed.splitlines()[:4]


def test_divergence_is_told() -> None:
    assert regression.make_cell(torch.tensor([1.0, 3.0]))["mean"] == 2.0
    assert write.format_cell(regression.make_cell(torch.tensor([1.0, math.nan]))) == "diverged"
    assert write.format_cell(regression.make_cell(torch.tensor([1.0, math.inf]))) == "diverged"


def test_results_become_tables(finished: tuple[Path, str]) -> None:
    results = finished[0] / "results.json"
    (found,) = json.loads(results.read_text())
    cell = found["rows"]["MAML"]["3 points, 1 step"]
    assert f"{cell['mean']:.3f} ± {cell['interval']:.3f}" in make_table({"results.json": results})
    header, _, *rows = make_table({"results.json": results}, change="phase").splitlines()
    rows = [row for row in rows if row.startswith("|")]
    assert header == "|  | 3.2 to 6.2 | minutes |"
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in found["rows"]]


REGRESS = [
    name
    for name in registry.built_in("metalearner")
    if (kind := registry.find("metalearner", name)).regresses and not getattr(kind, "policies_only", False)
]


@pytest.mark.parametrize("learner", REGRESS)
def test_learners_that_regress(learner: str) -> None:
    made = build.build(
        {**TINY, "name": learner, "metalearner": {"name": learner, "model": {"name": "mlp", "hidden": [4]}}}
    )
    built = made.metalearner.build(TASKS.spec, made.train.episode)
    theta = metatrain(built, TASKS, replace(made.train, steps=2))
    support, query = sampled(TASKS, np.arange(2), EPISODE, 0)
    found = built.predict(theta, built.adapt(theta, support, steps=2), query.x)
    assert found[..., :1].shape == query.y.shape
    assert found.shape[-1] <= 2  # beside a number how sure it is
    assert found.isfinite().all()


@pytest.mark.parametrize("learner", ["protonet", "matching", "r2d2", "siamese", "relation", "embedding_lr"])
def test_learners_of_classes_are_refused(learner: str) -> None:
    metalearner = {"name": learner, "model": {"name": "mlp"}}
    with pytest.raises(UserError, match=f"{learner} tells classes apart and cannot predict numbers"):
        build.build({**TINY, "name": "x", "metalearner": metalearner})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"name": "digits"}}, "makes tasks of nothing but its options"),
        ({"env": {"name": "nav2d"}}, "expected|missing|unknown"),
        ({"proposer": {"name": "sinusoid", "amplitude": [5, 1]}}, "amplitude is \\[smallest, largest\\]"),
        ({"proposer": {"name": "sinusoid", "amplitud": [0, 1]}}, "amplitude"),
        ({"train": {**TINY["train"], "way": 5}}, "unknown option 'way'"),
        ({"train": {**TINY["train"], "outer": "trpo"}}, "is for environments"),
        ({"rounds": [{}]}, "leave them out on functions"),
    ],
)
def test_mistakes_are_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build.build(reading.expand_names({**TINY, "name": "x", **change}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("evaluate.baselines=[pretraned]", "pretrained"),
        ("evaluate.ranges={amplitud: [[1, 2]]}", "evaluate.ranges.amplitud"),
        ("evaluate.ranges={phase: [[2, 1]]}", "evaluate.ranges.phase"),
        ("evaluate.shots=[]", "evaluate.shots"),
    ],
)
def test_mistakes_are_found_before_the_work(
    change: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    assert main(["run", "tiny.yaml", change, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not Path("tasks").exists()


def test_what_needs_images_refuses_the_run(finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    place, _ = finished
    assert main(["export", str(place / "runs" / "tiny"), "--out", str(place / "export")]) == 2
    assert "this run is on functions, and a run on images is needed" in capsys.readouterr().err


def test_it_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("sinusoid ")]
    assert "Finn, Abbeel, Levine 2017" in line
