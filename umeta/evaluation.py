"""Evaluation: adapt to tasks with true labels, and answer their queries."""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta import artifacts, distributed, footprint, registry, report
from umeta.benchmarks import baselines
from umeta.benchmarks.distorted import Distorted
from umeta.benchmarks.labelled import LabelledImages
from umeta.benchmarks.protocols import resolve, test_images
from umeta.calibration import expected_calibration_error, reliability
from umeta.config import Config, EnvConfig, RegressionConfig, RunConfig, joined
from umeta.context import Progress, postponed_interrupt, started
from umeta.errors import Interrupted, UserError, suggest
from umeta.lock import lent, owned
from umeta.objectives import accuracy
from umeta.stages import Run, load_run, snapshots
from umeta.tasks.instances import Augmented
from umeta.tasks.partition import PartitionTasks
from umeta.types import (
    Batch,
    Embedder,
    EpisodeSpec,
    MetaLearner,
    Model,
    Sink,
    TaskDistribution,
    TaskSpec,
    Theta,
    to_device,
)
from umeta.version import __version__

ON_EMBEDDING = ("knn", "linear", "mlp", "cluster_matching")
BASELINES = ("pixels_knn", *ON_EMBEDDING, "scratch")
CLUSTERS = 500  # of cluster matching, where the proposer has no such number
RATES = (0.1, 0.03, 0.3)  # step sizes that training from scratch is tuned over; without a val split the first
TUNING = 24  # validation tasks that it is tuned on
CHUNK = 8  # test tasks adapted at a time
PARTS = ("rows", "scratch_lr", "curves", "step_curves", "extrapolation", "calibration")  # of what is kept
CHANGES = ("shear", "scale")  # that test images can be distorted by


def evaluate(
    learner: MetaLearner,
    theta: Theta,
    tasks: TaskDistribution,
    episode: EpisodeSpec,
    *,
    count: int = 1000,
    seed: int = 0,
    steps: int | None = None,
    label: str = "",
) -> np.ndarray:
    """Accuracy on each of `count` tasks [count], by the same `adapt` and `predict` as in meta-training.

    steps: inner steps, where the learner takes any; by default its own.
    """
    found = []
    bar = Progress(label, count, enabled=bool(label))
    for logits, query in answers(learner, theta, tasks, episode, count, seed, steps):
        found.append(accuracy(logits, query).cpu())
        bar.update(min(CHUNK * len(found) * distributed.size(), count))
    bar.close()
    return torch.cat(distributed.gathered(found)).numpy()


def answers(
    learner: MetaLearner,
    theta: Theta,
    tasks: TaskDistribution,
    episode: EpisodeSpec,
    count: int,
    seed: int,
    steps: int | None,
) -> Iterator[tuple[Tensor, Batch]]:
    """Logits [T, N, way] of the queries of tasks 0 to `count`, and the queries, a chunk of tasks at a time.

    Several processes share the chunks out: each gives its own.
    """
    for start in distributed.shard(range(0, count, CHUNK)):
        with torch.no_grad():
            batch = tasks.sample(np.arange(start, min(start + CHUNK, count)), episode=episode, seed=seed)
            query = batch.query()
            adapted = learner.adapt(theta, batch.support(), steps=steps)
            yield learner.predict(theta, adapted, query.x), query


def interval(accuracies: np.ndarray) -> dict[str, float]:
    """Mean and half width of its 95 % interval over tasks, 1.96 * std / sqrt(n), in percent."""
    return {
        "mean": 100 * float(accuracies.mean()),
        "interval": 196 * float(accuracies.std()) / len(accuracies) ** 0.5,
        "tasks": len(accuracies),
    }


