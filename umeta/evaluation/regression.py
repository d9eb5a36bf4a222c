"""Evaluation on functions to regress: mean squared error against gradient steps, within and beyond what was trained on.

The baselines of Finn, Abbeel and Levine (2017, section 5.1) are networks trained here, on the run's tasks, with its
model, outer step and number of meta-steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from umeta import seeds
from umeta.config import registry
from umeta.config.regression import Config
from umeta.draw import regression
from umeta.draw.curves import name_steps
from umeta.errors import UserError, suggest
from umeta.evaluation.result import Cell, Result, summarize, trace
from umeta.evaluation.rows import (
    Kept,
    describe_provenance,
    describe_question,
    name_hardware,
    read_results,
    record_result,
)
from umeta.metalearners.maml import MAML
from umeta.objectives import log_likelihood, squared_error
from umeta.parts import ProposerTraits, TaskTraits, Tracker
from umeta.report import write
from umeta.runtime.loop import RunContext, start_trackers
from umeta.stages.runs import Run
from umeta.tasks.completion import PixelTasks
from umeta.tasks.sinusoid import SinusoidTasks
from umeta.train import metatrain
from umeta.types import Batch, EpisodeSpec, MetaLearner, TaskDistribution, Theta

BASELINES = {"oracle": "oracle, told amplitude and phase", "pretrained": "pretrained on all tasks, fine-tuned"}
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)  # step sizes that fine-tuning the pretrained network is tuned over
TUNING = 100  # validation tasks that it is tuned on
CHUNK = 100  # test tasks adapted at a time
IMAGES, DRAWS = 3, 3  # to be completed in the picture of those, and draws of each
SHOWN = (0, 1, 10)  # steps after which the picture shows the prediction
POINTS = 200  # of a curve in it


@dataclass(frozen=True)
class Fitted:
    """A learner with what it learnt."""

    learner: MetaLearner
    theta: Theta
    told: bool = False
    """it is told each task's amplitude and phase"""
    note: str = ""


def measure_errors(
    fitted: Fitted,
    tasks: TaskDistribution,
    episode: EpisodeSpec,
    count: int,
    seed: int,
    steps: Sequence[int],
    measure: Callable[[Tensor, Batch], Tensor] = squared_error,
) -> Tensor:
    """Mean squared error on the queries of each of `count` tasks, after these numbers of steps: [count, len(steps)].

    measure: another measure of the answers. steps: rising. A learner without steps has the same error after any number
    of them.
    """
    tasks = tell(tasks) if fitted.told else tasks
    counts = [0] if fitted.learner.steps is None else steps
    found = []
    for start in range(0, count, CHUNK):
        with torch.no_grad():
            batch = tasks.sample(np.arange(start, min(start + CHUNK, count)), episode=episode, seed=seed)
            support, query = batch.support(), batch.query()
            adapted, each = None, []
            for before, k in pairwise([0, *counts]):
                adapted = fitted.learner.adapt(fitted.theta, support, start=adapted, steps=k - before)
                each.append(measure(fitted.learner.predict(fitted.theta, adapted, query.x), query))
            found.append(torch.stack(each, 1))
    return torch.cat(found).cpu().expand(count, len(steps))