def evaluate_run(
    folder: Path | str,
    overrides: dict[str, Any] | None = None,
    *,
    device: str = "auto",
    record: Path | None = None,
    trusted: Collection[str] | None = (),
    sinks: Sequence[Sink] = (),
) -> dict[str, Any]:
    """Evaluates a run on the labelled split of its data, beside the baselines; writes `report.{html,md,json}`.

    Finished rows and curves are kept in `evaluation.json`, so that an interrupted evaluation goes on where it stopped.
    `record` names a results file to append to; `overrides` and `trusted` are those of `load_run`; the sinks get the
    results.

    Raises:
        UserError: the run or the labelled data is missing, or the data cannot give the episodes, or another process is
            at work in the run's folder.
    """
    run = load_run(folder, overrides, device=device, trusted=trusted)
    with distributed.held(owned(run.folder)):
        distributed.once(lambda: artifacts.sweep(run.folder))
        if isinstance(run.config, EnvConfig):
            from umeta.adaptation import evaluate_env

            return distributed.once(lambda: evaluate_env(run, record=record, sinks=sinks))
        if isinstance(run.config, RegressionConfig):
            from umeta.regression import evaluate_regression

            return distributed.once(lambda: evaluate_regression(run, record=record, sinks=sinks))
        return evaluate_images(run, device, record, sinks)


def evaluate_images(run: Run, device: str, record: Path | None, sinks: Sequence[Sink]) -> dict[str, Any]:
    """`evaluate_run` for a run on images."""
    test = check(run.config, record)
    settings = run.config.evaluate
    episodes, count = resolve(settings)
    if test.images.item_shape != run.item_shape:
        raise UserError(
            f"data: the {settings.split} images are {test.images.item_shape}, the learner takes {run.item_shape}"
        )
    asked = question(run, episodes=[asdict(e) for e in episodes], count=count, data=test.fingerprint)
    kept = run.folder / "evaluation.json"
    done = distributed.once(lambda: finished(kept, asked, PARTS))
    if to_device(device).type == "cpu":
        distributed.once(lambda: need_of(run.config, run.item_shape, episodes, count).check())
    rows = methods(run, test, device, done["scratch_lr"])
    tasks = test.tasks(device=str(to_device(device)))
    few = min(count, 200)

    def row(method: Callable[[EpisodeSpec], np.ndarray], episode: EpisodeSpec) -> dict[str, float]:
        return interval(method(episode))

    with postponed_interrupt("row") as pressed:

        def keep(part: dict[str, Any], episode: EpisodeSpec, work: Callable[[EpisodeSpec], Any]) -> None:
            """Does the work for an episode and keeps its result, unless that is kept already."""
            if str(episode) in part:
                return
            began = time.monotonic()
            part[str(episode)] = work(episode)
            done["seconds"] += time.monotonic() - began
            if distributed.first():
                artifacts.write_sealed(kept, {"asked": asked, **done})
            if distributed.agreed(pressed.is_set()):
                raise stopped(kept)

        for name, method in rows.items():
            for episode in episodes:
                keep(done["rows"].setdefault(name, {}), episode, partial(row, method))
        if run.config.train.snapshots:
            for episode in episodes:
                keep(done["curves"], episode, lambda e: learning_curves(run, tasks, [e], few, device).get(str(e)))
        if settings.step_curve:
            for episode in episodes:
                keep(done["step_curves"], episode, lambda e: step_curve(run, tasks, e, few))
        for change in CHANGES:
            for strength in getattr(settings, change):
                part = done["extrapolation"].setdefault(change, {}).setdefault(f"{strength:g}", {})
                distorted = Augmented(tasks, Distorted(**{change: strength}))
                keep(part, episodes[0], partial(row, partial(tested, run, distorted)))
        keep(done["calibration"], episodes[0], lambda e: sureness(run, tasks, e, few))
    result = {
        "name": run.config.name,
        "title": run.config.title or run.config.name,
        "rows": {name: done["rows"][name] for name in rows},
        "protocol": {
            "name": settings.protocol,
            "split": f"{run.config.plain['data'].get('split', '')} {settings.split}".strip(),
            "classes": len(test.names),
            "attributes": 0 if test.attributes is None else test.attributes.shape[1],  # which tasks are then made of
            "queries": episodes[0].query,
            "tasks": count,
            "seed": settings.seed,
            "steps": run.test_steps or getattr(run.learner, "steps", None),
            "normalisation": getattr(run.learner, "normalisation", "none"),
            "inference": "transductive" if transductive(run.learner) else "inductive",
            "proposed_with": "true labels" if run.true_labels else "no labels",
        },
        "minutes": run.minutes(evaluate=done["seconds"]),
        "scratch_lr": done["scratch_lr"] if "from scratch" in rows else {},
        "curves": {name: found for name, found in done["curves"].items() if found},
        "step_curves": {f"{name}, by steps": found for name, found in done["step_curves"].items()},
        "extrapolation": {
            f"{change}, {episodes[0]}": {
                run.config.title or run.config.name: {s: part[str(episodes[0])] for s, part in found.items()}
            }
            for change, found in done["extrapolation"].items()
        },
        "calibration": done["calibration"][str(episodes[0])],
        **provenance(run),
    }

    def write() -> dict[str, Any]:
        with started(sinks, run.folder):
            report.write(run, test, result, episodes[0], sinks)
        if record is not None:
            append(record, result)
        return result

    return distributed.once(write)