class Trial:
    """What all rows of a test have in common: the run, and the tasks to train baselines, choose and test on."""

    def __init__(self, run: Run) -> None:
        self.run, self.settings = run, run.config.evaluate
        self.device = run.theta.device
        self.tasks = propose_tasks(run.config).to(self.device)
        self.unseen = propose_tasks(run.config, test=True).to(self.device)
        self.elsewhere = {
            option: {
                f"{a:.3g} to {b:.3g}": propose_tasks(run.config, option, (a, b)).to(self.device) for a, b in ranges
            }
            for option, ranges in self.settings.ranges.items()
        }

    def test(
        self,
        fitted: Fitted,
        tasks: TaskDistribution,
        shot: int,
        steps: Sequence[int],
        measure: Callable[[Tensor, Batch], Tensor] = squared_error,
    ) -> Tensor:
        """Errors on test tasks after these numbers of steps, or what else is measured."""
        s = self.settings
        # a seed of the test's own, or its first tasks would be those of a meta-training with the same seed
        seed = seeds.integer(s.seed, "test")
        return measure_errors(fitted, tasks, EpisodeSpec(1, shot, s.query), s.tasks, seed, steps, measure)

    def own(self, shot: int) -> Fitted:
        """Return the run's learner."""
        return Fitted(self.run.learner, self.run.theta)

    def pretrained(self, shot: int) -> Fitted:
        """Train a network on the points of all tasks alike; fine-tune by the step size best on validation tasks."""
        joint, s = self.joint("pretrained "), self.settings
        seed, episode = seeds.integer(s.seed, "validation"), EpisodeSpec(1, shot, s.query)
        means = {}
        for rate in RATES:
            tuned = self.resize_step(joint, rate)
            means[rate] = measure_errors(tuned, self.tasks, episode, TUNING, seed, [s.steps]).mean().nan_to_num(np.inf)
        best = min(means, key=lambda rate: means[rate])
        return replace(self.resize_step(joint, best), note=f"step size {best:g} with {shot} points")

    def oracle(self, shot: int) -> Fitted:
        """Return a network that is told amplitude and phase, and does not adapt."""
        return self.resize_step(self.joint("oracle ", told=True), 0.0)

    def joint(self, label: str, told: bool = False) -> Fitted:
        """Return the run's network trained on all tasks alike, as long as the run: MAML without an inner step."""
        config = self.run.config
        tasks = tell(self.tasks) if told else self.tasks
        learner = MAML(config.metalearner.model, steps=0).build(tasks.spec, config.train.episode)
        ctx = RunContext(config.seed, self.device, self.run.folder, resume=True, progress=True, label=label)
        return Fitted(learner, metatrain(learner, tasks, config.train, ctx), told)

    def resize_step(self, fitted: Fitted, inner_lr: float) -> Fitted:
        """With another inner step size."""
        assert isinstance(fitted.learner, MAML)
        spec = (tell(self.tasks) if fitted.told else self.tasks).spec
        learner = replace(fitted.learner, inner_lr=inner_lr)
        return replace(fitted, learner=learner.build(spec, self.run.config.train.episode))


def tell(tasks: TaskDistribution) -> SinusoidTasks:
    """Return the same waves with items that say amplitude and phase."""
    return replace(cast(SinusoidTasks, tasks), told=True)


def propose_tasks(
    config: Config, option: str = "", between: tuple[float, float] = (0, 0), *, test: bool = False
) -> TaskDistribution:
    """Return the tasks of the config's proposer, with one of its options changed to a range.

    test: those to test on, where they are others.

    Raises:
        UserError: it has no such option, or it does not say what functions to test on.
    """
    change = {option: list(between)} if option else {}
    where = f"evaluate.ranges.{option}" if option else "proposer"
    proposer = registry.build_part("proposer", {**config.plain["proposer"], **change}, where)
    tasks = proposer.propose(None, RunContext(config.seed))
    if TaskTraits.of(tasks).x or not test:
        return tasks
    unseen = ProposerTraits.of(proposer).test
    if unseen is None:
        raise UserError(
            "proposer: give it a method test(self), which returns tasks on functions that are not trained on"
        )
    return unseen()