def question(run: Run, **own: Any) -> dict[str, Any]:
    """All that the rows of an evaluation depend on, but which of the baselines are wanted; `own` is its kind's."""
    return {
        **asdict(run.config.evaluate),
        "baselines": None,
        "metalearner": run.config.plain["metalearner"],
        "model": artifacts.file_hash(run.folder / "model.safetensors"),
        "tasks": artifacts.file_hash(run.folder / "tasks.json"),
        "umeta": __version__,
        **own,
    }


def finished(kept: Path, asked: dict[str, Any], parts: Sequence[str] = ("rows",)) -> dict[str, Any]:
    """What was computed before for the same question, and the seconds it took; nothing if the file is unusable."""
    try:
        before = artifacts.read_sealed(kept)
    except UserError:
        before = {}
    if before.get("asked") != json.loads(json.dumps(asked)):
        before = {part: {} for part in parts} | {"seconds": 0.0}
    return {name: before[name] for name in (*parts, "seconds")}


def computed(kept: Path, asked: dict[str, Any], rows: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """The rows, each from its function, and the seconds they took; those that `kept` has of before are not done again.

    Raises:
        Interrupted: after Ctrl-C, when the current row is done and kept.
    """
    done = finished(kept, asked)
    with postponed_interrupt("row") as pressed:
        for name, method in rows.items():
            if name in done["rows"]:
                continue
            began = time.monotonic()
            done["rows"][name] = method()
            done["seconds"] += time.monotonic() - began
            artifacts.write_sealed(kept, {"asked": asked, **done})
            if pressed.is_set():
                raise stopped(kept)
    return {"rows": {name: done["rows"][name] for name in rows}, "seconds": done["seconds"]}


def stopped(kept: Path) -> Interrupted:
    """What ends an evaluation after Ctrl-C."""
    return Interrupted(f"evaluate: stopped, finished rows are kept in {kept}; go on with the same command and --resume")


def provenance(run: Run) -> dict[str, Any]:
    """What a result was made by."""
    return {
        "seed": run.config.seed,
        "hardware": hardware(run.theta),
        "umeta": __version__,
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "config": run.config.plain,
    }


def checked(config: RunConfig, record: Path | None = None) -> None:
    """Finds what would stop the evaluation that a config asks for, before anything long begins.

    Raises:
        UserError: as `check`, or its counterpart for an environment or functions.
    """
    if isinstance(config, EnvConfig):
        from umeta import adaptation

        adaptation.check(config, record)
    elif isinstance(config, RegressionConfig):
        from umeta import regression

        regression.check(config, record)
    elif config.evaluate.episodes != []:
        check(config, record)


def check(config: Config, record: Path | None = None) -> LabelledImages:
    """Finds what would stop an evaluation, before anything long begins; returns the labelled test images.

    Raises:
        UserError: an unknown protocol or baseline, no labelled data, data that cannot give the episodes, a learner that
            cannot do their way, or a results file that is not one.
    """
    settings = config.evaluate
    episodes, _ = resolve(settings)
    if unknown := [name for name in settings.baselines if name not in BASELINES]:
        raise UserError(f"evaluate.baselines: no baseline is named '{unknown[0]}'{suggest(unknown[0], BASELINES)}")
    variants(config)
    test = test_images(settings, config.data)
    tasks = test.tasks()
    for episode in episodes:
        tasks.sample(np.zeros(1), episode=episode, seed=settings.seed)
        if getattr(config.metalearner, "one_way", False) and episode.way != config.train.way:
            name = config.plain["metalearner"]["name"]
            asked = "with its options it answers the way of its meta-training alone"
            raise UserError(f"{name}: {asked}, {config.train.way}; evaluate.episodes asks for {episode.way}")
    if record is not None:
        recorded(record)
    return test


def need_of(config: Config, item_shape: tuple[int, ...], episodes: Sequence[EpisodeSpec], count: int) -> footprint.Need:
    """What the evaluation on so many tasks takes, on test images that are read already."""
    learners, settings = [config.metalearner, *variants(config).values()], config.evaluate
    tasks = min(CHUNK, count)
    if "scratch" in settings.baselines and (model := getattr(config.metalearner, "model", None)):
        learners.append(baselines.from_scratch(model, RATES[0], settings.scratch_steps))
        tasks = min(tasks, settings.scratch_tasks)
    steps = settings.steps or getattr(config.metalearner, "test_steps", None)
    return footprint.of_evaluate(learners, TaskSpec(item_shape), episodes, tasks, steps)


def methods(
    run: Run, test: LabelledImages, device: str, rates: dict[str, float]
) -> dict[str, Callable[[EpisodeSpec], np.ndarray]]:
    """The rows of the table: a function from episode to accuracies per task, by name.

    rates: takes the step size of training from scratch, by episode, once that has run.
    """
    settings = run.config.evaluate
    count = resolve(settings)[1]
    seed = settings.seed
    images = test.tasks(device=str(to_device(device)))
    learners: dict[str, Callable[[EpisodeSpec], np.ndarray]] = {
        "chance": lambda episode: np.full(count, 1 / episode.way)
    }
    if "pixels_knn" in settings.baselines:
        flat = test.images.pixels.reshape(len(test.images), -1)
        learners["raw pixels, 1-NN"] = lambda e: baselines.nearest_neighbour(test.tasks(flat), e, count, seed)
    if run.config.embedding is not None and set(ON_EMBEDDING) & set(settings.baselines):
        try:
            vectors = test.tasks(embedding_of(run).embed(test.images).cpu().numpy())
            training = np.array(artifacts.read_array(run.config.tasks_folder / "embeddings.npy"))
        except UserError as error:
            report.note(f"baselines on the embedding left out: {error}")
        else:
            k = getattr(run.config.proposer, "k", None)
            k = min(k if isinstance(k, int) else CLUSTERS, len(training))
            means = cache(lambda: baselines.centroids(training, k, seed))
            known: dict[str, tuple[str, Callable[[EpisodeSpec], np.ndarray]]] = {
                "knn": ("1-NN", lambda e: baselines.nearest_neighbour(vectors, e, count, seed)),
                "linear": ("linear", lambda e: baselines.linear(vectors, e, count, seed)),
                "mlp": ("MLP", lambda e: baselines.mlp(vectors, e, count, seed)),
                "cluster_matching": (
                    "cluster matching",
                    lambda e: baselines.cluster_matching(vectors, means(), e, count, seed),
                ),
            }
            title = run.config.plain["embedding"]["name"]
            wanted = [known[name] for name in ON_EMBEDDING if name in settings.baselines]
            learners |= {f"{title}, {method}": answer for method, answer in wanted}
    if "scratch" in settings.baselines and (model := getattr(run.learner, "model", None)):
        learners["from scratch"] = lambda e: scratch(run, images, model, e, rates)
    title = run.config.title or run.config.name
    changed = {f"{title}, {name}": learner for name, learner in variants(run.config).items()}
    for name, learner in {title: run.learner, **changed}.items():
        learner.init(TaskSpec(run.item_shape), run.config.train.episode, seed=0)
        inference = ", transductive" if learner is not run.learner and transductive(learner) else ""
        learners[f"{name}{inference}"] = partial(tested, replace(run, learner=learner), images)
    return learners


def tested(run: Run, tasks: TaskDistribution, episode: EpisodeSpec) -> np.ndarray:
    """Accuracy of the run's learner on each test task."""
    settings = run.config.evaluate
    count = resolve(settings)[1]
    return evaluate(
        run.learner,
        run.theta,
        tasks,
        episode,
        count=count,
        seed=settings.seed,
        steps=run.test_steps,
        label=f"evaluate {episode}",
    )


def sureness(run: Run, tasks: PartitionTasks, episode: EpisodeSpec, count: int) -> dict[str, Any]:
    """How sure the learner is on test tasks, not calibrated: expected calibration error and reliability diagram."""
    seed = run.config.evaluate.seed
    chunks = answers(run.learner, run.theta, tasks, episode, count, seed, run.test_steps)
    found = [(logits.softmax(-1).flatten(0, 1).cpu(), query.y.flatten().cpu()) for logits, query in chunks]
    probabilities, labels = (torch.cat(parts).numpy() for parts in zip(*distributed.gathered(found), strict=True))
    ece = expected_calibration_error(probabilities, labels)
    return {"episode": str(episode), "ece": ece, "bins": reliability(probabilities, labels)}


def learning_curves(
    run: Run, tasks: PartitionTasks, episodes: list[EpisodeSpec], count: int, device: str
) -> dict[str, Any]:
    """Accuracy on the first `count` test tasks against minutes of work, at the snapshots of the run and its rounds.

    Empty where the snapshots are gone.
    """
    points = list(snapshots(run, device))
    if not points:
        return {}
    curves: dict[str, Any] = {}
    for episode in episodes:
        found = [
            interval(
                evaluate(
                    r.learner, r.theta, tasks, episode, count=count, seed=r.config.evaluate.seed, steps=r.test_steps
                )
            )
            for _, r in points
        ]
        minutes = [round(seconds / 60, 2) for seconds, _ in points]
        curves[str(episode)] = curve(minutes, found, "minutes of proposing and meta-training")
    return curves


def step_curve(run: Run, tasks: PartitionTasks, episode: EpisodeSpec, count: int) -> dict[str, Any]:
    """Accuracy on the first `count` test tasks against the number of steps that the learner adapts by."""
    settings = run.config.evaluate

    def after(steps: int) -> dict[str, float]:
        found = evaluate(run.learner, run.theta, tasks, episode, count=count, seed=settings.seed, steps=steps)
        return interval(found)

    return curve(settings.step_curve, [after(n) for n in settings.step_curve], "steps of adaptation")


def curve(x: Sequence[float], found: Sequence[dict[str, float]], label: str) -> dict[str, Any]:
    """Accuracies and their intervals against x, to be drawn."""
    return {
        "x": list(x),
        "mean": [one["mean"] for one in found],
        "interval": [one["interval"] for one in found],
        "label": label,
    }


def variants(config: Config) -> dict[str, MetaLearner]:
    """The learner with some of its options changed as `evaluate.variants` says, by name.

    Raises:
        UserError: the learner has no such option.
    """
    return {
        name: registry.component(
            "metalearner", joined(config.plain["metalearner"], change), f"evaluate.variants.{name}"
        )
        for name, change in config.evaluate.variants.items()
    }


def transductive(learner: MetaLearner) -> bool:
    """Whether its answer to one query depends on the others."""
    return getattr(learner, "transductive", False)


def embedding_of(run: Run) -> Embedder:
    """The embedding that the run's tasks were proposed with.

    Raises:
        UserError: the tasks are gone, or are not those the run was trained on.
    """
    folder = run.config.tasks_folder
    trained_on = artifacts.read_json(run.folder / "tasks.json")["hash"]
    if artifacts.value_hash(artifacts.read_manifest(folder, "tasks")) != trained_on:
        raise UserError(f"{folder} is not what the run was trained on")
    run.config.embedding.load_state_dict(artifacts.read_tensors(folder / "embedder.safetensors"))
    return run.config.embedding


def scratch(run: Run, tasks: PartitionTasks, model: Model, episode: EpisodeSpec, rates: dict[str, float]) -> np.ndarray:
    """Training from scratch on each task's support, on the first `scratch_tasks` test tasks; `rates` takes its lr."""
    settings = run.config.evaluate
    count = min(settings.scratch_tasks, resolve(settings)[1])

    def accuracies(tasks: PartitionTasks, lr: float, count: int, seed: int, label: str) -> np.ndarray:
        learner = baselines.from_scratch(model, lr, settings.scratch_steps)
        fresh = learner.init(tasks.spec, episode, seed=seed)
        theta = Theta({name: value.to(tasks.items.device) for name, value in fresh.params.items()})
        return evaluate(learner, theta, tasks, episode, count=count, seed=seed, label=label)

    lr = settings.scratch_lr
    if lr is None:
        lr = RATES[0]
        try:
            val = test_images(replace(settings, split="val"), run.config.data).tasks(device=str(tasks.items.device))
            # of another seed, as the tasks to test on may be of the val split too
            means = [
                accuracies(val, rate, min(TUNING, count), settings.seed + 1, f"from scratch, step size {rate}").mean()
                for rate in RATES
            ]
            lr = RATES[int(np.argmax(means))]
        except UserError as error:
            report.note(f"from scratch: step size {lr}, not tuned: {error}")
    rates[str(episode)] = lr
    return accuracies(tasks, lr, count, settings.seed, f"from scratch {episode}")


def hardware(theta: Theta) -> str:
    """The machine in a few words."""
    if (device := next(iter(theta.params.values())).device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
        if cpu.exists()
        else []
    )
    return f"{torch.get_num_threads()} threads of {names[0] if names else platform.machine()}"


def commit() -> str | None:
    """The commit of the checkout this runs from, `+` when it has changes; None for an installed package."""
    here = Path(__file__).parent.parent
    if not (here / ".git").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "--", "umeta", "proposers", "embeddings", "configs"],
            cwd=here,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return (head.stdout.strip() + ("+" if dirty.stdout.strip() else "")) or None


def append(path: Path, result: dict[str, Any]) -> None:
    """Adds a result to a results file, in place of an earlier one of the same name, seed and protocol.

    Raises:
        UserError: the file is there and is not a list of results.
    """

    def identity(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["name"], row["seed"], row["protocol"]["name"], row["protocol"]["split"]

    with lent(path):
        artifacts.write_json(path, [*(row for row in recorded(path) if identity(row) != identity(result)), result])


def recorded(path: Path) -> list[dict[str, Any]]:
    """The results in a results file, none if it is not there yet; UserError when it is something else."""
    rows = artifacts.read_json(path) if path.exists() else []
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and {"name", "seed", "protocol"} <= row.keys() for row in rows
    ):
        raise UserError(f"{path}: expected a list of results, as --record writes it")
    return rows