def evaluate_run(run: Run, device: str, record: Path | None = None, trackers: Sequence[Tracker] = ()) -> Result:
    """Evaluate a run on functions, as `umeta.evaluation.run.evaluate_run`; on the device that the run is on.

    Raises:
        UserError: as `check`.
    """
    check(run.config, record)
    config, settings, trial = run.config, run.config.evaluate, Trial(run)
    title = config.title or config.name
    waves = TaskTraits.of(trial.tasks).x is not None  # of which alone there is more to tell, and to draw
    wanted = [key for key in settings.baselines if waves or key != "oracle"]
    rows = {name: getattr(trial, key) for key, name in BASELINES.items() if key in wanted}
    rows = {name: cache(method) for name, method in {**rows, title: trial.own}.items()}
    asked = describe_question(run)
    kept = Kept(run.folder / "evaluation.json", asked)
    table = kept.compute_rows({name: partial(compute_row, trial, method) for name, method in rows.items()})
    if waves:
        fitted = {name: method for name, method in rows.items() if name != BASELINES["oracle"]}
        regression.draw_fits(run.folder / "fits.png", collect_fits(trial, cast(SinusoidTasks, trial.tasks), fitted))
    if TaskTraits.of(trial.tasks).image:
        pictures = collect_completions(trial, cast(PixelTasks, trial.unseen))
        regression.draw_completions(run.folder / "fits.png", pictures)
    minutes = run.minutes(evaluate=kept.seconds)
    result: Result = {
        "domain": "regression",
        "name": config.name,
        "title": title,
        "rows": {name: found["cells"] for name, found in table.items()},
        "adaptation": {name: found["curve"] for name, found in table.items()},
        "extrapolation": {
            option: {name: found["elsewhere"][option] for name, found in table.items()} for option in settings.ranges
        },
        "protocol": {
            "name": config.plain["proposer"]["name"],
            "split": "test",
            "proposed_with": describe_source(trial.tasks),
            **{key: asked[key] for key in ("shots", "query", "tasks", "steps", "seed")},
        },
        "facts": [
            f"{settings.tasks} test tasks of seed {settings.seed} that nothing has seen before, {settings.query} "
            "queries each: mean squared error and its 95 % interval over tasks",
            *trial.tasks.describe(config.train.episode),
            *([f"learnt by the proposer's own loss, `{name_loss(trial.tasks)}`"] if name_loss(trial.tasks) else []),
            *(
                f"{name}: {', '.join(found['notes'])}, best on validation tasks"
                for name, found in table.items()
                if found["notes"]
            ),
            f"{title}: minutes {', '.join(f'{name} {value:g}' for name, value in minutes.items())}; "
            f"{name_hardware(run.theta.device)}; seed {config.seed}",
        ],
        "minutes": minutes,
        **describe_provenance(run),
    }
    with start_trackers(trackers, run.folder):
        write.write_adaptation(run, result, trackers)
    if record is not None:
        record_result(record, result)
    return result


def describe_source(tasks: TaskDistribution) -> str:
    """Say what the tasks are made of."""
    traits = TaskTraits.of(tasks)
    return "ranges made by hand" if traits.x else "images without labels" if traits.image else "data of one's own"


def name_loss(tasks: TaskDistribution) -> str:
    """Return the name of the tasks' own loss; empty where it is the squared error."""
    loss = tasks.spec.objective
    return getattr(loss, "__name__", type(loss).__name__) if callable(loss) else ""


def compute_row(trial: Trial, method: Callable[[int], Fitted]) -> dict[str, Any]:
    """Return a method's cells for each number of points, its curve over steps, and its errors on tasks from elsewhere.

    The latter two with the most points.
    """
    shots = trial.settings.shots
    fitted = {shot: method(shot) for shot in shots}
    last = trial.settings.steps
    found = {shot: trial.test(fitted[shot], trial.unseen, shot, range(last + 1)) for shot in shots}
    # a learner that does not say how sure it is gets the one standard deviation that is best for it on these tasks
    sure = {shot: partial(log_likelihood, std=found[shot][:, last].mean().sqrt()) for shot in shots}
    most = max(shots)
    finite = [k for k, values in enumerate(found[most].T) if values.isfinite().all()]
    return {
        "cells": {
            f"{shot} points, {name_steps(k)}": make_cell(found[shot][:, k])
            for shot in shots
            for k in dict.fromkeys([1, last])
        }
        | {
            f"{shot} points, log-likelihood": make_cell(
                trial.test(fitted[shot], trial.unseen, shot, [last], sure[shot])[:, 0]
            )
            for shot in shots
        },
        "curve": trace(finite, [summarize(found[most][:, k]) for k in finite]),
        "elsewhere": {
            option: {
                name: make_cell(trial.test(fitted[most], tasks, most, [last])[:, 0]) for name, tasks in ranges.items()
            }
            for option, ranges in trial.elsewhere.items()
        },
        "notes": [one.note for one in fitted.values() if one.note],
    }


def make_cell(values: Tensor) -> Cell:
    """Mean over tasks [T] and half width of its 95 % interval, shown with three digits; None where tasks diverged."""
    if not values.isfinite().all():
        return {"mean": None, "interval": None, "tasks": len(values), "digits": 3}
    return {**summarize(values), "digits": 3}


def collect_fits(trial: Trial, tasks: SinusoidTasks, rows: dict[str, Callable[[int], Fitted]]) -> list[regression.Fit]:
    """Return the first test task with each number of points, and what each method predicts for it after a few steps."""
    s, found = trial.settings, []
    grid = torch.linspace(*tasks.x, POINTS, device=trial.device)
    for shot in s.shots:
        task = tasks.sample(np.arange(1), episode=EpisodeSpec(1, shot, 1), seed=seeds.integer(s.seed, "test")).at(grid)
        support, query = task.support(), task.query()
        for name, method in rows.items():
            fitted, after = method(shot), {}
            shown = [0] if fitted.learner.steps is None else [k for k in SHOWN if k <= s.steps]
            with torch.no_grad():
                for k in shown:
                    adapted = fitted.learner.adapt(fitted.theta, support, steps=k)
                    after[k] = fitted.learner.predict(fitted.theta, adapted, query.x)[0, :, 0].cpu().numpy()
                draws = fitted.learner.predict_each(fitted.theta, adapted, query.x)[0, :, :, 0].cpu().numpy()
            x, y = (value[0, :, 0].cpu().numpy() for value in (support.x, support.y))
            true = query.y[0, :, 0].cpu().numpy()
            found.append(regression.Fit(f"{name}, {shot} points", grid.cpu().numpy(), true, x, y, after, draws))
    return found


def collect_completions(trial: Trial, tasks: PixelTasks) -> list[tuple[str, list[np.ndarray]]]:
    """Return the first test images, a row for each number of pixels: these, the answer, some draws of it, the truth."""
    learner, theta, found = trial.run.learner, trial.run.theta, []
    seed, width = seeds.integer(trial.settings.seed, "test"), tasks.image[0]
    places = tasks.places[None]
    for i in range(IMAGES):
        for shot in trial.settings.shots:
            support = tasks.sample(np.array([i]), episode=EpisodeSpec(1, shot, 1), seed=seed).support()
            with torch.no_grad():
                adapted = learner.adapt(theta, support)
                mean, each = (answer(theta, adapted, places)[0] for answer in (learner.predict, learner.predict_each))
            true = tasks.draw(np.array([i]), seed)[0].flatten(1).mT
            draws = list(each[:DRAWS]) if len(each) > 1 else []
            seen = [(support.x[0], support.y[0]), *((places[0], y[:, :width]) for y in (mean, *draws, true))]
            painted = [regression.paint(x.cpu().numpy(), y.cpu().numpy(), tasks.image) for x, y in seen]
            found.append((f"{shot} pixels", painted))
    return found


def check(config: Config, record: Path | None = None) -> None:
    """Find what would stop an evaluation, before anything long begins.

    Raises:
        UserError: an unknown baseline, ranges that the proposer does not have, a network that cannot be used, or a
            results file that is not one.
    """
    settings = config.evaluate
    if unknown := [name for name in settings.baselines if name not in BASELINES]:
        raise UserError(f"evaluate.baselines: no baseline is named '{unknown[0]}'{suggest(unknown[0], BASELINES)}")
    if not settings.shots:
        raise UserError("evaluate.shots: there are none; set some numbers of points, such as evaluate.shots=[5,10]")
    for option, ranges in settings.ranges.items():
        for between in ranges:
            propose_tasks(config, option, between)
    config.metalearner.build(propose_tasks(config).spec, config.train.episode)
    unseen = propose_tasks(config, test=True)
    for shot in settings.shots:
        unseen.sample(np.zeros(1), episode=EpisodeSpec(1, shot, settings.query), seed=settings.seed)
    if record is not None:
        read_results(record)
